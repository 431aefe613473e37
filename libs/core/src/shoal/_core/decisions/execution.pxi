cdef class Execution(Losses):
    """Tasks that others sent: their arguments, the order in which they start, the answers that need no Python."""

    cdef void on_task(self, Peer* peer, Reader& r, bint creation) noexcept nogil:
        cdef shared_ptr[RunTask] run = new_run()
        cdef RunTask* t = run.get()
        cdef uint16_t n, i
        cdef RunDependency dep
        cdef Owner owner
        cdef Arrived a
        cdef Entry* e
        cdef vector[ObjectId] far
        t.id = r.id()
        t.kind = r.u8()
        t.flags = r.u8()
        t.num_returns = r.u16()
        t.attempt = r.u32()
        t.lease_id = r.u64()
        t.job = r.u32()
        t.function = r.id()
        t.actor = r.id()
        t.sequence = r.u64()
        t.depth = r.u32()
        t.backpressure = r.u32()
        t.name = r.str16()
        t.method = r.str16()
        t.group = r.str16()
        t.args = r.str32()
        t.from_ = peer
        t.caller = peer.who
        t.received_ns = self.now
        n = r.u16()
        t.missing = 1
        if self.runs.count(t.id) and deref(self.runs.find(t.id)).second.get().attempt >= t.attempt:
            return  # sent again after a reconnect
        for i in range(n):
            if not r.ok:
                return
            dep.position = r.u16()
            dep.id = r.oid()
            owner = r.owner()
            dep.entry = True
            dep.value.reset()
            if r.u8() == 0:
                self.read_object(r, a)
                if a.state == INLINE and a.contains.empty():
                    dep.entry = False
                    dep.value = a.value
                else:
                    e = self.borrow(dep.id, owner)
                    e.holds += 1
                    if e.state == PENDING:
                        self.apply(e, a)
                    else:
                        self.discard(a)
            else:
                e = self.borrow(dep.id, owner)
                e.holds += 1
                self.take_over(e, peer.who)
            if dep.entry:
                e = find_entry(self.entries, dep.id)
                if not self.is_local(e):
                    t.missing += 1
                    e.run_dependants.push_back(run)
                    far.push_back(dep.id)
            t.deps.push_back(dep)
        t.extra = r.str32()
        if not r.ok:
            return
        self.runs[t.id] = run
        if t.kind == 1 and t.flags & RESTARTABLE:
            self.restartable = True
        for i in range(<uint16_t> far.size()):
            e = find_entry(self.entries, far[i])
            if e != NULL and e.state == PENDING:
                self.ask(e)
            elif e != NULL:
                self.pull(e)
        if t.phase == RUN_ENDED:
            return  # an argument is lost, and it went back
        if self.ordered_runs and t.kind == 2:
            self.enqueue_run(run)
        self.run_ready(run)

    cdef void run_ready(self, shared_ptr[RunTask] run) noexcept nogil:
        """One of what it misses has come: a dependency, or the end of its frame."""
        cdef RunTask* t = run.get()
        if t.missing:
            t.missing -= 1
        if t.missing or t.phase != RUN_WAITING:
            return
        t.phase = RUN_QUEUED
        if not (self.ordered_runs and t.kind == 2):
            self.enqueue_run(run)
        waiters = self.task_waiters.find(t.group)
        if waiters != self.task_waiters.end() and not deref(waiters).second.empty():
            waiter = deref(waiters).second.back()
            deref(waiters).second.pop_back()
            self.fire(waiter)

    cdef void enqueue_run(self, shared_ptr[RunTask] run) noexcept nogil:
        it = self.queues.find(run.get().group)
        if it == self.queues.end():
            self.queues[run.get().group] = make_queue()
            it = self.queues.find(run.get().group)
        deref(it).second.push_back(run)

    cdef bint lease_is_over(self, uint64_t now) noexcept nogil:
        """The control store may have taken this node for dead, and begun the next life of the actor that is here. Tasks and actors that are started once
        only go on: nobody takes their place."""
        cdef uint64_t until
        if not self.restartable or self.node_lease == NULL:
            return False
        until = load_word(self.node_lease)
        return until != 0 and now >= until

    cdef bint has_run(self, const string& group) noexcept nogil:
        cdef RunQueue* q
        it = self.queues.find(group)
        if it == self.queues.end():
            return False
        q = deref(it).second
        while not q.empty() and q.front().get().phase == RUN_ENDED:
            q.pop_front()
        return not q.empty() and q.front().get().phase == RUN_QUEUED

    cdef shared_ptr[RunTask] pop_run(self, const string& group) noexcept nogil:
        cdef shared_ptr[RunTask] run
        cdef RunQueue* q
        if self.has_run(group):
            q = deref(self.queues.find(group)).second
            run = q.front()
            q.pop_front()
        return run

    cdef void end_run(self, shared_ptr[RunTask] run) noexcept nogil:
        cdef RunTask* t = run.get()
        cdef size_t i
        cdef vector[RunDependency] deps
        cdef Entry* e
        if t.phase == RUN_ENDED:
            return
        t.phase = RUN_ENDED
        it = self.runs.find(t.id)
        if it != self.runs.end() and deref(it).second.get() == t:
            self.runs.erase(t.id)
        deps.swap(t.deps)
        for i in range(deps.size()):
            if deps[i].entry:
                self.drop_hold(deps[i].id)
        for i in range(t.introduced.size()):
            e = find_entry(self.entries, t.introduced[i])
            if e != NULL and e.registrations:
                self.take_over(e, t.caller)  # it stays here

    cdef void put_borrowed(self, string& out, RunTask* t) noexcept nogil:
        """The references that came with this task's arguments and that somebody here still holds."""
        cdef size_t i, at = out.size()
        cdef uint32_t n = 0
        cdef Entry* e
        put32(out, 0)
        for i in range(t.introduced.size()):
            e = find_entry(self.entries, t.introduced[i])
            if e == NULL or e.owned or e.registrations or (e.local == 0 and e.holds == 0):
                continue
            e.registrations += 1
            put_object_id(out, e.id)
            put_owner(out, e.owner)
            n += 1
        patch32(out, at, n)

    cdef void met(self, RunTask* t, Entry* e) noexcept nogil:
        """A reference of somebody else's that a task found in its arguments. Its caller's own are left until they are needed, or kept beyond the task's end:
        with its caller the task ends, too."""
        t.introduced.push_back(e.id)
        if not (e.owner.worker == t.caller.worker):
            self.take_over(e, t.caller)

    cdef void reply_plain(self, shared_ptr[RunTask] run, uint8_t status, uint16_t code, const string& message) noexcept nogil:
        """An answer that needs no Python: cancelled before its start, or refused."""
        cdef RunTask* t = run.get()
        cdef Peer* peer = t.from_
        cdef size_t start
        if peer != NULL and peer.phase != CLOSED:
            start = begin_frame(peer[0], REPLY)
            put_id(peer.out, t.id)
            put32(peer.out, t.attempt)
            put8(peer.out, status)
            put32(peer.out, 0)
            put32(peer.out, 1)
            put8(peer.out, 2)
            put16(peer.out, code)
            put_str16(peer.out, t.name)
            put_str32(peer.out, message)
            put32(peer.out, 0)
            self.put_borrowed(peer.out, t)
            put32(peer.out, 0)
            self.done(peer, start)
        self.end_run(run)

    cdef void on_cancel(self, Peer* peer, Reader& r) noexcept nogil:
        cdef Id16 id = r.id()
        cdef uint8_t flags = r.u8()
        cdef shared_ptr[RunTask] run
        it = self.runs.find(id)
        if it == self.runs.end():
            return
        run = deref(it).second
        run.get().cancelled = True
        if run.get().phase != RUN_STARTED:
            self.reply_plain(run, STATUS_CANCELLED, CODE_CANCELLED, EMPTY)
            return
        self.fire_all(run.get().item_waiters)
        if flags & 2:
            self.cancel_children(id, flags & 1)
        self.emit(EVENT_CANCEL, flags & 1, id, EMPTY, EMPTY)

    cdef void cancel_children(self, const Id16& parent, bint force) noexcept nogil:
        cdef vector[Id16] children
        cdef size_t i
        child = self.tasks.begin()
        while child != self.tasks.end():
            if deref(child).second.get().parent == parent:
                children.push_back(deref(child).first)
            inc(child)
        for i in range(children.size()):
            self.cancel(children[i], force, True)

    cdef void hand_back(self) noexcept nogil:
        """Tasks that waited 10 ms behind a running one go back, so that whatever that one does cannot hold them up."""
        cdef RunQueue* q
        cdef Peer* peer
        cdef size_t start, at, first, i
        cdef uint32_t n
        cdef shared_ptr[RunTask] run
        it = self.queues.find(EMPTY)
        if not self.started or it == self.queues.end() or self.now - self.started_at < HAND_BACK_NS:
            return
        q = deref(it).second
        while not q.empty() and q.back().get().kind == 0 and self.now - q.back().get().received_ns >= HAND_BACK_NS:
            if q.back().get().phase == RUN_ENDED:
                q.pop_back()  # those in front of it wait as long
                continue
            peer = q.back().get().from_
            if peer == NULL:
                break
            start = begin_frame(peer[0], HANDBACK)
            at = peer.out.size()
            put32(peer.out, 0)
            n = 0
            # One frame for the run of tasks that one peer sent, in their order.
            first = q.size()
            while first > 0 and q[0][first - 1].get().from_ == peer and q[0][first - 1].get().kind == 0:
                first -= 1
            for i in range(first, q.size()):
                run = q[0][i]
                if run.get().phase == RUN_QUEUED:
                    put_id(peer.out, run.get().id)
                    n += 1
            while q.size() > first:
                run = q.back()
                q.pop_back()
                self.end_run(run)
            patch32(peer.out, at, n)
            self.done(peer, start)

    cdef void on_item_ack(self, Reader& r) noexcept nogil:
        cdef Id16 id = r.id()
        cdef uint32_t consumed = r.u32()
        it = self.runs.find(id)
        if it != self.runs.end():
            deref(it).second.get().consumed = consumed
            self.fire_all(deref(it).second.get().item_waiters)

    cdef void on_lease_begin(self, Reader& r) noexcept nogil:
        cdef uint64_t number = r.u64()
        cdef string context = r.rest()
        self.lease_contexts[number] = context
        self.fire_all(self.lease_waiters)
        self.emit(EVENT_LEASE_BEGIN, number, NIL, EMPTY, context)
