cdef class Connections:
    """Time, and connections that are numbers."""

    cdef Protocol p
    cdef vector[PeerPointer] connecting
    cdef unordered_map[uint64_t, PeerPointer, NumberHash] connections

    def set_now(self, uint64_t ns):
        self.p.now = ns

    def timer(self):
        """What time brings; due every few milliseconds while `next_timer` is not negative."""
        self.p.on_timer()

    def next_timer(self):
        return self.p.next_timer_ns()

    cdef Peer* _open(self, Peer* peer, uint64_t connection):
        peer.fd = <int> connection
        peer.phase = OPEN
        self.connections[connection] = peer
        self.p.touch(peer)
        return peer

    def join(self, uint64_t connection):
        """The connection to this node's raylet."""
        cdef Peer* peer = self.p.new_peer()
        peer.kind = 2
        peer.identified = True
        self.p.raylet = self._open(peer, connection)
        self.p.hello(peer)

    def accept(self, uint64_t connection, bint remote=False):
        cdef Peer* peer = self.p.new_peer()
        peer.remote = remote
        self._open(peer, connection)
        self.p.hello(peer)

    def connects(self):
        """(token, worker id, node id) of whom a connection is wished to: answer with `opened` or `refused`."""
        cdef vector[PeerPointer] wanted
        cdef Peer* peer
        cdef size_t i
        cdef list out = []
        wanted.swap(self.p.to_connect)
        for i in range(wanted.size()):
            peer = wanted[i]
            if peer.phase == UNCONNECTED:
                peer.phase = CONNECTING
                out.append((self.connecting.size(), id_bytes(peer.who.worker), id_bytes(peer.who.node)))
                self.connecting.push_back(peer)
        return out

    def opened(self, size_t token, uint64_t connection):
        """False: it is not wished any more."""
        if self.connecting[token].phase != CONNECTING:
            return False
        self._open(self.connecting[token], connection)
        return True

    def refused(self, size_t token, str why):
        """Nobody could be reached there. Local sockets: as a connection that ended; others: whoever dialled knows that it is gone."""
        cdef Peer* peer = self.connecting[token]
        if peer.remote:
            self.p.worker_died(peer.who.worker, NIL, False, CODE_UNREACHABLE, from_bytes(why.encode()))
        else:
            self.p.on_closed(peer)

    def closed(self, uint64_t connection):
        """The connection ended."""
        cdef Peer* peer
        it = self.connections.find(connection)
        if it == self.connections.end():
            return
        peer = deref(it).second
        self.connections.erase(connection)
        peer.fd = -1
        self.p.on_closed(peer)

    def deliver(self, uint64_t connection, bytes data):
        """Whole frames. False: they are broken, and the connection must end."""
        cdef const char* raw = PyBytes_AS_STRING(data)
        cdef size_t size = PyBytes_GET_SIZE(data)
        cdef size_t used = 0
        cdef uint32_t length
        cdef uint64_t sequence, acknowledgement
        cdef Peer* peer
        it = self.connections.find(connection)
        if it == self.connections.end():
            return True
        peer = deref(it).second
        while used < size:
            if size - used < HEADER_SIZE:
                return False
            memcpy(&length, raw + used, 4)
            if size - used - HEADER_SIZE < length:
                return False
            memcpy(&sequence, raw + used + 16, 8)
            memcpy(&acknowledgement, raw + used + 24, 8)
            self.p.on_acknowledged(peer, acknowledgement)
            if not sequence or sequence > peer.sequence_in:
                peer.sequence_in = sequence if sequence else peer.sequence_in
                if self.p.on_frame(peer, <uint8_t> raw[used + 4], raw + used + HEADER_SIZE, length) < 0:
                    return False
            used += HEADER_SIZE + length
        return True

    def take_frames(self):
        """[(connection, frames)] that are to be sent now, in the order in which they were written first."""
        cdef size_t i
        cdef Peer* peer
        cdef list out = []
        cdef vector[PeerPointer] kept
        for i in range(self.p.dirty.size()):
            peer = self.p.dirty[i]
            if peer.phase == CLOSED:
                peer.dirty = False
                peer.out.clear()
                continue
            self.p.flush_deltas(peer)
            if peer.phase != OPEN:
                kept.push_back(peer)
                continue
            peer.dirty = False
            if not peer.out.empty():
                out.append((peer.fd, to_bytes(peer.out)))
                peer.out_offset += peer.out.size()
                peer.out.clear()
        self.p.dirty.swap(kept)
        return out

    def peer_of(self, uint64_t connection):
        """The worker behind a connection, or None before its HELLO."""
        it = self.connections.find(connection)
        if it == self.connections.end() or not deref(it).second.identified:
            return None
        return id_bytes(deref(it).second.who.worker)
