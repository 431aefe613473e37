cdef class Peers:
    """Connections as the protocol sees them: who is behind each, what is to be written, what the shell must be told."""

    cdef Peer* new_peer(self) noexcept nogil:
        cdef Peer* peer = make_peer()
        self.all_peers.push_back(peer)
        return peer

    cdef Peer* peer_to(self, const Owner& who) noexcept nogil:
        """The connection on which this process speaks to `who`; opened by the shell when it is new."""
        it = self.peers.find(who.worker)
        if it != self.peers.end():
            return deref(it).second
        cdef Peer* peer = self.new_peer()
        peer.who = who
        peer.identified = True
        peer.outgoing = True
        peer.remote = not (who.node == self.me.node)
        self.peers[who.worker] = peer
        if self.dead_workers.count(who.worker) or self.dead_nodes.count(who.node):
            peer.phase = CLOSED
            peer.gone = True
            self.peers.erase(who.worker)
        else:
            self.hello(peer)
            self.to_connect.push_back(peer)
        return peer

    cdef void touch(self, Peer* peer) noexcept nogil:
        if not peer.dirty:
            peer.dirty = True
            self.dirty.push_back(peer)

    cdef void done(self, Peer* peer, size_t start) noexcept nogil:
        end_frame(peer[0], start)
        self.touch(peer)

    cdef void flush_deltas(self, Peer* peer) noexcept nogil:
        cdef size_t start
        if peer.n_deltas:
            start = begin_frame(peer[0], REF_DELTA)
            put32(peer.out, peer.n_deltas)
            peer.out.append(peer.deltas)
            end_frame(peer[0], start)
            peer.deltas.clear()
            peer.n_deltas = 0

    cdef void hello(self, Peer* peer) noexcept nogil:
        cdef size_t start = begin_frame(peer[0], HELLO)
        put_id(peer.out, self.me.worker)
        put_id(peer.out, self.me.node)
        put32(peer.out, self.job)
        put32(peer.out, self.pid)
        put8(peer.out, WIRE_VERSION)
        put8(peer.out, WIRE_VERSION)
        put8(peer.out, self.python_major)
        put8(peer.out, self.python_minor)
        put8(peer.out, self.kind)
        self.done(peer, start)

    cdef void on_acknowledged(self, Peer* peer, uint64_t sequence) noexcept nogil:
        while not peer.marks.empty() and peer.marks.front().first <= sequence:
            peer.acked_offset = peer.marks.front().second
            peer.marks.pop_front()

    cdef void fire(self, Waiter* waiter) noexcept nogil:
        waiter.remaining -= 1
        if waiter.remaining <= 0 and not waiter.fired:
            waiter.fired = 1
            store_release(&waiter.wake, 1)
            self.woken.push_back(waiter)

    cdef void emit(self, uint8_t kind, uint64_t number, const Id16& a, const string& text, const string& payload) noexcept nogil:
        cdef Event event
        cdef Waiter* waiter
        event.kind = kind
        event.number = number
        event.a = a
        event.text = text
        event.payload = payload
        self.events.push_back(event)
        self.fire_all(self.event_waiters)

    cdef void fire_all(self, WaiterList& waiters) noexcept nogil:
        cdef Waiter* waiter
        while not waiters.empty():
            waiter = waiters.back()
            waiters.pop_back()
            self.fire(waiter)

    cdef void on_ping(self, Peer* peer, Reader& r) noexcept nogil:
        cdef uint64_t token = r.u64()
        cdef size_t start = begin_frame(peer[0], PONG)
        put64(peer.out, token)
        self.done(peer, start)

    cdef void on_hello(self, Peer* peer, Reader& r) noexcept nogil:
        """Who is behind a connection that somebody else opened; what we dialled is known already."""
        cdef Owner who
        who.worker = r.id()
        who.node = r.id()
        r.u32()
        r.u32()
        if r.u8() > WIRE_VERSION or r.u8() < WIRE_VERSION:
            r.ok = False
            return
        r.u8()
        r.u8()
        peer.kind = r.u8()
        if not peer.identified:
            peer.who = who
            peer.identified = True
            peer.remote = not (who.node == self.me.node)
            if peer.kind <= 1 and not self.peers.count(who.worker):
                self.peers[who.worker] = peer
