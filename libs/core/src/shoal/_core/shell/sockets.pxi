cdef class Sockets:
    """The protocol's connections on real sockets: connecting, reading, writing, and the effects of what came."""

    cdef void opened(self, Peer* peer, int fd) noexcept nogil:
        peer.fd = fd
        peer.phase = OPEN
        watch(self.epoll, fd, peer.number, False, True)
        if peer.remote:
            keep_alive(fd)
        if peer.outgoing:
            self.p.undialled.erase(peer.who.worker)
        if peer.resuming:
            self.p.reopened(peer)
        self.p.touch(peer)

    cdef void shut(self, Peer* peer) noexcept nogil:
        cdef size_t i
        if peer.fd >= 0:
            close_fd(peer.fd)
            peer.fd = -1
        for i in range(peer.descriptors.size()):
            close_fd(peer.descriptors[i])
        peer.descriptors.clear()
        peer.in_.clear()
        self.p.on_closed(peer)

    cdef void connect_store(self) noexcept nogil:
        cdef string path = self.directory + string(b"/store.sock")
        cdef int fd = unix_connect(path.c_str())
        cdef Peer* peer
        if fd < 0:
            return
        peer = self.p.new_peer()
        peer.kind = 3
        peer.identified = True
        self.p.store = peer
        self.opened(peer, fd)
        self.p.hello(peer)
        self.p.store_found()

    cdef void connect_peers(self) noexcept nogil:
        cdef vector[PeerPointer] wanted
        cdef Peer* peer
        cdef string path
        cdef char text[32]
        cdef int fd
        cdef size_t i, k
        wanted.swap(self.p.to_connect)
        for i in range(wanted.size()):
            peer = wanted[i]
            if peer.phase != UNCONNECTED and peer.phase != BROKEN:
                continue
            if peer.remote:
                address = self.p.addresses.find(peer.who.node)
                if address == self.p.addresses.end():
                    self.p.awaiting_address.push_back(peer)
                    self.p.ask_address(peer.who.node)
                else:
                    peer.phase = CONNECTING
                    self.p.emit(EVENT_CONNECT, peer.number, peer.who.worker, deref(address).second, EMPTY)
                continue
            path = self.directory + string(b"/w/")
            append_hex(path, peer.who.worker)
            path = path + string(b".sock")
            fd = unix_connect(path.c_str())
            if fd < 0:
                self.p.on_closed(peer)
            else:
                self.opened(peer, fd)

    cdef void write_peer(self, Peer* peer) noexcept nogil:
        if peer.phase == CLOSED:
            peer.out.clear()
            peer.out_start = 0
            peer.marks.clear()
            peer.deltas.clear()
            peer.delta_nodes.clear()
            peer.n_deltas = 0
            return
        if peer.phase != OPEN or not self.write_greeting(peer) or peer.resuming:
            return
        self.p.flush_deltas(peer)
        if not self.write_out(peer):
            return
        if peer.remote:
            forget_acknowledged(peer[0])  # the rest may have to be sent again
        elif peer.out_start == peer.out.size():
            peer.out_offset += peer.out_start
            peer.out.clear()
            peer.out_start = 0
        elif peer.out_start > (4 << 20):
            peer.out.erase(0, peer.out_start)
            peer.out_offset += peer.out_start
            peer.out_start = 0
        if peer.want_write and peer.out_start == peer.out.size():
            peer.want_write = False
            watch(self.epoll, peer.fd, peer.number, False, False)

    cdef bint write_greeting(self, Peer* peer) noexcept nogil:
        """True: it is out, or there is none."""
        cdef long n
        while not peer.greeting.empty():
            n = send_some(peer.fd, peer.greeting.data(), peer.greeting.size())
            if n < 0:
                if not self.try_later(peer, n):
                    return False
            else:
                peer.greeting.erase(0, n)
        return True

    cdef bint write_out(self, Peer* peer) noexcept nogil:
        """False: the socket takes no more for now, or has ended."""
        cdef size_t size, allowed
        cdef long n
        while True:
            size = peer.out.size() - peer.out_start
            if not size:
                return True
            # Invariant: never more than the peer's credit unacknowledged.
            if peer.out_offset + peer.out_start >= peer.acked_offset + peer.credit_bytes:
                return True
            allowed = peer.acked_offset + peer.credit_bytes - peer.out_offset - peer.out_start
            n = send_some(peer.fd, peer.out.data() + peer.out_start, size if size < allowed else allowed)
            if n < 0:
                if not self.try_later(peer, n):
                    return False
            else:
                peer.out_start += n

    cdef bint try_later(self, Peer* peer, long problem) noexcept nogil:
        """After a failed write. True: try at once."""
        if problem == -EINTR:
            return True
        if problem != -EAGAIN:
            self.shut(peer)
        elif not peer.want_write:
            peer.want_write = True
            watch(self.epoll, peer.fd, peer.number, True, False)
        return False

    cdef void flush(self) noexcept nogil:
        cdef size_t i = 0
        cdef Peer* peer
        while i < self.p.dirty.size():  # writing may make more
            peer = self.p.dirty[i]
            peer.dirty = False
            self.write_peer(peer)
            i += 1
        self.p.dirty.clear()

    cdef void read_peer(self, Peer* peer) noexcept nogil:
        cdef long n
        cdef size_t used
        cdef bint more = True
        while more and peer.fd >= 0:
            if peer == self.p.raylet:
                n = receive_some(peer.fd, self.scratch, SCRATCH_BYTES, peer.descriptors)
            else:
                n = receive_bytes(peer.fd, self.scratch, SCRATCH_BYTES)
            if n <= 0:
                if n == -EAGAIN:
                    return
                if n == -EINTR:
                    continue
                self.shut(peer)
                return
            more = n == SCRATCH_BYTES
            if peer.in_.empty():
                used = self.parse(peer, self.scratch, n)
                if used < <size_t> n and peer.fd >= 0:
                    peer.in_.append(self.scratch + used, n - used)
            else:
                peer.in_.append(self.scratch, n)
                used = self.parse(peer, peer.in_.data(), peer.in_.size())
                if used:
                    peer.in_.erase(0, used)

    cdef size_t parse(self, Peer* peer, const char* data, size_t size) noexcept nogil:
        """Takes whole frames off `data`; returns how many bytes they were."""
        cdef size_t used = 0
        cdef uint32_t length
        cdef uint8_t type
        cdef const char* h
        while size - used >= HEADER_SIZE and peer.fd >= 0:
            h = data + used
            length = load32(h)
            if <uint8_t> h[6] != WIRE_VERSION or length > MAX_PAYLOAD:
                self.shut(peer)
                return size
            if size - used < HEADER_SIZE + length:
                if peer.in_.size() and length > (1 << 20):
                    peer.in_.reserve(HEADER_SIZE + length + SCRATCH_BYTES)
                break
            used += HEADER_SIZE + length
            if not self.p.admit(peer, h):
                continue
            type = <uint8_t> h[4]
            if type == REGISTERED or type == ROUTED:
                if peer == self.p.raylet:
                    self.on_descriptors(peer, type, h + HEADER_SIZE, length)
            elif self.p.on_frame(peer, h) < 0:
                self.shut(peer)
                return size
            if peer.successor != NULL:
                self.move_socket(peer, data + used, size - used)
                return size
            self.p.acknowledge(peer)
        return used

    cdef void move_socket(self, Peer* peer, const char* data, size_t size) noexcept nogil:
        """To the peer whose epoch it goes on with; and what was read behind the HELLO."""
        cdef Peer* to = peer.successor
        cdef size_t used
        if to.fd >= 0:
            close_fd(to.fd)  # this side had not noticed that it broke
        to.fd = peer.fd
        to.want_write = False
        peer.fd = -1
        watch(self.epoll, to.fd, to.number, False, False)
        self.p.retire(peer)
        to.in_ = string(data, size)
        used = self.parse(to, to.in_.data(), size)
        if used and not to.in_.empty():
            to.in_.erase(0, used)

    cdef void on_descriptors(self, Peer* peer, uint8_t type, const char* data, size_t size) noexcept nogil:
        cdef Peer* routed
        cdef int fd
        if type == REGISTERED:
            self.registered_raw = string(data, size)
            self.registered_fds.swap(peer.descriptors)
            if self.registered != NULL:
                self.p.fire(self.registered)
        elif not peer.descriptors.empty():
            fd = peer.descriptors[0]
            peer.descriptors.clear()
            routed = self.p.new_peer()
            routed.remote = True
            self.opened(routed, set_nonblocking(fd))  # our HELLO follows theirs, which may go on with an epoch

    cdef void accept_peers(self) noexcept nogil:
        cdef int fd
        cdef Peer* peer
        while True:
            fd = unix_accept(self.listener)
            if fd == -EAGAIN or (fd < 0 and fd != -EINTR):
                return
            if fd < 0:
                continue
            peer = self.p.new_peer()
            self.opened(peer, fd)
            self.p.hello(peer)

    cdef void handle(self, Ready* ready, int n) noexcept nogil:
        """What epoll told. The raylet first: what it lends must be known before tasks under it come."""
        cdef int i
        cdef uint64_t key
        cdef Peer* peer
        self.p.now = now_ns()
        for i in range(n):
            if self.p.raylet != NULL and ready.key(i) == self.p.raylet.number:
                self.read_peer(self.p.raylet)
                break
        for i in range(n):
            key = ready.key(i)
            if key == KEY_KICK:
                if not self.asleep_kicked:
                    drain(self.kicker)
                    self.background_kicked = False
                continue
            if key == KEY_LISTENER:
                self.accept_peers()
                continue
            # Safety: a number and not a pointer, since another thread may have ended that connection while this one waited.
            peer = self.p.numbered_peer(key)
            if peer == NULL or peer.fd < 0:
                continue
            if ready.what(i) & EPOLLOUT:
                peer.want_write = True
                self.p.touch(peer)
            if peer != self.p.raylet and ready.what(i) & (EPOLLIN | EPOLLERR | EPOLLHUP):
                self.read_peer(peer)
        self.after()

    cdef void after(self) noexcept nogil:
        """The effects of whatever the protocol was just told."""
        cdef size_t i
        cdef Waiter* w
        cdef shoal_loc_t place
        if self.p.now - self.timers_at >= TICK_NS:
            self.timers_at = self.p.now
            self.p.on_timer()
            if self.p.store == NULL and self.arena != NULL and not self.p.closing:
                self.connect_store()
        if not self.p.to_connect.empty():
            self.connect_peers()
        if not self.p.to_close.empty():
            self.close_peers()
        if not self.p.arena_frees.empty():
            for i in range(self.p.arena_frees.size()):
                place.slot = self.p.arena_frees[i].slot
                place.generation = self.p.arena_frees[i].generation
                if self.arena != NULL and shoal_arena_free(self.arena, place) != SHOAL_OK:
                    self.p.tell_free(self.p.arena_frees[i])  # perhaps on disk by now
            self.p.arena_frees.clear()
        if not self.p.to_hold.empty():
            self.hold_borrowed()
        for i in range(self.p.arena_unpins.size()):
            self.unpin(self.p.arena_unpins[i])
        self.p.arena_unpins.clear()
        if not self.p.dirty.empty():
            self.flush()
        self.wake_all()

    cdef void hold_borrowed(self) noexcept nogil:
        """What lies here of an owner that died stays for as long as this process counts it: the store frees what nobody pins, a moment from now."""
        cdef size_t i
        cdef shoal_loc_t place
        cdef const void* data = NULL
        cdef uint64_t size = 0
        cdef Entry* e
        cdef vector[ObjectId] holds
        holds.swap(self.p.to_hold)
        for i in range(holds.size()):
            e = find_entry(self.p.entries, holds[i])
            if e == NULL or self.arena == NULL or e.state != IN_ARENA or e.held.get() != NULL or not self.p.is_local(e):
                continue
            place.slot = e.copy.slot if e.has_copy else e.place.slot
            place.generation = e.copy.generation if e.has_copy else e.place.generation
            if shoal_arena_get(self.arena, place, &data, &size) == SHOAL_OK:
                self.p.held_here(e, place.slot, place.generation)
            else:
                self.p.not_held(e)

    cdef void unpin(self, const Place& held) noexcept nogil:
        cdef shoal_loc_t place
        place.slot = held.slot
        place.generation = held.generation
        if self.arena != NULL:
            shoal_arena_unpin(self.arena, place)

    cdef void close_peers(self) noexcept nogil:
        """Connections that nobody needs any more. What they still say is of no interest."""
        cdef size_t i
        cdef Peer* peer
        for i in range(self.p.to_close.size()):
            peer = self.p.numbered_peer(self.p.to_close[i])
            if peer != NULL and peer.fd >= 0:
                self.shut(peer)
        self.p.to_close.clear()

    cdef void wake_all(self) noexcept nogil:
        cdef size_t i
        for i in range(self.p.woken.size()):
            if self.p.woken[i].parked:
                futex_wake(&self.p.woken[i].wake, 1)
            elif self.p.woken[i] == self.asleep and not self.asleep_kicked:
                self.asleep_kicked = True
                kick(self.kicker)
        self.p.woken.clear()
        # What another thread settled or received, the loop has to hear of: nothing is left to read for it.
        if self.loop_mode and not self.loop_polling and not self.loop_kicked and (
            not self.p.callbacks.empty() or self.p.runs.size() > <size_t> self.p.started
        ):
            self.loop_kicked = True
            kick(self.loop_kicker)

    cdef void soon(self, Peer* peer, size_t ahead) noexcept nogil:
        """After an own frame: at once to a peer that may be idle; to a busy one in batches, a millisecond late at most."""
        self.p.now = now_ns()
        if ahead <= 2 or peer == NULL or peer.out.size() - peer.out_start >= LAZY_BYTES or not self.p.to_connect.empty():
            self.after()
        else:
            self.wake_all()
            self.stir()

    cdef void stir(self) noexcept nogil:
        """Makes sure that the background thread looks within a millisecond."""
        if self.background_waiting:
            if self.poller == BACKGROUND:
                self.released = now_ns()
                self.poller = NOBODY
            if not self.background_kicked:
                self.background_kicked = True
                kick(self.kicker)  # whoever drains it flushes
        elif self.background_deep:
            self.background_deep = False
            store_release(&self.background_word, 1)
            futex_wake(&self.background_word, 1)

    def adopt_connection(self, uint64_t token, int fd, str error="", bint ended=False):
        """The answer to a "connect" event: a socket, or why there is none. `ended`: its node says that no such process is there."""
        cdef Peer* peer
        cdef string why = from_str(error)
        self.mutex.lock()
        self.p.now = now_ns()
        peer = self.p.numbered_peer(token)
        if peer == NULL or peer.phase != CONNECTING:
            if fd >= 0:
                close_fd(fd)  # it is not wished any more
        elif fd >= 0:
            self.opened(peer, set_nonblocking(fd))
        else:
            self.p.dial_failed(peer, why, ended)
        self.after()
        self.mutex.unlock()

    def node_address(self, bytes node_id, str address):
        """Where a node listens; empty: it is dead, or has never been. Not told when nobody could be asked: it is asked for again."""
        cdef Id16 node = to_id(node_id)
        cdef string where = from_str(address)
        cdef vector[PeerPointer] waiting
        cdef size_t i
        self.mutex.lock()
        self.p.now = now_ns()
        waiting.swap(self.p.awaiting_address)
        if where.empty():
            self.p.node_died(node, string(b"its node is not known to the cluster any more"))
        else:
            self.p.node_found(node, where)
        for i in range(waiting.size()):
            if waiting[i].who.node == node and not where.empty():
                self.p.to_connect.push_back(waiting[i])
            elif not (waiting[i].who.node == node):
                self.p.awaiting_address.push_back(waiting[i])
        self.after()
        self.mutex.unlock()
