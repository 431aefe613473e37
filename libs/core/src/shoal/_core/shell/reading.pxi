cdef class Reading(Refs):
    """The values behind references, and waiting for them."""

    cdef Value value_of(self, const ObjectId& id, uint64_t deadline):
        """The value of an entry that was ready. What the store has moved away since is brought back first, what was lost since is made again."""
        cdef Value value = None
        while value is None:
            value = self.value_here(id, deadline)
        return value

    cdef Value value_here(self, const ObjectId& id, uint64_t deadline):
        """The value of an entry that is ready and near; None when it was not, and now is, or is known to have failed."""
        cdef Entry* e
        cdef Holder holder
        cdef Bytes value
        cdef shoal_loc_t place
        cdef const void* data = NULL
        cdef uint64_t size = 0
        cdef EntryState state
        cdef uint16_t code = CODE_OBJECT_FREED
        cdef string message, name
        cdef ObjectId oid = id
        cdef Value failure
        cdef bint troubled = False
        cdef bint away = False
        self.mutex.lock()
        e = find_entry(self.p.entries, oid)
        state = e.state if e != NULL else FAILED
        if state == INLINE:
            value = e.value
        elif state == IN_ARENA and e.trouble.get() != NULL:
            state = FAILED
            code = e.trouble.get().code
            message = e.trouble.get().message
            e.trouble.reset()
            troubled = True
        elif state == IN_ARENA and not self.p.is_local(e):
            away = True  # its slot is another node's: here the same number names another object
        elif state == IN_ARENA:
            place.slot = e.copy.slot if e.has_copy else e.place.slot
            place.generation = e.copy.generation if e.has_copy else e.place.generation
        elif e != NULL and e.failure.get() != NULL:
            code = e.failure.get().code
            message = e.failure.get().message
            name = e.failure.get().name
        self.mutex.unlock()
        if state == INLINE:
            holder = Holder.__new__(Holder)
            holder.value = value
            return parse_value(holder, value.get().data(), value.get().size())
        if away:
            self.get_ready(oid, deadline)
            return None
        if state == IN_ARENA:
            if shoal_arena_get(self.arena, place, &data, &size) == SHOAL_OK:
                holder = Holder.__new__(Holder)
                holder.engine = self
                holder.place = place
                holder.pinned = True
                return parse_value(holder, <const char*> data, size)
            self.not_here(oid, place)
            self.get_ready(oid, deadline)
            return None
        if state == PENDING:
            self.get_ready(oid, deadline)
            return None
        failure = self.failure_value(code, message, name, oid)
        failure.troubled = troubled
        return failure

    cdef bint is_here(self, Entry* e) noexcept nogil:
        """Whether its value, or why there is none, can be had at once, as far as the arena tells now. The mutex is held."""
        cdef shoal_loc_t place
        if not self.p.is_local(e) or e.state != IN_ARENA or e.trouble.get() != NULL:
            return self.p.is_local(e)
        place.slot = e.copy.slot if e.has_copy else e.place.slot
        place.generation = e.copy.generation if e.has_copy else e.place.generation
        if self.arena == NULL or shoal_arena_has(self.arena, place):
            return True
        if e.has_copy:
            e.has_copy = False
        if e.place.node == self.p.me.node:
            e.moved = True
        return False

    cdef void not_here(self, const ObjectId& id, const shoal_loc_t& place) noexcept nogil:
        """The store dropped this node's copy of what lies elsewhere, or has what lies here on disk alone: it can be pulled."""
        cdef Entry* e
        self.mutex.lock()
        e = find_entry(self.p.entries, id)
        if e != NULL:
            self.is_here(e)
        self.mutex.unlock()

    cdef int get_ready(self, const ObjectId& id, uint64_t deadline) except -1:
        cdef Waiter w
        cdef EntryWaiter ew
        cdef Entry* e
        cdef bint wait = False
        cdef bint lost = False
        cdef int fired = 1
        ew.waiter = &w
        ew.need_local = True
        ew.until_lost = True
        self.mutex.lock()
        self.p.now = now_ns()
        e = find_entry(self.p.entries, id)
        if e != NULL and not self.p.is_local(e):
            e.waiters.push_back(ew)
            lost = e.state == PENDING
            if lost:
                self.p.ask(e)
                self.block(True)  # to make it again may need this worker's CPUs
            else:
                self.p.pull(e)
            self.after()
            wait = True
        self.mutex.unlock()
        if wait:
            try:
                fired = self.wait_until(&w, deadline)
            finally:
                self.mutex.lock()
                if lost:
                    self.block(False)
                e = find_entry(self.p.entries, id)
                if e != NULL:
                    forget_waiter(e[0], &w)
                self.mutex.unlock()
        if not fired:
            raise TimeoutError("an object was lost while it was read, and was not made again in time")
        return 0

    cdef Value failure_value(self, uint16_t code, const string& message, const string& name, const ObjectId& id):
        cdef bytes raw
        cdef Holder holder = Holder.__new__(Holder)
        cdef Id16 actor
        if self.error_factory is None:
            raise RuntimeError(f"{to_str(message)} (code {code})")
        raw = self.error_factory(code, to_str(message), object_id_bytes(id), to_str(name), b"")
        holder.value = make_bytes(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))
        return parse_value(holder, holder.value.get().data(), holder.value.get().size())

    cdef size_t watch_refs(self, list refs, Waiter* w, bint local, uint8_t urgency) noexcept:
        """Registers w with each reference that is not ready; the mutex is held. Returns how many."""
        cdef size_t n = 0
        cdef EntryWaiter ew
        cdef Entry* e
        cdef Py_ssize_t i
        ew.waiter = w
        ew.need_local = local
        ew.urgency = urgency
        ew.until_lost = False
        for i in range(len(refs)):
            e = (<ObjectRef> refs[i]).entry
            e.trouble.reset()
            if (local and self.is_here(e)) or (not local and e.state != PENDING):
                continue
            e.waiters.push_back(ew)
            n += 1
            if e.state == IN_ARENA:
                self.p.pull(e)
            else:
                self.p.ask(e)
        return n

    cdef void unwatch_refs(self, list refs, Waiter* w) noexcept:
        cdef Entry* e
        cdef Py_ssize_t i
        for i in range(len(refs)):
            e = (<ObjectRef> refs[i]).entry
            if not e.waiters.empty():
                forget_waiter(e[0], w)

    def get(self, refs, double timeout=-1.0):
        cdef Value value
        cdef list wanted = refs if type(refs) is list else list(refs)
        cdef Waiter w
        cdef size_t n
        cdef Py_ssize_t i
        cdef int r = 1
        cdef uint64_t deadline = FOREVER if timeout < 0 else now_ns() + <uint64_t> (timeout * 1e9)
        self.check()
        for ref in wanted:
            if not isinstance(ref, ObjectRef):
                raise TypeError(f"get() takes references, got {type(ref).__name__}")
        self.mutex.lock()
        self.p.now = now_ns()
        w.remaining = len(wanted) + 1  # some may fail while others are not asked for yet
        n = self.watch_refs(wanted, &w, True, URGENT_GET)
        if n:
            w.remaining -= len(wanted) - <int64_t> n
            self.p.fire(&w)
            self.block(True)
        self.after()
        self.mutex.unlock()
        if n:
            try:
                r = self.wait_for(&w, timeout, None)
            finally:
                self.mutex.lock()
                self.block(False)
                if not w.fired:
                    self.unwatch_refs(wanted, &w)
                self.mutex.unlock()
            if not r:
                raise TimeoutError(f"{w.remaining} of {len(wanted)} objects were not ready after {timeout:g} s")
        out = []
        for i in range(len(wanted)):
            value = self.value_of((<ObjectRef> wanted[i]).id, deadline)
            out.append(value)
            if value.troubled:
                # Each further one that is not here would wait as long for room, and find as little: the values before it fill the store.
                out.extend([value] * (len(wanted) - i - 1))
                break
        return out

    def split(self, list refs, Py_ssize_t num_returns, double timeout=-1.0, bint fetch_local=True):
        """wait() as (ready, rest), for a list of references alone: None when something else is in it. Raises ValueError for duplicates."""
        cdef Py_ssize_t i, n = len(refs)
        cdef bint twice = False
        cdef Entry* e
        cdef list flags, ready, rest
        for i in range(n):
            if type(refs[i]) is not ObjectRef:
                return None
        self.mutex.lock()
        self.marks += 1
        for i in range(n):
            e = (<ObjectRef> refs[i]).entry
            if e.mark == self.marks:
                twice = True
                break
            e.mark = self.marks
        self.mutex.unlock()
        if twice:
            raise ValueError("Wait requires a list of unique object refs.")
        flags = self.wait(refs, num_returns, timeout, fetch_local)
        ready = []
        rest = []
        for i in range(n):
            if len(ready) == num_returns:
                rest.extend(refs[i:])
                break
            if flags[i]:
                ready.append(refs[i])
            else:
                rest.append(refs[i])
        return ready, rest

    def wait(self, refs, Py_ssize_t num_returns, double timeout=-1.0, bint fetch_local=True):
        cdef list wanted = list(refs)
        cdef list ready
        cdef Waiter w
        cdef size_t n = 0
        cdef Py_ssize_t have
        self.check()
        ready = [False] * len(wanted)
        self.mutex.lock()
        self.p.now = now_ns()
        have = self.mark_ready(wanted, ready, num_returns, fetch_local)
        if have < num_returns and timeout != 0:
            w.remaining = num_returns - have + 1  # as in get()
            self.watch_refs(wanted, &w, fetch_local, URGENT_WAIT)
            self.p.fire(&w)
            self.block(True)
            n = 1
        self.after()
        self.mutex.unlock()
        if n:
            try:
                self.wait_for(&w, timeout, None)
            finally:
                self.mutex.lock()
                self.block(False)
                self.unwatch_refs(wanted, &w)
                self.mutex.unlock()
            self.mutex.lock()
            self.mark_ready(wanted, ready, num_returns, fetch_local)
            self.mutex.unlock()
        return ready

    cdef Py_ssize_t mark_ready(self, list wanted, list ready, Py_ssize_t most, bint local) noexcept:
        cdef Py_ssize_t i, n = 0
        cdef Entry* e
        for i in range(len(wanted)):
            if n >= most:
                break
            e = (<ObjectRef> wanted[i]).entry
            if self.p.is_local(e) or (not local and e.state != PENDING):
                ready[i] = True
                n += 1
            else:
                ready[i] = False
        return n

    def ready(self, ObjectRef ref):
        cdef Entry* e
        self.mutex.lock()
        e = find_entry(self.p.entries, ref.id)
        result = e == NULL or e.state != PENDING
        self.mutex.unlock()
        return result

    def set_error_factory(self, fn):
        self.error_factory = fn
