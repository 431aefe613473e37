cdef class Callbacks(Reading):
    """Functions that are called when an object is ready, or when a stream has moved."""

    cdef run_callbacks(self):
        cdef vector[uint64_t] due
        cdef size_t i
        if self.p.callbacks.empty():
            return
        self.mutex.lock()
        due.swap(self.p.callbacks)
        self.open_callbacks -= due.size()
        self.mutex.unlock()
        for i in range(due.size()):
            item = self.done_callbacks.pop(due[i], None)
            if item is None:
                continue
            ref, loop, fn = item
            # Ready, but perhaps on another node: once more, for the copy.
            if ref is not None and not self.near(ref):
                self.add_callback(ref, loop, fn)
            elif loop is None or self.loop_mode and loop is asyncio._get_running_loop():
                fn(ref)
            else:
                self.call_on(loop, fn, ref)

    cdef bint near(self, ObjectRef ref) noexcept:
        cdef Entry* e
        cdef bint here
        self.mutex.lock()
        e = find_entry(self.p.entries, ref.id)
        here = e == NULL or self.is_here(e)
        self.mutex.unlock()
        return here

    cdef call_on(self, loop, fn, ref):
        try:
            loop.call_soon_threadsafe(fn, ref)
        except RuntimeError:
            pass  # that loop has ended, and with it whoever awaited

    def add_done_callback(self, ObjectRef ref, fn):
        self.add_callback(ref, None, fn)

    def add_loop_callback(self, ObjectRef ref, loop, fn):
        self.add_callback(ref, loop, fn)

    cdef uint64_t new_callback(self, ref, loop, fn) except 0:
        """A number for a function, under which the protocol knows it."""
        self.check()
        self.callback_counter += 1
        self.done_callbacks[self.callback_counter] = (ref, loop, fn)
        if self.callback_thread is None and not self.loop_mode:
            self.callback_thread = threading.Thread(target=self._run_callbacks, name="shoal-callbacks", daemon=True)
            self.callback_thread.start()
        return self.callback_counter

    cdef void expect_callback(self) noexcept nogil:
        """One more is open, and no thread waits for it in get(): the background serves. The mutex is held."""
        self.open_callbacks += 1
        self.after()
        if self.poller == NOBODY:
            self.background_deep = False
            store_release(&self.background_word, 1)
            futex_wake(&self.background_word, 1)

    cdef add_callback(self, ObjectRef ref, loop, fn):
        cdef Entry* e
        cdef uint64_t token = self.new_callback(ref, loop, fn)
        cdef bint now
        self.mutex.lock()
        self.p.now = now_ns()
        e = find_entry(self.p.entries, ref.id)
        now = e == NULL or self.is_here(e)
        if not now:
            e.callbacks.push_back(token)
            if e.state == IN_ARENA:
                self.p.pull(e)
            else:
                self.p.ask(e)
            self.expect_callback()
        self.mutex.unlock()
        if now:
            self.done_callbacks.pop(token, None)
            if loop is not None:
                loop.call_soon(fn, ref)
            else:
                fn(ref)

    cdef end_callbacks(self):
        """After the connection's end: those that still wait are called, and find the error."""
        while self.done_callbacks:
            ref, loop, fn = self.done_callbacks.popitem()[1]
            if loop is not None:
                self.call_on(loop, fn, ref)
            else:
                fn(ref)

    def _run_callbacks(self):
        cdef Waiter w
        while not self.closed:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            self.mutex.lock()
            if self.p.callbacks.empty():
                self.p.callback_waiters.push_back(&w)
            else:
                w.fired = 1
            self.mutex.unlock()
            try:
                # Parked and not polling: this thread would keep the token for ever.
                while not w.fired and not self.closed:
                    with nogil:
                        self.park(&w, SLICE_NS)
            finally:
                self.mutex.lock()
                forget_waiter_in(self.p.callback_waiters, &w)
                self.mutex.unlock()
            self.run_callbacks()
