cdef class Connections:
    """Time, and connections that are numbers."""

    cdef Protocol p
    cdef uint64_t lease_word
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
        if peer.outgoing:
            self.p.undialled.erase(peer.who.worker)
        if peer.resuming:
            self.p.reopened(peer)
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
        if not remote:
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
            if peer.phase == UNCONNECTED or peer.phase == BROKEN:
                peer.phase = CONNECTING
                out.append((peer.number, id_bytes(peer.who.worker), id_bytes(peer.who.node)))
        return out

    def opened(self, uint64_t token, uint64_t connection):
        """False: it is not wished any more."""
        cdef Peer* peer = self.p.numbered_peer(token)
        if peer == NULL or peer.phase != CONNECTING:
            return False
        self._open(peer, connection)
        return True

    def refused(self, uint64_t token, str why, bint ended=False):
        """Nobody could be reached there. Local sockets: as a connection that ended; others: its node may say that the process has `ended`."""
        cdef Peer* peer = self.p.numbered_peer(token)
        if peer == NULL or peer.phase != CONNECTING:
            return
        if peer.remote:
            self.p.dial_failed(peer, from_bytes(why.encode()), ended)
        else:
            self.p.on_closed(peer)

    def closes(self):
        """The connections that nobody needs any more: to be ended now."""
        cdef Peer* peer
        cdef size_t i
        cdef list out = []
        for i in range(self.p.to_close.size()):
            peer = self.p.numbered_peer(self.p.to_close[i])
            if peer != NULL and peer.fd >= 0:
                out.append(peer.fd)
                self.connections.erase(<uint64_t> peer.fd)
                peer.fd = -1
                self.p.on_closed(peer)
        self.p.to_close.clear()
        return out

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
        cdef Peer* peer
        it = self.connections.find(connection)
        if it == self.connections.end():
            return True
        peer = deref(it).second
        while used < size:
            if size - used < HEADER_SIZE or size - used - HEADER_SIZE < load32(raw + used):
                return False
            if self.p.admit(peer, raw + used):
                if self.p.on_frame(peer, raw + used) < 0:
                    if not peer.gone:
                        return False
                    self.p.retire(peer)  # it wished to go on with an epoch that has ended
                    return True
                self.p.acknowledge(peer)
            used += HEADER_SIZE + load32(raw + used)
            if peer.successor != NULL:
                peer.successor.fd = peer.fd
                peer.fd = -1
                self.p.retire(peer)
                peer = peer.successor
                self.connections[connection] = peer
        return True

    def take_frames(self):
        """[(connection, frames)] that are to be sent now, in the order in which they were written first."""
        cdef size_t i
        cdef Peer* peer
        cdef list out = []
        cdef bytes frames
        cdef vector[PeerPointer] kept
        for i in range(self.p.dirty.size()):
            peer = self.p.dirty[i]
            if peer.phase == CLOSED:
                peer.dirty = False
                peer.out.clear()
                peer.out_start = 0
                continue
            if peer.phase != OPEN:
                kept.push_back(peer)
                continue
            peer.dirty = False
            frames = to_bytes(peer.greeting)
            peer.greeting.clear()
            if not peer.resuming:
                self.p.flush_deltas(peer)
                frames += PyBytes_FromStringAndSize(peer.out.data() + peer.out_start, peer.out.size() - peer.out_start)
                peer.out_start = peer.out.size()
                if peer.remote:
                    forget_acknowledged(peer[0])
                else:
                    peer.out_offset += peer.out.size()
                    peer.out.clear()
                    peer.out_start = 0
            if frames:
                out.append((peer.fd, frames))
        self.p.dirty.swap(kept)
        return out

    def peer_of(self, uint64_t connection):
        """The worker behind a connection, or None before its HELLO."""
        it = self.connections.find(connection)
        if it == self.connections.end() or not deref(it).second.identified:
            return None
        return id_bytes(deref(it).second.who.worker)
