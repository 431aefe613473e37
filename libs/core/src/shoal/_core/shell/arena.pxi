cdef class Arena(Allowances):
    """Values in the node's shared memory: room for them, their writing, their end."""

    cdef int reserve(self, uint64_t nbytes, shoal_loc_t* loc, void** data) except -1:
        """Room for an object, asking the store for an extent when this process has none. Waits; raises what the store answers."""
        cdef int r
        cdef Waiter w
        cdef uint32_t extent
        cdef uint16_t code
        cdef bytes answer
        cdef uint64_t give_up = now_ns() + STORE_RETURN_NS
        while True:
            with nogil:
                r = shoal_arena_create(self.arena, nbytes, loc, data)
            if r == SHOAL_OK:
                return 0
            if r != SHOAL_NEED_EXTENT:
                raise MemoryError(f"the object store has no room for one more object (arena error {r})")
            code, answer = self.ask_store(nbytes)
            if code == CODE_UNREACHABLE:
                if now_ns() > give_up:
                    raise ConnectionError(f"the node's object store did not come back within {STORE_RETURN_NS // 1_000_000_000} s")
                memset(&w, 0, sizeof(Waiter))
                w.remaining = 1
                self.wait_for(&w, 0.05, None)  # the sockets are served meanwhile, and with them the store's return
                continue
            if code:
                full = DiskFull if code == CODE_OUT_OF_DISK else ArenaFull
                raise full(answer[4:].decode("utf-8", "replace") or "the object store is full")
            memcpy(&extent, PyBytes_AS_STRING(answer), 4)
            shoal_arena_add_extent(self.arena, extent)
            give_up = now_ns() + STORE_RETURN_NS

    cdef tuple ask_store(self, uint64_t nbytes):
        """(code, answer) of an EXTENT_REQUEST; UNREACHABLE while the store is away."""
        cdef Waiter w
        cdef Call call
        cdef uint64_t number
        cdef size_t start
        cdef uint16_t code = CODE_UNREACHABLE
        cdef string answer
        self.mutex.lock()
        if self.p.store == NULL:
            self.connect_store()
        if self.p.store == NULL:
            self.mutex.unlock()
            return code, b""
        self.p.call_counter += 1
        number = self.p.call_counter
        call.waiter = &w
        self.p.calls[number] = call
        start = begin_frame(self.p.store[0], EXTENT_REQUEST)
        put64(self.p.store.out, number)
        put64(self.p.store.out, nbytes)
        self.p.done(self.p.store, start)
        self.flush()
        self.mutex.unlock()
        try:
            self.wait_for(&w, 40.0, f"space for an object of {nbytes} bytes")
        finally:
            self.mutex.lock()
            it = self.p.calls.find(number)
            if it != self.p.calls.end():
                code = deref(it).second.code
                answer = deref(it).second.payload
                self.p.calls.erase(number)
            self.mutex.unlock()
        return code, to_bytes(answer)

    cdef int write_arena(self, Payload payload, const Owner& owner, Place& place) except -1:
        """Copies a value into the arena, names its owner and seals it. Its bytes are still set aside then."""
        cdef char ids[32]
        cdef shoal_loc_t loc
        cdef void* data
        if self.arena == NULL:
            raise RuntimeError("this process has no object store")
        self.set_aside(payload.nbytes)
        try:
            self.reserve(payload.nbytes, &loc, &data)
            try:
                payload.write(<char*> data)
            except BaseException:
                shoal_arena_abort(self.arena, loc)
                raise
        except BaseException:
            self.settle(payload.nbytes)
            raise
        store_id(ids, owner.worker)
        store_id(ids + 16, owner.node)
        shoal_arena_own(self.arena, loc, ids, ids + 16)
        shoal_arena_seal(self.arena, loc)
        place.node = self.p.me.node
        place.slot = loc.slot
        place.generation = loc.generation
        place.size = payload.nbytes
        return 0

    def private(self, source):
        """A writable buffer over the bytes of `source`, a contiguous read-only view into the arena, copy on write: nobody else sees what is written. It keeps
        `source`. None where there is none to be had: a copy does as well."""
        cdef Py_buffer view
        cdef Private out
        cdef void* data
        cdef void* mapping = NULL
        cdef uint64_t mapped = 0
        if self.arena == NULL:
            return None
        PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
        try:
            data = shoal_arena_private(self.arena, view.buf, view.len, &mapping, &mapped)
            if data == NULL:
                return None
            out = Private.__new__(Private)
            out.keep = source
            out.data = data
            out.size = view.len
            out.mapping = mapping
            out.mapped = mapped
            return out
        finally:
            PyBuffer_Release(&view)

    cdef void free_places(self, vector[Place]& places) noexcept nogil:
        """Results that nobody will be told of."""
        cdef size_t i
        self.mutex.lock()
        self.p.now = now_ns()
        for i in range(places.size()):
            if places[i].size:
                self.p.free_place(places[i])
        self.after()
        self.mutex.unlock()
