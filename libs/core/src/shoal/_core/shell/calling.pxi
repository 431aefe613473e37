cdef class Calling(Submitting):
    """Actors: their creation, their handles, calls of them, and what the control store says of them."""

    def attach_actor(self, bytes actor_id, bint ordered, int64_t max_pending=-1):
        cdef ActorState* a
        cdef Id16 id = to_id(actor_id)
        cdef string channel
        self.mutex.lock()
        self.p.now = now_ns()
        a = self.p.actor(id)
        if not a.subscribed:
            a.subscribed = True
            a.ordered = ordered
            channel = string(b"actor:")
            append_hex(channel, id)
            self.p.emit(EVENT_SUBSCRIBE, 0, id, channel, EMPTY)
            self.wake_all()
        if max_pending > 0:
            a.max_pending = max_pending
        self.mutex.unlock()

    def submit_actor(self, bytes actor_id, str method, str name, Payload args, deps, uint32_t num_returns=1, int32_t max_retries=0, uint8_t flags=0,
                     str group="", uint32_t backpressure=0, bytes extra=b""):
        cdef shared_ptr[TaskState] task = new_task()
        cdef TaskState* t = task.get()
        cdef ActorState* a
        cdef ObjectId args_id
        cdef list out
        cdef Peer* peer = NULL
        cdef size_t ahead
        if self.closed or self.forked:
            self.check()
        if not self.p.has_room():
            self.wait_for_room(name)
        t.kind = 2
        t.flags = flags
        t.num_returns = <uint16_t> num_returns
        t.retries_left = max_retries
        t.actor = to_id(actor_id)
        self.mutex.lock()
        a = self.p.actor(t.actor)
        t.id = self.p.new_task_id()
        if a.max_pending > 0 and a.pending >= a.max_pending:
            self.mutex.unlock()
            from shoal.exceptions import PendingCallsLimitExceeded

            raise PendingCallsLimitExceeded(f"{a.pending} calls of {name} are pending; max_pending_calls is {a.max_pending}")
        self.mutex.unlock()
        if current_run().get() != NULL:
            t.parent = current_run().get().id
        self.begin_spec(t, self.p.job, NIL, 0, backpressure, name, method, group, args, deps)
        if extra:
            t.extra = from_bytes(extra)
        out = self.make_returns(t, backpressure)
        self.mutex.lock()
        self.p.now = now_ns()
        args_id = self.args_object(t)
        self.p.submit(task)
        if not args_id.task.nil():
            self.p.drop_hold(args_id)
        ahead = a.in_flight.size()
        if t.phase == SENT:
            it = self.p.peers.find(a.worker)
            if it != self.p.peers.end():
                peer = deref(it).second
        self.soon(peer, ahead)
        self.mutex.unlock()
        return out

    def creation_task(self, bytes actor_id, bytes function_id, str name, Payload args, deps, bytes extra=b"", bint restartable=False):
        cdef shared_ptr[TaskState] task = new_task()
        cdef TaskState* t = task.get()
        cdef ActorState* a
        cdef ObjectId args_id
        cdef Entry* e
        cdef size_t i
        cdef string out
        self.check()
        t.kind = 1
        t.flags = RESTARTABLE if restartable else 0
        t.actor = to_id(actor_id)
        self.mutex.lock()
        t.id = self.p.new_task_id()
        self.mutex.unlock()
        self.begin_spec(t, self.p.job, to_id(function_id), 0, 0, name, "", "", args, deps)
        self.mutex.lock()
        a = self.p.actor(t.actor)
        args_id = self.args_object(t)
        for i in range(t.holds.size()):
            e = find_entry(self.p.entries, t.holds[i])
            if e != NULL:
                e.holds += 1
                a.creation_holds.push_back(t.holds[i])
        if not args_id.task.nil():
            self.p.drop_hold(args_id)
        out = t.spec
        put16(out, <uint16_t> t.deps.size())
        for i in range(t.deps.size()):
            put16(out, t.deps[i].position)
            put_object_id(out, t.deps[i].id)
            e = find_entry(self.p.entries, t.deps[i].id)
            put_owner(out, e.owner if e != NULL else self.p.me)
            put8(out, 1)
        put32(out, <uint32_t> PyBytes_GET_SIZE(extra))
        out.append(PyBytes_AS_STRING(extra), PyBytes_GET_SIZE(extra))
        self.mutex.unlock()
        return to_bytes(out)

    def new_actor_id(self):
        cdef Id16 id
        self.mutex.lock()
        id = self.p.new_task_id()
        self.mutex.unlock()
        return id_bytes(id)

    def actor_handle_ref(self, bytes actor_id):
        cdef ObjectId id = object_id(to_id(actor_id), 0xFFFFFFFFU)
        cdef Entry* e
        self.mutex.lock()
        e = self.p.own(id)
        e.local += 1
        e.is_actor_handle = True
        e.state = INLINE
        e.value = none_value()
        self.mutex.unlock()
        return self.new_ref(id, self.p.me, e)

    def actor_update(self, bytes actor_id, int state, bytes worker_id, bytes node_id, str address, uint64_t incarnation, int code, str cause,
                     bytes error=b""):
        cdef Id16 worker = to_id(worker_id) if worker_id else NIL
        cdef Id16 node = to_id(node_id) if node_id else NIL
        cdef Id16 id = to_id(actor_id)
        cdef string why = from_str(cause)
        cdef string failure = from_bytes(error)
        cdef string where = from_str(address)
        self.mutex.lock()
        self.p.now = now_ns()
        if not where.empty() and not node.nil() and not (node == self.p.me.node):
            self.p.addresses[node] = where
        self.p.on_actor(self.p.actor(id), <uint8_t> state, worker, node, incarnation, <uint16_t> code, why, failure)
        self.after()
        self.mutex.unlock()
