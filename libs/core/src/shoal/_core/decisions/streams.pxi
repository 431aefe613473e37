cdef class Streams(Copies):
    """Tasks that yield: items come in their order, and end with a count or an error."""

    cdef void on_item(self, Peer* peer, Reader& r) noexcept nogil:
        cdef Id16 id = r.id()
        cdef uint32_t attempt = r.u32()
        cdef uint32_t index = r.u32()
        cdef Arrived a
        cdef Stream* s
        cdef Entry* e
        cdef Waiter* w
        self.read_object(r, a)
        it = self.streams.find(id)
        if it == self.streams.end() or deref(it).second.dropped or index <= deref(it).second.received or not r.ok:
            if a.state == IN_ARENA:
                self.free_place(a.place)
            self.discard(a)
            if r.ok and it != self.streams.end() and deref(it).second.backpressure and not deref(it).second.dropped and peer.phase != CLOSED:
                # A producer that began anew waits for what the consumer took of its predecessor.
                deref(it).second.producer = peer
                self.acknowledge_items(peer, id, deref(it).second.consumed)
            return
        s = deref(it).second
        s.producer = peer
        s.received = index
        s.held.insert(index)
        e = self.own(object_id(id, index))
        e.holds += 1
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
        cdef Waiter* w
        cdef Arrived none
        it = self.streams.find(t.id)
        if it != self.streams.end():
            s = deref(it).second
            s.producer = NULL
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
