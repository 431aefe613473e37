cdef class Refs(Arena):
    """Python's references: counted here, made for what is submitted, put or met in a value."""

    cdef check(self):
        if self.forked:
            from shoal import exceptions

            raise exceptions.ForkedProcessError("this process was forked from one that uses Shoal: call init() anew in it, or start it with the spawn method")
        if self.closed:
            raise ConnectionError("Shoal was shut down")

    cdef void release(self, const ObjectId& id) noexcept nogil:
        if self.forked or self.closed:
            return
        self.mutex.lock()
        self.p.now = now_ns()
        self.p.drop_local(id)
        if not self.p.arena_frees.empty() or not self.p.to_connect.empty() or not self.p.arena_unpins.empty():
            self.after()
        else:
            self.wake_all()
            if not self.p.dirty.empty():
                self.stir()
        self.mutex.unlock()

    cdef ObjectRef new_ref(self, const ObjectId& id, const Owner& owner, Entry* entry):
        """The caller has counted it."""
        cdef ObjectRef ref = ObjectRef.__new__(ObjectRef)
        ref.id = id
        ref.who = owner
        ref.entry = entry
        ref.engine = self
        return ref

    def ref_from_binary(self, bytes object_id, bytes owner):
        cdef ObjectId id
        cdef Owner who
        cdef Entry* e
        cdef RunTask* run
        if len(object_id) != 20 or len(owner) != 32:
            raise ValueError("a reference needs 20 bytes of id and 32 of owner")
        id = load_object_id(PyBytes_AS_STRING(object_id))
        who.worker = load_id(PyBytes_AS_STRING(owner))
        who.node = load_id(PyBytes_AS_STRING(owner) + 16)
        self.mutex.lock()
        self.p.now = now_ns()
        e = self.p.borrow(id, who)
        e.local += 1
        if not e.owned and e.registrations == 0:
            run = current_run().get()
            if run != NULL and run.phase == RUN_STARTED:
                self.p.met(run, e)
                self.go_out()
            elif e.local == 1 and e.holds == 0:
                # It came by no task and inside no object: nobody registered this process but itself.
                e.registrations = 1
                self.p.register(id, who, self.p.me, 1)
                self.p.take_over(e, who)
                self.after()
        elif not e.owned and e.state == PENDING and not e.asked:
            self.p.take_over(e, who)
            self.go_out()
        self.mutex.unlock()
        return self.new_ref(id, who, e)

    cdef void go_out(self) noexcept nogil:
        """What was written goes out soon; together, when many references are met in one value."""
        if not self.p.to_connect.empty():
            self.after()
        elif not self.p.dirty.empty():
            self.stir()

    cdef int contained(self, Payload payload, vector[ContainedRef]& out) except -1:
        cdef ContainedRef c
        for ref in payload.refs:
            c.id = (<ObjectRef?> ref).id
            c.owner = (<ObjectRef> ref).who
            out.push_back(c)
        return 0

    def put(self, Payload payload):
        cdef vector[ContainedRef] contains
        cdef Place place
        cdef Bytes value
        cdef Entry* e
        cdef Entry* inner
        cdef ObjectId id
        cdef size_t i
        self.check()
        self.contained(payload, contains)
        if payload.nbytes > self.inline_limit:
            self.write_arena(payload, self.p.me, place)
        else:
            value = make_bytes(NULL, 0)
            payload.append_to(value.get()[0])
        self.mutex.lock()
        self.p.now = now_ns()
        id = object_id(self.p.new_task_id(), 0)
        e = self.p.own(id)
        e.local = 1
        if value.get() == NULL:
            e.state = IN_ARENA
            e.place = place
            self.p.allowance.held_bytes += place.size
            if current_run().get() != NULL:
                e.creator = make_bytes(current_run().get().name.data(), current_run().get().name.size())  # who to name when it is lost
        else:
            e.state = INLINE
            e.value = value
        for i in range(contains.size()):
            inner = find_entry(self.p.entries, contains[i].id)
            if inner != NULL:
                inner.holds += 1
        e.contains.swap(contains)
        self.mutex.unlock()
        if value.get() == NULL:
            self.settle(payload.nbytes)
        return self.new_ref(id, self.p.me, e)

    def locations(self, ObjectRef ref):
        """[(node id, bytes, whether inline)] of what this process knows of an object; empty while it is not ready."""
        cdef Entry* e
        cdef vector[Place] places
        cdef size_t i
        cdef int64_t inline_bytes = -1
        self.mutex.lock()
        e = find_entry(self.p.entries, ref.id)
        if e != NULL and e.state == INLINE:
            inline_bytes = e.value.get().size()
        elif e != NULL and e.state == IN_ARENA:
            places.push_back(e.place)
            for i in range(e.copies.size()):
                if not (e.copies[i].node == e.place.node):
                    places.push_back(e.copies[i])
            if e.has_copy and not e.owned and not (e.copy.node == e.place.node):
                places.push_back(e.copy)
        self.mutex.unlock()
        if inline_bytes >= 0:
            return [(id_bytes(ref.who.node), inline_bytes, True)]
        return [(id_bytes(places[i].node), places[i].size, False) for i in range(places.size())]
