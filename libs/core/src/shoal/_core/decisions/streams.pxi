cdef class Streams(Adoption):
    """Tasks that yield: items come in their order, and end with a count or an error."""

    cdef void on_item(self, Peer* peer, Reader& r) noexcept nogil:
        cdef Id16 id = r.id()
        cdef uint32_t attempt = r.u32()
        cdef uint32_t index = r.u32()
        cdef Arrived a
        cdef Stream* s
        cdef Entry* e
        cdef bint unknown
        self.read_object(r, a)
        it = self.streams.find(id)
        unknown = it == self.streams.end()
        if unknown or deref(it).second.dropped or index <= deref(it).second.received or not r.ok:
            e = find_entry(self.entries, object_id(id, index))
            if e != NULL and e.state == PENDING and r.ok:
                self.apply(e, a)  # it was lost, and its task runs again
            else:
                if a.state == IN_ARENA:
                    self.free_place(a.place)
                self.discard(a)
            if not r.ok or peer.phase == CLOSED:
                return
            # A producer that began anew waits for what the consumer took of its predecessor.
            if unknown:
                self.acknowledge_items(peer, id, ALL_CONSUMED)
            elif deref(it).second.backpressure and not deref(it).second.dropped:
                deref(it).second.producer = peer
                self.acknowledge_items(peer, id, deref(it).second.consumed)
            return
        s = deref(it).second
        s.producer = peer
        s.received = index
        s.held.insert(index)
        e = self.own(object_id(id, index))
        e.holds += 1
        self.came_inside(a.contains, peer.who)
        self.apply(e, a)
        self.stream_moved(s)

    cdef void stream_moved(self, Stream* s) noexcept nogil:
        """An item came, or the end: whoever waits for it looks again, in a thread or on an event loop."""
        cdef size_t i
        self.fire_all(s.waiters)
        if s.callbacks.empty():
            return
        for i in range(s.callbacks.size()):
            self.callbacks.push_back(s.callbacks[i])
        s.callbacks.clear()
        self.fire_all(self.callback_waiters)

    cdef void acknowledge_items(self, Peer* peer, const Id16& id, uint32_t consumed) noexcept nogil:
        cdef size_t start = begin_frame(peer[0], ITEM_ACK)
        put_id(peer.out, id)
        put32(peer.out, consumed)
        self.done(peer, start)

    cdef void end_stream(self, TaskState* t, uint8_t status, uint32_t items, Arrived* error) noexcept nogil:
        cdef ObjectId id = object_id(t.id, 0)
        cdef Entry* e
        cdef Stream* s
        cdef Arrived none
        cdef bint again = t.items != 0
        it = self.streams.find(t.id)
        if again or t.lost_more:
            (<Protocol> self).settle_items(t, status, error, t.items if again or it == self.streams.end() else deref(it).second.received)
        if again:
            if it != self.streams.end():
                deref(it).second.producer = NULL
            self.discard(error[0])
            return
        if it != self.streams.end():
            s = deref(it).second
            s.producer = NULL
            t.items = s.received
            if status == STATUS_OK:
                s.end = items
            else:
                s.end = s.received + 1
                if s.dropped:
                    self.discard(error[0])
                else:
                    s.received += 1
                    s.held.insert(s.received)
                    e = self.own(object_id(t.id, s.received))
                    e.holds += 1
                    e.creator = t.name
                    self.apply(e, error[0])
            self.stream_moved(s)
            if s.dropped:
                self.streams.erase(t.id)
                free_stream(s)
        e = find_entry(self.entries, id)
        if e != NULL and e.state == PENDING:
            none.state = INLINE
            none.value = none_value()
            self.apply(e, none)
