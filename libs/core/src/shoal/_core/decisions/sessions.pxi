cdef class Sessions(Deaths):
    """The lives of connections: a broken one goes on within its epoch, an idle one is closed by agreement, and what time brings."""

    cdef void on_hello(self, Peer* peer, const char* header, Reader& r) noexcept nogil:
        """Who is behind a connection that somebody else opened; what we dialled is known already."""
        cdef Owner who
        cdef bint continues = <uint8_t> header[5] & CONTINUES
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
        if peer.outgoing:
            if peer.resuming:
                self.go_on(peer)
            return
        if peer.identified:
            return
        peer.who = who
        peer.identified = True
        peer.remote = not (who.node == self.me.node)
        peer.epoch = load32(header + 8)
        if not r.ok or peer.kind > 1:
            return
        self.undialled.erase(who.worker)  # it can be reached: by this connection, should a dial that is under way be in vain
        if continues and not self.is_new(peer):
            if not self.hand_over(peer, load64(header + 24)):
                peer.gone = True
                r.ok = False  # its epoch has ended here: the other side learns it by the connection's end
            return
        if peer.remote:
            self.remember_epoch(peer)
            self.end_older(peer)
            self.hello(peer)
        if not self.peers.count(who.worker):
            self.peers[who.worker] = peer

    # -- broken network connections: both sides meet once more within the epoch, and send again what was not acknowledged -----------------

    cdef void on_closed(self, Peer* peer) noexcept nogil:
        """The connection ended. A network one may go on; who was behind another is judged when the raylet says so, or after a second."""
        if peer.phase == CLOSED or peer.phase == BROKEN:
            return
        if peer == self.raylet:
            self.cut_off(peer)
            self.raylet_lost()
        elif peer == self.store:
            self.cut_off(peer)
            self.store_lost()
            self.retire(peer)
        elif peer.gone or not peer.identified or peer.leaving and (not peer.outgoing or not peer.remote or peer.marks.empty()):
            self.cut_off(peer)
            self.retire(peer)
        elif peer.resuming:
            self.resume_failed(peer)
        elif peer.remote and peer.phase == OPEN and not self.closing:
            self.broke(peer)
        else:
            self.cut_off(peer)
            peer.closed_ns = self.now
            self.closed.push_back(peer)

    cdef void cut_off(self, Peer* peer) noexcept nogil:
        peer.phase = CLOSED
        peer.out.clear()
        peer.out_start = 0
        peer.greeting.clear()
        peer.marks.clear()

    cdef void broke(self, Peer* peer) noexcept nogil:
        peer.phase = BROKEN
        peer.resuming = True
        peer.closed_ns = self.now
        peer.want_write = False
        peer.received_since_ack = 0
        self.closed.push_back(peer)
        if peer.outgoing:
            self.to_connect.push_back(peer)  # the other side waits: one dials, and it is the one that did

    cdef void reopened(self, Peer* peer) noexcept nogil:
        """Of one that dials again: the shell has a socket for it."""
        self.greet(peer)

    cdef void dial_failed(self, Peer* peer, const string& why, bint ended) noexcept nogil:
        """A network connection that did not come to be. Its node knows whether the process has `ended`; else that node, or the way to it, may only be slow."""
        if peer.resuming:
            if ended:
                peer.redials = REDIALS
            self.resume_failed(peer)
        elif ended:
            self.worker_died(peer.who.worker, NIL, False, CODE_UNREACHABLE, why)
        else:
            self.unanswered(peer, why)

    cdef void resume_failed(self, Peer* peer) noexcept nogil:
        """The other side has gone, or has given up, or the network broke once more. After a few tries what was under way is lost, unless a raylet tells more within a
        second: answers, and counts of references."""
        if peer.outgoing and not peer.leaving and not self.closing and peer.redials < REDIALS:
            peer.redials += 1
            peer.phase = BROKEN
            peer.want_write = False
            peer.greeting.clear()
            peer.received_since_ack = 0
            self.to_connect_later.push_back(peer)
            return
        peer.resuming = False
        self.cut_off(peer)
        if peer.leaving:
            self.retire(peer)  # it had agreed, and nothing was under way

    cdef bint hand_over(self, Peer* peer, uint64_t acknowledged) noexcept nogil:
        """A connection that goes on with an epoch: the shell gives its socket to the peer whose epoch it is. False: nobody's."""
        cdef size_t i
        cdef Peer* old
        for i in range(self.all_peers.size()):
            old = self.all_peers[i]
            if old != peer and not old.outgoing and old.remote and not old.gone and old.who.worker == peer.who.worker and old.epoch == peer.epoch:
                if old.phase == OPEN or old.phase == BROKEN:
                    peer.successor = old
                    self.on_acknowledged(old, acknowledged)
                    self.greet(old)
                    self.go_on(old)
                    return True
        return False

    cdef bint is_new(self, Peer* peer) noexcept nogil:
        """Whether the first connection of this epoch broke before its HELLO came: then everything that was sent on it is sent again. Epochs of a dialler grow."""
        it = self.epochs_seen.find(peer.who.worker)
        return it == self.epochs_seen.end() or deref(it).second < peer.epoch

    cdef void remember_epoch(self, Peer* peer) noexcept nogil:
        if not self.epochs_seen.count(peer.who.worker):
            self.epochs_in_order.push_back(peer.who.worker)
            if self.epochs_in_order.size() > DEAD_REMEMBERED:  # Limit: of processes that spoke with this one
                self.epochs_seen.erase(self.epochs_in_order.front())
                self.epochs_in_order.pop_front()
        self.epochs_seen[peer.who.worker] = peer.epoch

    cdef void go_on(self, Peer* peer) noexcept nogil:
        peer.phase = OPEN
        peer.resuming = False
        peer.redials = 0
        peer.out_start = <size_t> (peer.acked_offset - peer.out_offset)
        erase_peer(self.closed, peer)
        self.resumed += 1
        self.touch(peer)

    cdef void end_older(self, Peer* peer) noexcept nogil:
        """Who dials anew has given up the epochs that are still broken here."""
        cdef size_t i
        cdef vector[PeerPointer] older
        for i in range(self.closed.size()):
            if not self.closed[i].outgoing and self.closed[i].resuming and self.closed[i].who.worker == peer.who.worker:
                older.push_back(self.closed[i])
        for i in range(older.size()):
            erase_peer(self.closed, older[i])
            self.connection_lost(older[i], BROKE)

    # -- idle connections: whoever dialled says BYE, the other side says it too, and then the first one closes ----------------------------

    cdef bint is_idle(self, Peer* peer) noexcept nogil:
        cdef size_t i, k
        if peer.questions or peer.n_deltas or peer.out_start < peer.out.size() or peer.resuming:
            return False
        for i in range(self.classes.size()):
            for k in range(self.classes[i].leases.size()):
                if self.classes[i].leases[k].peer == peer:
                    return False
        a = self.actors.begin()
        while a != self.actors.end():
            if deref(a).second.worker == peer.who.worker and not deref(a).second.in_flight.empty():
                return False
            inc(a)
        s = self.streams.begin()
        while s != self.streams.end():
            if deref(s).second.producer == peer:
                return False
            inc(s)
        run = self.runs.begin()
        while run != self.runs.end():
            if deref(run).second.get().from_ == peer:
                return False
            inc(run)
        return True

    cdef void leave_idle(self) noexcept nogil:
        cdef size_t i
        cdef Peer* peer
        if self.now - self.looked_idle < IDLE_LOOK_NS:
            return
        self.looked_idle = self.now
        for i in range(self.all_peers.size()):
            peer = self.all_peers[i]
            if peer.phase == OPEN and peer.outgoing and peer.kind <= 1 and self.now - peer.used_ns >= IDLE_PEER_NS and self.is_idle(peer):
                self.say_bye(peer)

    cdef void say_bye(self, Peer* peer) noexcept nogil:
        cdef size_t start = begin_frame(peer[0], BYE)
        put16(peer.out, BYE_IDLE)
        self.done(peer, start)
        peer.leaving = True
        self.unmap(peer)

    cdef void on_bye(self, Peer* peer, Reader& r) noexcept nogil:
        if r.u16() != BYE_IDLE or peer.kind > 1:
            return
        if not peer.outgoing:
            if not peer.leaving and self.is_idle(peer):
                self.say_bye(peer)
        elif peer.leaving:
            self.retire(peer)

    cdef void stay(self, Peer* peer) noexcept nogil:
        """The other side had sent something before it heard the BYE, and will not agree to it."""
        peer.leaving = False
        if not peer.gone and not self.peers.count(peer.who.worker):
            self.peers[peer.who.worker] = peer

    # -- time -----------------------------------------------------------------------------------------------------------------------------

    cdef void on_timer(self) noexcept nogil:
        self.free_retired()
        self.return_idle()
        if not self.later.empty():
            self.resume_later()
        self.hand_back()
        self.judge_closed()
        if not self.undialled.empty() or not self.to_connect_later.empty():
            self.dial_due()
        if not self.address_asked.empty():
            self.ask_addresses()
        if not self.later_pulls.empty() and self.now >= self.later_pulls_ns:
            self.pull_again()
        if self.told_owns & OWNS_OBJECTS and self.lent == 0 and self.now - self.lent_ns >= LENT_NOTHING_NS:
            self.tell_owns(self.told_owns & ~OWNS_OBJECTS)
        if self.dialled:
            self.leave_idle()

    cdef void judge_closed(self) noexcept nogil:
        cdef size_t i = 0
        cdef Peer* peer
        cdef uint64_t ago
        while i < self.closed.size():
            peer = self.closed[i]
            ago = self.now - peer.closed_ns
            if peer.gone:
                if peer.phase == OPEN and ago < DEATH_NOTICE_NS:
                    i += 1
                    continue
                erase_peer(self.closed, peer)
                self.retire(peer)
            elif ago >= (RESUME_NS if peer.resuming else <uint64_t> DEATH_NOTICE_NS):
                erase_peer(self.closed, peer)
                if peer.remote:
                    self.connection_lost(peer, BROKE)
                else:
                    self.worker_died(peer.who.worker, NIL, False, CODE_WORKER_CRASHED, string(b"its connection ended, and its raylet did not say why"))
                    self.retire(peer)
            else:
                i += 1

    cdef int64_t next_timer_ns(self) noexcept nogil:
        """How long the shell may sleep: -1 for as long as it likes."""
        cdef size_t i
        it = self.queues.find(EMPTY)
        if self.started and it != self.queues.end() and not deref(it).second.empty():
            return HAND_BACK_NS
        for i in range(self.classes.size()):
            if not self.classes[i].leases.empty():
                return IDLE_LEASE_NS // 2
        if not self.retired.empty() or not self.later.empty():
            return RETIRED_NS
        if not self.closed.empty():
            return DEATH_NOTICE_NS // 4
        if not self.to_connect_later.empty():
            return DIAL_PAUSE_NS // 2
        if not self.address_asked.empty():
            return ADDRESS_PAUSE_NS // 2
        if not self.later_pulls.empty():
            return PULL_AGAIN_NS
        if self.told_owns & OWNS_OBJECTS and self.lent == 0:
            return LENT_NOTHING_NS
        return <int64_t> IDLE_LOOK_NS if self.dialled else -1
