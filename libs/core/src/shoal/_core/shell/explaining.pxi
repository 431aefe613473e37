cdef enum:
    ARGUMENTS_TOLD = 8  # of those that a task waits for


cdef enum:  # TaskStage of the raylet's contract
    TASK_WAITS_FOR_ARGUMENTS = 2
    TASK_QUEUED = 3
    TASK_PUT_OFF = 4
    TASK_SENT = 5


cdef uint64_t place_in(deque[shared_ptr[TaskState]]& queue, TaskState* t) noexcept nogil:
    """How many are before it."""
    cdef size_t i
    for i in range(queue.size()):
        if queue[i].get() == t:
            return i
    return queue.size()


cdef class Explaining(Control):
    """Why something waits that this process has submitted: read off the protocol's records when somebody asks."""

    def waits(self, bytes task_id):
        cdef Id16 id = to_id(task_id)
        cdef TaskState* t
        cdef Entry* e
        cdef ActorState* a
        cdef Bytes name
        cdef size_t i
        cdef int stage = 0
        cdef uint32_t attempt = 0, missing = 0, lease_class = 0
        cdef uint64_t ahead = 0, leases = 0, due_ns = 0, now = now_ns()
        cdef Id16 actor
        cdef Owner to
        cdef vector[ObjectId] objects
        cdef vector[Owner] owners
        self.mutex.lock()
        it = self.p.tasks.find(id)
        if it != self.p.tasks.end():
            t = deref(it).second.get()
            name, attempt, lease_class, actor = t.name, t.attempt, t.lease_class, t.actor
            if t.phase == WAITING:
                stage = TASK_WAITS_FOR_ARGUMENTS
                for i in range(t.deps.size()):
                    e = find_entry(self.p.entries, t.deps[i].id)
                    if e != NULL and e.state == PENDING:
                        missing += 1
                        if objects.size() < ARGUMENTS_TOLD:
                            objects.push_back(e.id)
                            owners.push_back(e.owner)
            elif t.phase == SENT:
                stage = TASK_SENT
            else:
                stage = TASK_QUEUED
            if t.kind == 2:
                a = self.p.actor(t.actor)
                to.worker, to.node = a.worker, a.node
                ahead = place_in(a.in_flight, t) if stage == TASK_SENT else a.in_flight.size() + place_in(a.queue, t)
            elif t.lease != NULL:
                to.node = t.lease.node
                to.worker = t.lease.peer.who.worker
                ahead = place_in(t.lease.in_flight, t)
            elif stage == TASK_QUEUED:
                leases = self.p.classes[lease_class].leases.size()
                ahead = place_in(self.p.classes[lease_class].ready, t)
                for i in range(self.p.later.size()):
                    if self.p.later[i].task.get() == t:
                        stage = TASK_PUT_OFF
                        due_ns = self.p.later[i].due_ns
        self.mutex.unlock()
        if not stage:
            return None
        arguments = [(object_id_bytes(objects[i]), id_bytes(owners[i].worker), id_bytes(owners[i].node)) for i in range(objects.size())]
        return {
            "stage": stage, "name": to_str(name.get()[0]) if name.get() != NULL else "", "attempt": attempt, "missing": missing, "arguments": arguments,
            "class_id": lease_class, "ahead": ahead, "leases": leases, "due_s": (due_ns - now) / 1e9 if due_ns > now else 0.0,
            "worker_id": id_bytes(to.worker), "node_id": id_bytes(to.node), "actor_id": id_bytes(actor),
        }  # fmt: skip

    def unready_actors(self):
        cdef vector[Id16] ids
        cdef vector[int64_t] calls
        cdef size_t i
        self.mutex.lock()
        it = self.p.actors.begin()
        while it != self.p.actors.end():
            if deref(it).second.pending > 0 and (deref(it).second.phase == ACTOR_PENDING or deref(it).second.phase == ACTOR_RESTARTING):
                ids.push_back(deref(it).second.id)
                calls.push_back(deref(it).second.pending)
            inc(it)
        self.mutex.unlock()
        return {id_bytes(ids[i]): calls[i] for i in range(ids.size())}
