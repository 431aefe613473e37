cdef class Submission(Actors):
    """Tasks on their way: dependencies, queues, answers, another try, cancellation."""

    cdef void submit(self, shared_ptr[TaskState] task) noexcept nogil:
        """Takes a task whose return entries exist, or one that is to run again. Holds its references until its end, and queues it once its dependencies are ready."""
        cdef TaskState* t = task.get()
        cdef Entry* e
        cdef size_t i
        self.submitted += 1
        self.tasks[t.id] = task
        self.allowance.tasks = self.tasks.size()
        self.spec_bytes += t.spec.size()
        if t.kind == 2 and find_entry(self.entries, object_id(t.actor, 0xFFFFFFFFU)) != NULL:
            find_entry(self.entries, object_id(t.actor, 0xFFFFFFFFU)).holds += 1
            t.holds_actor = True  # a call keeps its actor alive, when the last handle goes meanwhile
        for i in range(t.holds.size()):
            e = find_entry(self.entries, t.holds[i])
            if e != NULL:
                e.holds += 1
        t.missing = 1
        for i in range(t.deps.size()):
            e = find_entry(self.entries, t.deps[i].id)
            if e != NULL and e.state == PENDING:
                t.missing += 1
                e.dependants.push_back(task)
                self.ask(e)
        if t.kind == 2:
            a = self.actor(t.actor)
            a.pending += 1
            if a.ordered and a.phase != ACTOR_DEAD:
                a.queue.push_back(task)
        self.dependency_ready(task)

    cdef void dependency_ready(self, shared_ptr[TaskState] task) noexcept nogil:
        cdef TaskState* t = task.get()
        t.missing -= 1
        if t.missing == 0 and t.phase == WAITING:
            if self.failed_dependency(t):
                return
            t.phase = QUEUED
            self.enqueue(task)

    cdef void enqueue(self, shared_ptr[TaskState] task) noexcept nogil:
        cdef TaskState* t = task.get()
        cdef ActorState* a
        if t.kind == 0:
            self.classes[t.lease_class].ready.push_back(task)
            self.pump(self.classes[t.lease_class])
            return
        a = self.actor(t.actor)
        if a.phase == ACTOR_DEAD:
            self.fail_actor_task(a, task, a.code, a.cause)
            return
        if not a.ordered:
            a.queue.push_back(task)
        self.drain_actor(a)

    cdef void on_reply(self, Peer* peer, Reader& r) noexcept nogil:
        cdef Id16 id = r.id()
        cdef uint32_t attempt = r.u32()
        cdef uint8_t status = r.u8()
        cdef uint32_t duration = r.u32()
        cdef uint32_t n = r.u32()
        cdef uint32_t i, items
        cdef bint current
        cdef shared_ptr[TaskState] task
        cdef TaskState* t = NULL
        cdef Lease* lease = NULL
        cdef LeaseClass* c
        cdef Arrived a
        cdef Arrived error
        cdef ObjectId oid
        cdef Owner owner
        cdef Entry* e
        cdef ActorState* actor = NULL
        cdef bint again = False
        cdef bint stored = False
        it = self.tasks.find(id)
        current = it != self.tasks.end() and deref(it).second.get().attempt == attempt and deref(it).second.get().phase == SENT
        if current:
            task = deref(it).second
            t = task.get()
            lease = t.lease
            if t.kind == 2:
                actor = self.actor(t.actor)
                erase_task(actor.in_flight, task)
            elif lease != NULL:
                erase_task(lease.in_flight, task)
                lease.stalled = False
                t.lease = NULL
            again = (status == STATUS_RAISED_RETRY and t.retries_left != 0 or status == STATUS_LEAVING or status == STATUS_REJECTED) and not t.cancelled
        for i in range(n):
            self.read_object(r, a)
            if not r.ok:
                break
            if not current or again:
                if current and status == STATUS_OK and a.state == IN_ARENA or not current and a.state == IN_ARENA:
                    self.free_place(a.place)
                self.discard(a)
            elif t.flags & STREAMING:
                error = a
            elif status == STATUS_OK:
                stored = stored or a.state == IN_ARENA
                e = find_entry(self.entries, object_id(id, i + 1))
                if e == NULL or e.state != PENDING:
                    if a.state == IN_ARENA:
                        self.free_place(a.place)
                    self.discard(a)
                else:
                    e.creator = t.name
                    if not a.contains.empty():
                        self.came_inside(a.contains, peer.who)
                    self.apply(e, a)
            else:
                for k in range(1, t.num_returns + 1):
                    e = find_entry(self.entries, object_id(id, k))
                    if e != NULL and e.state == PENDING:
                        self.apply(e, a)
        n = r.u32()
        if <uint64_t> n * 52 > r.left():
            r.ok = False
            n = 0
        for i in range(n):
            oid = r.oid()
            owner = r.owner()
            self.register(oid, owner, peer.who, 1)
        items = r.u32()
        if not current:
            return
        if again:
            if status == STATUS_RAISED_RETRY:
                if t.retries_left > 0:
                    t.retries_left -= 1
                t.attempt += 1
            self.retry(task)
        else:
            if t.flags & STREAMING:
                self.end_stream(t, status, items, &error)
                stored = t.items
            if status == STATUS_OK and (stored or t.kept):
                (<Protocol> self).keep(task)
            self.finish(task)
            if t.lost_more:
                (<Protocol> self).want_items(t)
        if lease != NULL:
            c = self.classes[lease.lease_class]
            if status == STATUS_LEAVING or status == STATUS_REJECTED:
                lease.reclaimed = True
            elif duration:
                if c.mean_us < 0:
                    c.mean_us = duration
                    c.deviation_us = 0
                else:
                    c.deviation_us += (fabs(duration - c.mean_us) - c.deviation_us) / 8
                    c.mean_us += (duration - c.mean_us) / 8
            if lease.used and not c.shares[lease.share].answered:
                c.shares[lease.share].answered = True
                c.answering += 1
                c.apart_since_ns = 0
            self.lease_progress(lease)

    cdef void retry(self, shared_ptr[TaskState] task) noexcept nogil:
        cdef TaskState* t = task.get()
        self.retried += 1
        t.phase = QUEUED
        t.lease = NULL
        if t.kind == 2:
            # The actor's own queue keeps the order: what was in flight goes before what was not.
            self.actor(t.actor).queue.push_front(task)
            self.drain_actor(self.actor(t.actor))
        else:
            self.classes[t.lease_class].ready.push_front(task)
            self.pump(self.classes[t.lease_class])

    cdef void on_handback(self, Peer* peer, Reader& r) noexcept nogil:
        cdef uint32_t n = r.u32()
        cdef uint32_t i
        cdef TaskState* t
        cdef Lease* lease = NULL
        cdef LeaseClass* c = NULL
        cdef vector[shared_ptr[TaskState]] back, over
        for i in range(n):
            it = self.tasks.find(r.id())
            if it == self.tasks.end():
                continue
            t = deref(it).second.get()
            if t.phase != SENT or t.lease == NULL or t.lease.peer != peer:
                continue
            lease = t.lease
            erase_task(lease.in_flight, deref(it).second)
            t.lease = NULL
            t.phase = QUEUED
            if t.cancelled:
                over.push_back(deref(it).second)  # CANCEL and HANDBACK crossed: who handed it back knows nothing of it any more
            else:
                back.push_back(deref(it).second)
        if lease == NULL:
            return
        for i in range(<uint32_t> over.size()):
            self.fail_task(over[i], CODE_CANCELLED, EMPTY)
        lease.stalled = not lease.in_flight.empty()
        c = self.classes[lease.lease_class]
        if c.mean_us < HAND_BACK_NS // 1000:
            c.mean_us = HAND_BACK_NS // 1000
        while not back.empty():
            c.ready.push_front(back.back())
            back.pop_back()
        self.pump(c)

    cdef void cancel(self, const Id16& task_id, bint force, bint recursive) noexcept nogil:
        cdef shared_ptr[TaskState] task
        cdef TaskState* t
        cdef Peer* peer
        cdef size_t start
        it = self.tasks.find(task_id)
        if it == self.tasks.end():
            return
        task = deref(it).second
        t = task.get()
        t.cancelled = True
        if t.phase != SENT:
            if t.kind == 2:
                erase_task(self.actor(t.actor).queue, task)
            self.fail_task(task, CODE_CANCELLED, EMPTY)
            if t.kind == 2:
                self.drain_actor(self.actor(t.actor))
            return
        if t.kind == 2:
            peer = self.peer_to(actor_owner(self.actor(t.actor)))
        else:
            peer = t.lease.peer
        start = begin_frame(peer[0], CANCEL)
        put_id(peer.out, task_id)
        put8(peer.out, (1 if force else 0) | (2 if recursive else 0))
        self.done(peer, start)

    cdef void drop_stream(self, const Id16& task_id) noexcept nogil:
        cdef Stream* s
        cdef vector[uint32_t] left
        cdef size_t i
        it = self.streams.find(task_id)
        if it == self.streams.end():
            return
        s = deref(it).second
        s.dropped = True
        self.stream_moved(s)
        held = s.held.begin()
        while held != s.held.end():
            left.push_back(deref(held))
            inc(held)
        s.held.clear()
        for i in range(left.size()):
            self.drop_hold(object_id(task_id, left[i]))
        if s.end != NO_END or not self.tasks.count(task_id):
            self.streams.erase(task_id)
            free_stream(s)
        else:
            self.cancel(task_id, False, True)
