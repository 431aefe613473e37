cdef class Tasks(Streams):
    """A task that this process submitted, from its sending to its end, whatever runs it."""

    cdef Id16 new_task_id(self) noexcept nogil:
        cdef Id16 id
        self.task_counter += 1
        id.low = self.task_prefix
        id.high = self.task_counter
        return id

    cdef ActorState* actor(self, const Id16& id) noexcept nogil:
        cdef ActorState* a
        it = self.actors.find(id)
        if it != self.actors.end():
            return deref(it).second
        a = make_actor()
        a.id = id
        self.actors[id] = a
        return a

    cdef void send_task(self, Peer* peer, TaskState* t, uint64_t lease_id, uint64_t sequence) noexcept nogil:
        cdef size_t start = begin_frame(peer[0], TASK)
        cdef size_t body = peer.out.size()
        cdef size_t i
        cdef Entry* e
        cdef Owner nobody
        peer.out.append(t.spec)
        patch32(peer.out, body + TASK_ATTEMPT, t.attempt)
        patch64(peer.out, body + TASK_LEASE, lease_id)
        patch64(peer.out, body + TASK_SEQUENCE, sequence)
        put16(peer.out, <uint16_t> t.deps.size())
        for i in range(t.deps.size()):
            put16(peer.out, t.deps[i].position)
            put_object_id(peer.out, t.deps[i].id)
            e = find_entry(self.entries, t.deps[i].id)
            if e == NULL:
                put_owner(peer.out, nobody)
                put8(peer.out, 0)
                put8(peer.out, 2)
                put16(peer.out, CODE_OBJECT_FREED)
                put_str16(peer.out, EMPTY)
                put_str32(peer.out, EMPTY)
                put32(peer.out, 0)
            else:
                put_owner(peer.out, e.owner)
                put8(peer.out, 0)
                self.put_object(peer.out, e, peer.who)
        put_str32(peer.out, t.extra)
        self.done(peer, start)

    cdef void untell(self, TaskState* t, const Owner& receiver) noexcept nogil:
        """Its TASK was written for somebody and never sent: the references inside what it takes are not held there."""
        cdef Entry* e
        cdef size_t i, k
        for i in range(t.deps.size()):
            e = find_entry(self.entries, t.deps[i].id)
            if e != NULL:
                for k in range(e.contains.size()):
                    self.register(e.contains[k].id, e.contains[k].owner, receiver, -1)

    cdef bint has_room(self) noexcept nogil:
        return self.is_within() and self.tasks.size() < load_word(&self.allowance.allowed_tasks)

    cdef bint is_within(self) noexcept nogil:
        """Whether the limits of this process, apart from its job's, leave room for one more."""
        return self.tasks.size() < self.most_tasks and self.spec_bytes < self.most_spec_bytes

    cdef void finish(self, shared_ptr[TaskState] task) noexcept nogil:
        """The end of a task, whatever it was: its references are let go."""
        cdef TaskState* t = task.get()
        cdef size_t i
        cdef vector[ObjectId] holds
        if t.phase == DONE:
            return
        t.phase = DONE
        self.completed += 1
        self.tasks.erase(t.id)
        self.allowance.tasks = self.tasks.size()
        self.spec_bytes -= t.spec.size()
        if not self.room_waiters.empty() and self.has_room():
            self.fire_all(self.room_waiters)
        if t.kind == 2:
            self.actor(t.actor).pending -= 1
        if t.holds_actor:
            t.holds_actor = False
            self.drop_hold(object_id(t.actor, 0xFFFFFFFFU))
        if t.kept:
            holds = t.holds  # it may run again, and then holds them for its flight once more
        else:
            holds.swap(t.holds)
        for i in range(holds.size()):
            self.drop_hold(holds[i])

    cdef void fail_task(self, shared_ptr[TaskState] task, uint16_t code, const string& message) noexcept nogil:
        cdef TaskState* t = task.get()
        cdef Entry* e
        cdef Arrived a
        cdef string name
        if t.phase == DONE:
            return
        if t.name.get() != NULL:
            name = t.name.get()[0]
        if t.flags & STREAMING:
            a.state = FAILED
            a.code = code
            a.message = message
            a.name = name
            self.end_stream(t, STATUS_RAISED, 0, &a)
        else:
            for k in range(1, t.num_returns + 1):
                e = find_entry(self.entries, object_id(t.id, k))
                if e != NULL and e.state == PENDING:
                    self.fail_object(e, code, message, name)
        self.finish(task)

    cdef bint failed_dependency(self, TaskState* t) noexcept nogil:
        """A task whose argument failed fails with that very error, without a worker."""
        cdef size_t i
        cdef Entry* e
        cdef Bytes value
        cdef uint32_t k
        cdef Arrived a
        cdef shared_ptr[TaskState] task
        for i in range(t.deps.size()):
            e = find_entry(self.entries, t.deps[i].id)
            if e == NULL:
                continue
            if e.state == FAILED and e.failure.get() != NULL:
                self.fail_task(self.tasks[t.id], e.failure.get().code, e.failure.get().message)
                return True
            if e.state == INLINE and e.value.get().size() and e.value.get().data()[0] == 3:
                a.state = INLINE
                a.value = e.value
                task = self.tasks[t.id]
                if t.flags & STREAMING:
                    self.end_stream(t, STATUS_RAISED, 0, &a)
                else:
                    for k in range(1, t.num_returns + 1):
                        e = find_entry(self.entries, object_id(t.id, k))
                        if e != NULL and e.state == PENDING:
                            a.state = INLINE
                            self.apply(e, a)
                self.finish(task)
                return True
        return False

    cdef bint waits_again(self, shared_ptr[TaskState] task) noexcept nogil:
        """True: a dependency that was ready is not any more, or has failed since. The task is queued anew when it can go."""
        cdef TaskState* t = task.get()
        cdef Entry* e
        cdef size_t i
        if self.failed_dependency(t):
            return True
        t.missing = 1
        for i in range(t.deps.size()):
            e = find_entry(self.entries, t.deps[i].id)
            if e != NULL and e.state == PENDING:
                t.phase = WAITING
                t.missing += 1
                e.dependants.push_back(task)
                self.ask(e)
        if t.phase != WAITING:
            return False
        (<Protocol> self).dependency_ready(task)
        return True
