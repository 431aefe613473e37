cdef class Actors(Leases):
    """Calls of actors: in order, with sequence numbers for each incarnation, settled when one ends."""

    cdef void drain_actor(self, ActorState* a) noexcept nogil:
        cdef shared_ptr[TaskState] task
        cdef deque[shared_ptr[TaskState]] kept
        cdef Peer* peer
        if a.phase != ACTOR_ALIVE or a.broken or a.queue.empty():
            return
        peer = self.peer_to(actor_owner(a))
        if peer.phase == CLOSED:
            a.broken = True
            return
        while not a.queue.empty():
            task = a.queue.front()
            if task.get().phase == DONE:
                a.queue.pop_front()
                continue
            if task.get().phase == WAITING:
                if a.ordered:
                    break
                a.queue.pop_front()
                kept.push_back(task)
                continue
            if self.reverted and not task.get().deps.empty():
                if not a.ordered:
                    a.queue.pop_front()  # it comes back by the end of its queue
                if self.waits_again(task):
                    continue
                if not a.ordered:
                    a.queue.push_front(task)
            a.queue.pop_front()
            a.sequence += 1
            task.get().phase = SENT
            task.get().incarnation = a.incarnation
            a.in_flight.push_back(task)
            self.send_task(peer, task.get(), 0, a.sequence)
        if not kept.empty():
            a.queue.swap(kept)

    cdef void on_actor(self, ActorState* a, uint8_t phase, const Id16& worker, const Id16& node, uint64_t incarnation, uint16_t code,
                       const string& cause, const string& error) noexcept nogil:
        """What the control store says of an actor. A new life, or the end: what was in flight in the old one is settled."""
        cdef deque[shared_ptr[TaskState]] old
        cdef vector[ObjectId] holds
        cdef size_t i
        if a.phase == ACTOR_DEAD or incarnation < a.incarnation:
            return
        if phase == ACTOR_ALIVE and a.phase == ACTOR_ALIVE and incarnation == a.incarnation and worker == a.worker:
            return
        a.phase = <ActorPhase> phase
        a.code = code
        a.cause = cause
        if phase == ACTOR_DEAD:
            if not error.empty():
                a.error = make_bytes(error.c_str(), error.size())
            old.swap(a.in_flight)
            while not old.empty():
                self.fail_actor_task(a, old.front(), code, cause)
                old.pop_front()
            old.swap(a.queue)
            while not old.empty():
                self.fail_actor_task(a, old.front(), code, cause)
                old.pop_front()
            holds.swap(a.creation_holds)
            for i in range(holds.size()):
                self.drop_hold(holds[i])
            return
        if incarnation > a.incarnation or phase == ACTOR_RESTARTING:
            self.settle_in_flight(a, cause)
            a.sequence = 0
        a.incarnation = incarnation
        if phase == ACTOR_ALIVE:
            a.worker = worker
            a.node = node
            a.broken = self.dead_workers.count(worker) > 0
            self.drain_actor(a)

    cdef void settle_in_flight(self, ActorState* a, const string& cause) noexcept nogil:
        """Whether these calls ran is unknown: at most once, unless the caller allowed retries."""
        cdef deque[shared_ptr[TaskState]] old
        cdef shared_ptr[TaskState] task
        old.swap(a.in_flight)
        while not old.empty():
            task = old.back()
            old.pop_back()
            if task.get().retries_left != 0 and not task.get().cancelled:
                if task.get().retries_left > 0:
                    task.get().retries_left -= 1
                task.get().attempt += 1
                task.get().phase = QUEUED
                self.retried += 1
                a.queue.push_front(task)
            else:
                self.fail_actor_task(a, task, CODE_ACTOR_UNAVAILABLE, cause)

    cdef void unsend(self, ActorState* a) noexcept nogil:
        """These calls were written on a connection that never came to be: they go again, with the numbers that they had."""
        cdef shared_ptr[TaskState] task
        a.sequence -= a.in_flight.size()
        while not a.in_flight.empty():
            task = a.in_flight.back()
            a.in_flight.pop_back()
            if task.get().phase == DONE:
                continue
            self.untell(task.get(), actor_owner(a))
            task.get().phase = QUEUED
            if task.get().cancelled:
                self.fail_task(task, CODE_CANCELLED, EMPTY)
            else:
                a.queue.push_front(task)
        self.drain_actor(a)

    cdef void fail_actor_task(self, ActorState* a, shared_ptr[TaskState] task, uint16_t code, const string& cause) noexcept nogil:
        cdef Arrived error
        cdef Entry* e
        cdef TaskState* t = task.get()
        if a.error.get() == NULL:
            # The bit says that it was an actor's call: the same cause makes another error than for a task.
            self.fail_task(task, (code if code else CODE_ACTOR_DIED) | OF_ACTOR, cause)
            return
        if t.phase == DONE:
            return
        error.state = INLINE
        error.value = a.error
        if t.flags & STREAMING:
            self.end_stream(t, STATUS_RAISED, 0, &error)
        else:
            for k in range(1, t.num_returns + 1):
                e = find_entry(self.entries, object_id(t.id, k))
                if e != NULL and e.state == PENDING:
                    error.state = INLINE
                    self.apply(e, error)
        self.finish(task)
