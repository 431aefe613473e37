cdef class Leases(Tasks):
    """Workers on loan: how many are wished for each scheduling class, what goes to whom, and when they go back."""

    cdef uint32_t class_of(self, const string& spec) noexcept nogil:
        cdef LeaseClass* c
        it = self.class_numbers.find(spec)
        if it != self.class_numbers.end():
            return deref(it).second
        c = make_class()
        c.id = <uint32_t> self.classes.size()
        c.spec = spec
        self.classes.push_back(c)
        self.class_numbers[spec] = c.id
        return c.id

    cdef uint32_t depth(self, LeaseClass* c) noexcept nogil:
        cdef double n
        if c.mean_us < 0 or (c.mean_us > 200 and c.deviation_us > 2 * c.mean_us):
            return 1
        n = PIPELINE_US / (c.mean_us + 1)
        if n < 1:
            return 1
        return PIPELINE_MOST if n > PIPELINE_MOST else <uint32_t> n

    cdef void pump(self, LeaseClass* c) noexcept nogil:
        """Sends what is ready to the leases that have room, the emptiest first; tells the raylet how many more are wished."""
        cdef uint32_t depth = self.depth(c)
        cdef size_t i
        cdef Lease* best
        cdef Lease* lease
        cdef shared_ptr[TaskState] task
        cdef TaskState* t
        while not c.ready.empty():
            t = c.ready.front().get()
            if t.phase != QUEUED:
                c.ready.pop_front()
                continue
            if self.reverted and not t.deps.empty() and self.waits_again(c.ready.front()):
                continue
            best = NULL
            if c.spread_over > 1:
                best = self.least_served(c, depth)
            else:
                for i in range(c.leases.size()):
                    lease = c.leases[i]
                    if lease.reclaimed or lease.stalled or lease.in_flight.size() >= depth or lease.peer.phase == CLOSED or lease.peer.gone:
                        continue
                    if best == NULL or lease.in_flight.size() < best.in_flight.size():
                        best = lease
                        if best.in_flight.empty():
                            break
            if best == NULL:
                break
            task = c.ready.front()
            c.ready.pop_front()
            best.in_flight.push_back(task)
            t.phase = SENT
            t.lease = best
            self.send_task(best.peer, t, best.id, 0)
        self.demand(c)

    cdef Lease* least_served(self, LeaseClass* c, uint32_t depth) noexcept nogil:
        """Of a class that is to spread: a lease with room on the node that has had fewest tasks, counted as sent.

        Leases come one after the other, and the first could do all of it before the second is there. So while a node that should have room has not lent yet,
        each lease takes one task alone; and where tasks are short, until each node has answered its first. For a moment only: the raylet that counted the
        nodes may be wrong by now.
        """
        cdef Lease* best = NULL
        cdef Lease* lease
        cdef size_t i
        cdef bint apart = c.present < c.spread_over or depth > 1 and c.answering < c.present
        if not apart:
            c.apart_since_ns = 0
        elif c.apart_since_ns == 0:
            c.apart_since_ns = self.now
        elif self.now - c.apart_since_ns >= APART_NS:
            apart = False
        for i in range(c.leases.size()):
            lease = c.leases[i]
            if lease.reclaimed or lease.stalled or lease.in_flight.size() >= depth or lease.peer.phase == CLOSED or lease.peer.gone or apart and lease.used:
                continue
            if best == NULL or c.shares[lease.share].sent < c.shares[best.share].sent:
                best = lease
            elif lease.share == best.share and lease.in_flight.size() < best.in_flight.size():
                best = lease
        if best != NULL:
            best.used = True
            c.shares[best.share].sent += 1
        return best

    cdef void join_share(self, LeaseClass* c, Lease* lease, uint32_t over) noexcept nogil:
        """A lease of a class that is to spread over so many nodes. A node that comes begins where the others are, or it would have to catch up."""
        cdef Share share
        cdef size_t i
        cdef uint64_t least = 0
        cdef bint found = False
        c.spread_over = over
        lease.share = <uint32_t> c.shares.size()
        for i in range(c.shares.size()):
            if c.shares[i].node == lease.node:
                lease.share = <uint32_t> i
            elif c.shares[i].leases and (not found or c.shares[i].sent < least):
                found = True
                least = c.shares[i].sent
        if lease.share == c.shares.size():
            share.node = lease.node
            c.shares.push_back(share)
        if c.shares[lease.share].leases == 0:
            c.present += 1
            c.apart_since_ns = 0
            if c.shares[lease.share].sent < least:
                c.shares[lease.share].sent = least
        c.shares[lease.share].leases += 1

    cdef void leave_share(self, LeaseClass* c, Lease* lease) noexcept nogil:
        erase_lease(c.leases, lease)
        if c.spread_over and lease.share < c.shares.size() and c.shares[lease.share].leases:
            c.shares[lease.share].leases -= 1
            if c.shares[lease.share].leases == 0:
                c.present -= 1
                c.answering -= c.shares[lease.share].answered
                c.shares[lease.share].answered = False
        if c.leases.empty():
            c.apart_since_ns = 0

    cdef void demand(self, LeaseClass* c) noexcept nogil:
        """`want` follows the queue; small changes downwards are not worth a frame."""
        cdef uint64_t want = c.ready.size()
        cdef size_t start
        if want > WANT_MOST:
            want = WANT_MOST
        if want == c.want or (want and want < c.want and want * 2 > c.want) or (want > c.want and c.want and want < c.want * 2 and c.want > 8):
            return
        if self.raylet == NULL:
            return
        c.want = <uint32_t> want
        start = begin_frame(self.raylet[0], LEASE_DEMAND)
        put32(self.raylet.out, c.id)
        put32(self.raylet.out, c.want)
        if not c.announced:
            c.announced = True
            self.raylet.out.append(c.spec)
        self.done(self.raylet, start)

    cdef void on_grant(self, Reader& r) noexcept nogil:
        cdef uint32_t number = r.u32()
        cdef uint64_t id = r.u64()
        cdef Owner who
        cdef string address
        cdef Lease* lease
        cdef LeaseClass* c
        who.worker = r.id()
        who.node = r.id()
        address = r.str16()
        if number >= self.classes.size() or not r.ok:
            return
        c = self.classes[number]
        if c.want:
            c.want -= 1
        if not address.empty():
            self.addresses[who.node] = address
        lease = make_lease()
        lease.id = id
        lease.node = who.node
        lease.lease_class = number
        lease.peer = self.peer_to(who)
        lease.idle_since_ns = self.now
        c.leases.push_back(lease)
        if r.left() >= 4:
            self.join_share(c, lease, r.u32())
        if lease.peer.phase == CLOSED:
            self.give_up_lease(lease)  # it may live: only the connection is known to have ended
            self.lose_lease(lease, NIL, True, CODE_WORKER_CRASHED, string(b"the worker died before its first task"))
            return
        self.pump(c)

    cdef void on_refused(self, Reader& r) noexcept nogil:
        cdef uint32_t number = r.u32()
        cdef uint16_t code = r.u16()
        cdef string why = r.rest()
        cdef LeaseClass* c
        cdef deque[shared_ptr[TaskState]] ready
        if number >= self.classes.size():
            return
        c = self.classes[number]
        c.want = 0
        ready.swap(c.ready)
        while not ready.empty():
            if ready.front().get().phase == QUEUED:
                self.fail_task(ready.front(), code, why)
            ready.pop_front()

    cdef void on_reclaim(self, Reader& r) noexcept nogil:
        cdef uint64_t id = r.u64()
        cdef Id16 node = r.id()
        cdef size_t i, k
        cdef LeaseClass* c
        for i in range(self.classes.size()):
            c = self.classes[i]
            for k in range(c.leases.size()):
                if c.leases[k].id == id and c.leases[k].node == node:
                    c.leases[k].reclaimed = True
                    self.lease_progress(c.leases[k])
                    return
        self.tell_return(id, node, False)  # given up before: its return, or its grant, was lost

    cdef void lease_progress(self, Lease* lease) noexcept nogil:
        cdef LeaseClass* c = self.classes[lease.lease_class]
        if lease.in_flight.empty():
            lease.idle_since_ns = self.now
            if lease.reclaimed:
                self.return_lease(lease, False)
        self.pump(c)

    cdef void return_lease(self, Lease* lease, bint discard) noexcept nogil:
        self.tell_return(lease.id, lease.node, discard)
        self.leave_share(self.classes[lease.lease_class], lease)
        free_lease(lease)

    cdef void give_up_lease(self, Lease* lease) noexcept nogil:
        """Its worker cannot be reached from here: the raylet must not lend it on as it is."""
        self.tell_return(lease.id, lease.node, True)

    cdef void tell_return(self, uint64_t id, const Id16& node, bint discard) noexcept nogil:
        cdef size_t start
        if self.raylet == NULL:
            return
        start = begin_frame(self.raylet[0], LEASE_RETURN)
        put64(self.raylet.out, id)
        put_id(self.raylet.out, node)
        put8(self.raylet.out, 1 if discard else 0)
        self.done(self.raylet, start)

    cdef void lose_lease(self, Lease* lease, const Id16& started, bint known, uint16_t code, const string& cause) noexcept nogil:
        """Its worker died: the task that had started pays a retry, those behind it nothing. Where nobody knows which had, it was the first."""
        cdef LeaseClass* c = self.classes[lease.lease_class]
        cdef deque[shared_ptr[TaskState]] lost
        cdef TaskState* t
        cdef bint first = True
        cdef bint hit
        lost.swap(lease.in_flight)
        self.leave_share(c, lease)
        free_lease(lease)
        while not lost.empty():
            t = lost.back().get()
            first = lost.size() == 1
            hit = t.id == started if known else first
            t.lease = NULL
            if not hit and not t.cancelled:
                (<Protocol> self).retry(lost.back())
            elif t.cancelled:
                self.fail_task(lost.back(), CODE_CANCELLED if code != CODE_NODE_DIED else code, cause)
            elif code == CODE_OUT_OF_MEMORY and t.retries_left != 0:
                if self.oom_retries < 0 or t.starved < self.oom_retries:
                    self.put_off(lost.back(), cause)
                else:
                    self.fail_task(lost.back(), code, cause)
            elif t.retries_left != 0:
                if t.retries_left > 0:
                    t.retries_left -= 1
                t.attempt += 1
                (<Protocol> self).retry(lost.back())
            else:
                self.fail_task(lost.back(), code, cause)
            lost.pop_back()
        self.pump(c)

    cdef void put_off(self, shared_ptr[TaskState] task, const string& cause) noexcept nogil:
        """Its node was short of memory: it is tried again, each time after twice as long, at no charge. Others may have ended by then."""
        cdef TaskState* t = task.get()
        cdef Later later
        cdef uint64_t pause = <uint64_t> OOM_PAUSE_NS << (t.starved if t.starved < OOM_PAUSES_MOST else OOM_PAUSES_MOST)
        later.due_ns = self.now + pause
        later.task = task
        if t.starved < 0xFFFF:
            t.starved += 1
        t.attempt += 1
        t.phase = QUEUED
        self.later.push_back(later)
        self.emit(EVENT_PUT_OFF, pause // 1_000_000_000, t.id, t.name.get()[0] if t.name.get() != NULL else EMPTY, cause)

    cdef void resume_later(self) noexcept nogil:
        cdef size_t i
        cdef vector[Later] before
        before.swap(self.later)
        for i in range(before.size()):
            if before[i].task.get().phase != QUEUED:
                continue  # cancelled, or failed with its node
            if before[i].due_ns > self.now:
                self.later.push_back(before[i])
            else:
                (<Protocol> self).retry(before[i].task)

    cdef void return_idle(self) noexcept nogil:
        cdef size_t i, k
        cdef LeaseClass* c
        cdef vector[Lease*] idle
        for i in range(self.classes.size()):
            c = self.classes[i]
            for k in range(c.leases.size()):
                if c.leases[k].in_flight.empty() and self.now - c.leases[k].idle_since_ns >= IDLE_LEASE_NS:
                    idle.push_back(c.leases[k])
        for i in range(idle.size()):
            self.return_lease(idle[i], False)
