cdef class Submitting(Callbacks):
    """Tasks, from Python's values to the protocol's records."""

    def lease_class(self, bytes spec):
        self.mutex.lock()
        number = self.p.class_of(string(PyBytes_AS_STRING(spec), PyBytes_GET_SIZE(spec)))
        self.mutex.unlock()
        return number

    cdef int begin_spec(self, TaskState* t, uint32_t job, const Id16& function, uint32_t depth, uint32_t backpressure, str name, str method, str group,
                        Payload args, deps) except -1:
        """Writes the Task up to its dependencies, and notes what it keeps alive."""
        cdef ContainedRef c
        cdef Dependency d
        cdef ObjectRef ref
        cdef Py_ssize_t n
        cdef const char* text
        self.name_task(t, name)
        t.spec.reserve(SPEC_FIXED_BYTES + t.name.get().size() + 3 * (len(method) + len(group)) + (args.nbytes if args is not None and args.nbytes <= self.inline_limit else 0))
        put_id(t.spec, t.id)
        put8(t.spec, t.kind)
        put8(t.spec, t.flags)
        put16(t.spec, t.num_returns)
        put32(t.spec, 0)
        put64(t.spec, 0)
        put32(t.spec, job)
        put_id(t.spec, function)
        put_id(t.spec, t.actor)
        put64(t.spec, 0)
        put32(t.spec, depth)
        put32(t.spec, backpressure)
        put_str16(t.spec, t.name.get()[0])
        text = PyUnicode_AsUTF8AndSize(method, &n)
        put16(t.spec, <uint16_t> n)
        t.spec.append(text, n)
        text = PyUnicode_AsUTF8AndSize(group, &n)
        put16(t.spec, <uint16_t> n)
        t.spec.append(text, n)
        if args is None:
            put32(t.spec, 0)
        elif args.nbytes > self.inline_limit:
            put32(t.spec, 0)
            ref = self.put(args)
            self.mutex.lock()
            find_entry(self.p.entries, ref.id).holds += 1  # the task's own, counted before the reference here goes
            self.mutex.unlock()
            d.position = ARGS_AS_OBJECT
            d.id = ref.id
            t.deps.push_back(d)
        else:
            put32(t.spec, <uint32_t> args.nbytes)
            args.append_to(t.spec)
            for r in args.refs:
                t.holds.push_back((<ObjectRef?> r).id)
        for position, r in deps:
            d.position = <uint16_t> position
            d.id = (<ObjectRef?> r).id
            t.deps.push_back(d)
            t.holds.push_back(d.id)
        return 0

    cdef int name_task(self, TaskState* t, str name) except -1:
        """Tasks in a row of one function share their name's bytes."""
        cdef Py_ssize_t n
        cdef const char* text
        if name is not self.last_name:
            text = PyUnicode_AsUTF8AndSize(name, &n)
            self.last_name_bytes = make_bytes(text, n)
            self.last_name = name
        t.name = self.last_name_bytes
        return 0

    cdef int wait_for_room(self, str name) except -1:
        """Waits until fewer tasks are under way. Where waiting would hold up what must end first, it raises."""
        cdef Waiter w
        self.check()
        waits = current_run().get() == NULL and asyncio._get_running_loop() is None
        holds_ns = ASK_AGAIN_NS if waits else REFUSAL_HOLDS_NS
        text = self.why_full(holds_ns)
        if text is None:
            return 0
        if not waits:
            from shoal.exceptions import PendingCallsLimitExceeded

            raise PendingCallsLimitExceeded(f"{text}: get() results before {name} is submitted")
        now = now_ns()
        if self.told_full_ns == 0 or now - self.told_full_ns >= TELL_FULL_NS:  # who submits without end waits thousands of times a second
            self.told_full_ns = now
            logging.getLogger("shoal").warning("%s: .remote() of %s waits until some have", text, name)
        while True:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            self.mutex.lock()
            room = self.p.has_room()
            if not room:
                self.p.room_waiters.push_back(&w)
            self.mutex.unlock()
            if room:
                return 0
            try:
                # Of the whole job's tasks others end too, and nobody tells.
                self.wait_for(&w, ASK_AGAIN_NS / 1e9 if self.p.is_within() else -1, None)
            finally:
                self.mutex.lock()
                forget_waiter_in(self.p.room_waiters, &w)
                self.mutex.unlock()
            if self.why_full(holds_ns) is None:
                return 0

    cdef str why_full(self, uint64_t holds_ns):
        """Why no task may be submitted now; None: one may, perhaps since the job's allowance was raised for it. A refusal is good for `holds_ns`: who submits
        at the limit would else ask the control store, and it all nodes, with each task."""
        from shoal.exceptions import JobLimitExceeded

        while not self.p.has_room():
            if not self.p.is_within():
                return f"{self.p.tasks.size()} tasks of this process have not ended (at most {self.p.most_tasks}), with {self.p.spec_bytes} bytes of arguments (at most {self.p.most_spec_bytes})"
            if self.refusal is not None and now_ns() - self.refused_ns < holds_ns:
                return self.refusal
            self.refusal = None
            try:
                self.ask_allowance(True, 1)
            except JobLimitExceeded as full:
                self.refusal = str(full)
                self.refused_ns = now_ns()
                return self.refusal
        return None

    def limit_lineage(self, uint64_t size_bytes):
        """How many bytes may be kept of what finished tasks were called with, to run them again. 0: nothing lost is made again."""
        self.mutex.lock()
        self.p.most_lineage_bytes = size_bytes
        self.mutex.unlock()

    def limit_submission(self, uint64_t tasks, uint64_t spec_bytes=0):
        """How many tasks this process may have that did not end, and bytes of arguments in them (0: as before)."""
        self.p.most_tasks = tasks
        if spec_bytes:
            self.p.most_spec_bytes = spec_bytes
        self.told_full_ns = 0

    def limit_oom_retries(self, int32_t count):
        """How often a task is tried again that was ended because its node was short of memory; -1: always."""
        self.p.oom_retries = count

    cdef list make_returns(self, TaskState* t, uint32_t backpressure):
        """The entries of the results, each with one local count, and their references."""
        cdef uint32_t i
        cdef uint32_t first = 0 if t.flags & STREAMING else 1
        cdef uint32_t last = 0 if t.flags & STREAMING else t.num_returns
        cdef Stream* s
        cdef Entry* e
        cdef vector[Entry*] entries
        cdef list out = []
        self.mutex.lock()
        for i in range(first, last + 1):
            e = self.p.own(object_id(t.id, i))
            e.local = 1
            entries.push_back(e)
        if t.flags & STREAMING:
            s = make_stream()
            s.backpressure = backpressure
            self.p.streams[t.id] = s
        self.mutex.unlock()
        for i in range(first, last + 1):
            out.append(self.new_ref(object_id(t.id, i), self.p.me, entries[i - first]))
        return out

    cdef ObjectId args_object(self, TaskState* t) noexcept nogil:
        """Large arguments are an object of the task's own. It is counted by the task from here on; begin_spec's count is dropped once the task counts."""
        cdef ObjectId id
        if not t.deps.empty() and t.deps[0].position == ARGS_AS_OBJECT:
            id = t.deps[0].id
            t.holds.push_back(id)
        return id

    def submit(self, uint32_t lease_class, bytes function_id, str name, Payload args, deps, uint32_t num_returns=1, int32_t max_retries=3,
               uint8_t flags=0, uint32_t depth=0, uint32_t backpressure=0, bytes extra=b""):
        cdef shared_ptr[TaskState] task = new_task()
        cdef TaskState* t = task.get()
        cdef ObjectId args_id
        cdef list out
        cdef size_t ahead
        cdef Peer* peer
        if self.closed or self.forked:
            self.check()
        if not self.p.has_room():
            self.wait_for_room(name)
        t.kind = 0
        t.flags = flags
        t.num_returns = <uint16_t> num_returns
        t.retries_left = max_retries
        t.lease_class = lease_class
        self.mutex.lock()
        t.id = self.p.new_task_id()
        self.mutex.unlock()
        if current_run().get() != NULL:
            t.parent = current_run().get().id
        self.begin_spec(t, self.p.job, to_id(function_id), depth, backpressure, name, "", "", args, deps)
        if extra:
            t.extra = from_bytes(extra)
        out = self.make_returns(t, backpressure)
        self.mutex.lock()
        self.p.now = now_ns()
        args_id = self.args_object(t)
        self.p.submit(task)
        if not args_id.task.nil():
            self.p.drop_hold(args_id)
        ahead = 0
        peer = NULL
        if t.lease != NULL:
            ahead = t.lease.in_flight.size()
            peer = t.lease.peer
        elif t.phase == QUEUED and self.p.dirty.empty():
            ahead = 3
            peer = self.p.raylet
        self.soon(peer, ahead)
        self.mutex.unlock()
        return out

    def cancel(self, bytes task_id, bint force, bint recursive):
        cdef Id16 id = to_id(task_id)
        cdef bint of_actor = False
        self.mutex.lock()
        self.p.now = now_ns()
        it = self.p.tasks.find(id)
        if force and it != self.p.tasks.end():
            of_actor = deref(it).second.get().kind == 2
        if of_actor:
            self.mutex.unlock()
            raise ValueError("force=True is not supported for actor tasks: cancel without it, or kill() the actor")
        self.p.cancel(id, force, recursive)
        self.after()
        self.mutex.unlock()
