cdef class Peers:
    """Connections as the protocol sees them: who is behind each, what is to be written, what the shell must be told."""

    cdef Peer* new_peer(self) noexcept nogil:
        cdef Peer* peer = make_peer()
        self.peer_numbers += 1
        peer.number = self.peer_numbers
        peer.used_ns = self.now
        self.all_peers.push_back(peer)
        self.numbered[peer.number] = peer
        return peer

    cdef Peer* numbered_peer(self, uint64_t number) noexcept nogil:
        it = self.numbered.find(number)
        return deref(it).second if it != self.numbered.end() else NULL

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
        if self.is_dead(who):
            self.retire(peer)
            return peer
        self.epochs += 1
        peer.epoch = self.epochs
        self.dialled += 1
        self.peers[who.worker] = peer
        self.hello(peer)
        before = self.undialled.find(who.worker)
        if before != self.undialled.end() and self.now >= deref(before).second.due_ns + DIALS_APART_NS:
            self.undialled.erase(who.worker)
        self.dial(peer)
        return peer

    cdef void dial(self, Peer* peer) noexcept nogil:
        """A moment later where nobody has answered just now."""
        it = self.undialled.find(peer.who.worker)
        if it != self.undialled.end() and self.now < deref(it).second.due_ns:
            self.to_connect_later.push_back(peer)
        else:
            self.to_connect.push_back(peer)

    cdef void dial_due(self) noexcept nogil:
        cdef size_t i
        cdef vector[PeerPointer] later
        cdef vector[Id16] over
        later.swap(self.to_connect_later)
        for i in range(later.size()):
            self.dial(later[i])
        it = self.undialled.begin()
        while it != self.undialled.end():
            if self.now >= deref(it).second.due_ns + UNREACHED_NS:
                over.push_back(deref(it).first)  # nobody has wished to speak with it since
            inc(it)
        for i in range(over.size()):
            self.undialled.erase(over[i])

    cdef bint is_dead(self, const Owner& who) noexcept nogil:
        return self.dead_workers.count(who.worker) or self.dead_nodes.count(who.node)

    cdef void remember_death(self, const Id16& worker, const string& cause) noexcept nogil:
        """# Limit: what has been dead for long is forgotten; who still speaks to it learns of its end by dialling."""
        self.dead_workers[worker] = cause
        self.undialled.erase(worker)
        self.dead_in_order.push_back(worker)
        if self.dead_in_order.size() > DEAD_REMEMBERED:
            self.dead_workers.erase(self.dead_in_order.front())
            self.dead_in_order.pop_front()

    cdef void unmap(self, Peer* peer) noexcept nogil:
        """Nothing new goes by this connection."""
        it = self.peers.find(peer.who.worker)
        if it != self.peers.end() and deref(it).second == peer:
            self.peers.erase(peer.who.worker)

    cdef void pass_on(self, Peer* peer, uint64_t size_bytes) noexcept nogil:
        """Results for it are behind the frame just written. They count here until it has counted them, which its PONG says, since frames keep their order."""
        cdef size_t start
        if self.allowance == &self.unlimited:
            return
        self.allowance.leaving_bytes += size_bytes
        peer.leaving_bytes += size_bytes
        start = begin_frame(peer[0], PING)
        put64(peer.out, size_bytes)
        self.done(peer, start)

    cdef void on_pong(self, Peer* peer, uint64_t size_bytes) noexcept nogil:
        """What was passed on takes its permission along: else results without end would go through one."""
        if size_bytes <= peer.leaving_bytes:
            peer.leaving_bytes -= size_bytes
            self.allowance.passed_bytes += size_bytes
            self.allowance.leaving_bytes -= size_bytes

    cdef void retire(self, Peer* peer) noexcept nogil:
        """Nobody speaks by this connection any more, and nothing in the tables names it. Freed a tick later: somebody up the stack may hold it."""
        self.on_pong(peer, peer.leaving_bytes)
        peer.phase = CLOSED
        peer.gone = True
        self.unmap(peer)
        if peer.retired_ns == 0:
            peer.retired_ns = self.now if self.now else 1
            self.retired.push_back(peer)
            self.to_close.push_back(peer.number)

    cdef void free_retired(self) noexcept nogil:
        cdef size_t i = 0
        cdef Peer* peer
        while i < self.retired.size():
            peer = self.retired[i]
            if self.now - peer.retired_ns < RETIRED_NS or peer.fd >= 0:
                i += 1
                continue
            erase_peer(self.retired, peer)
            erase_peer(self.dirty, peer)
            erase_peer(self.to_connect, peer)
            erase_peer(self.to_connect_later, peer)
            erase_peer(self.awaiting_address, peer)
            erase_peer(self.closed, peer)
            erase_peer(self.all_peers, peer)
            self.numbered.erase(peer.number)
            if peer.outgoing and self.dialled:
                self.dialled -= 1
            free_peer(peer)

    cdef void touch(self, Peer* peer) noexcept nogil:
        peer.used_ns = self.now
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
            peer.out.append(peer.delta_nodes)
            end_frame(peer[0], start)
            peer.deltas.clear()
            peer.delta_nodes.clear()
            peer.n_deltas = 0

    cdef void put_hello(self, string& out) noexcept nogil:
        put_id(out, self.me.worker)
        put_id(out, self.me.node)
        put32(out, self.job)
        put32(out, self.pid)
        put8(out, WIRE_VERSION)
        put8(out, WIRE_VERSION)
        put8(out, self.python_major)
        put8(out, self.python_minor)
        put8(out, self.kind)

    cdef void hello(self, Peer* peer) noexcept nogil:
        cdef size_t start = begin_frame(peer[0], HELLO)
        self.put_hello(peer.out)
        self.done(peer, start)

    cdef void greet(self, Peer* peer) noexcept nogil:
        """The first frame on a connection that goes on with an epoch: it says what came, and so from where the other side begins."""
        cdef string hello
        self.put_hello(hello)
        make_greeting(peer[0], hello)
        self.touch(peer)

    cdef bint admit(self, Peer* peer, const char* header) noexcept nogil:
        """The part of a frame that is the connection's. False: it came before."""
        cdef uint64_t sequence = load64(header + 16)
        peer.credit_bytes = <uint64_t> load32(header + 12) << 10
        self.on_acknowledged(peer, load64(header + 24))
        peer.received_since_ack += HEADER_SIZE + load32(header)
        if sequence:
            if sequence <= peer.sequence_in:
                return False
            peer.sequence_in = sequence
            peer.used_ns = self.now
        return True

    cdef void acknowledge(self, Peer* peer) noexcept nogil:
        """Where no own frame has carried it for long."""
        cdef size_t start
        if peer.received_since_ack >= ACK_EVERY_BYTES and not peer.resuming:
            start = begin_frame(peer[0], ACK)
            self.done(peer, start)

    cdef void on_acknowledged(self, Peer* peer, uint64_t sequence) noexcept nogil:
        while not peer.marks.empty() and peer.marks.front().first <= sequence:
            peer.acked_offset = peer.marks.front().second
            peer.marks.pop_front()
        if peer.remote:
            forget_acknowledged(peer[0])

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

    cdef void ask_address(self, const Id16& node) noexcept nogil:
        """Where a node listens: asked once a second at most, however much waits for it."""
        asked = self.address_asked.find(node)
        if asked != self.address_asked.end() and self.now - deref(asked).second < ADDRESS_PAUSE_NS:
            return
        self.address_asked[node] = self.now
        self.emit(EVENT_NODE_ADDRESS, 0, node, EMPTY, EMPTY)

    cdef void ask_addresses(self) noexcept nogil:
        """Again, where no answer came: that this node's raylet is stopped says nothing of another node."""
        asked = self.address_asked.begin()
        while asked != self.address_asked.end():
            if self.now - deref(asked).second >= ADDRESS_PAUSE_NS:
                deref(asked).second = self.now
                self.emit(EVENT_NODE_ADDRESS, 0, deref(asked).first, EMPTY, EMPTY)
            inc(asked)

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
