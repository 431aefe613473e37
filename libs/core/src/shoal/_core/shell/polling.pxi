cdef class Polling(Sockets):
    """Waiting. Whoever waits takes the token and serves the sockets; when nobody does, a thread in the background, or an event loop."""

    cdef int serve(self, Waiter* w, uint64_t deadline, int64_t slice_ns) noexcept nogil:
        """Waits until w fires, serving the sockets meanwhile. The mutex is held at entry and at exit."""
        cdef uint64_t now
        cdef int r
        cdef int64_t left
        cdef int result
        while True:
            if w.fired:
                return FIRED
            if self.p.closing:
                return ENDED
            now = now_ns()
            if now >= deadline:
                return TIMED_OUT
            if self.poller == USER:
                store_release(&w.wake, 0)
                w.parked = True
                self.parked.push_back(w)
                left = slice_ns if deadline - now > <uint64_t> slice_ns else <int64_t> (deadline - now)
                self.mutex.unlock()
                r = futex_wait(&w.wake, 0, left)
                self.mutex.lock()
                w.parked = False
                forget_waiter_in(self.parked, w)
                if not w.fired and self.poller == USER:
                    return LOOK
                continue
            if self.poller == BACKGROUND:
                kick(self.kicker)
            self.poller = USER
            self.poll_since = now
            result = self.poll_until(w, deadline, slice_ns)
            self.poller = NOBODY
            self.released = now_ns()
            if not self.parked.empty():
                store_release(&self.parked[0].wake, 1)
                futex_wake(&self.parked[0].wake, 1)
            elif self.background_deep or self.open_callbacks:
                self.background_deep = False
                store_release(&self.background_word, 1)
                futex_wake(&self.background_word, 1)
            return result

    cdef int poll_until(self, Waiter* w, uint64_t deadline, int64_t slice_ns) noexcept nogil:
        cdef uint64_t now, spin_end, started
        cdef int64_t timeout, timer
        cdef int n
        cdef bint spun = False
        self.p.now = now_ns()
        self.after()
        while True:
            if w.fired:
                return FIRED
            if self.p.closing:
                return ENDED
            now = now_ns()
            if now >= deadline:
                return TIMED_OUT
            n = 0
            if not spun:
                spun = True
                self.spin_tries += 1
                started = now
                spin_end = now + (self.spin_ns if self.spin_ns or self.spin_tries % 16 else 20_000)
                while now < spin_end and n == 0:
                    self.mutex.unlock()
                    n = wait_ready(self.epoll, self.ready_user[0], 0)
                    self.mutex.lock()
                    if n == 0:
                        now = now_ns()
                if n > 0:
                    self.spin_ns = SPIN_NS if self.spin_ns > 5_000 else 25_000
                elif n == 0:
                    self.spin_ns = self.spin_ns // 2 if self.spin_ns > 4_000 else 0
                if n == 0 and w.fired:
                    continue  # by another thread, meanwhile
            if n == 0:
                timeout = slice_ns if deadline - now > <uint64_t> slice_ns else <int64_t> (deadline - now)
                timer = self.p.next_timer_ns()
                if timer >= 0 and timer < timeout:
                    timeout = timer
                self.asleep = w
                self.mutex.unlock()
                n = wait_ready(self.epoll, self.ready_user[0], <int> ((timeout + 999_999) // 1_000_000))
                self.mutex.lock()
                self.asleep = NULL
                self.asleep_kicked = False
            if n > 0:
                self.handle(self.ready_user, n)
                spun = False
                if self.p.now - self.poll_since >= <uint64_t> slice_ns:
                    self.poll_since = self.p.now
                    return LOOK if not w.fired else FIRED  # a signal that came while there was always something to read
            elif n < 0:
                return LOOK  # a signal
            else:
                self.p.now = now_ns()
                self.after()
                if self.p.now - self.poll_since >= <uint64_t> slice_ns:
                    self.poll_since = self.p.now
                    return LOOK if not w.fired else FIRED

    def _background(self):
        with nogil:
            self.run_background()

    cdef void run_background(self) noexcept nogil:
        cdef uint64_t now, submitted = 0, looked = 0
        cdef int64_t timer
        cdef int n, timeout
        cdef bint steady = False
        self.mutex.lock()
        while not self.p.closing:
            now = now_ns()
            if self.loop_mode:
                # The loop serves. Look after it while it runs tasks, and has not polled for a while.
                if now - self.loop_polled >= LOOP_GRACE_NS:
                    if self.p.started or not self.p.dirty.empty() or self.p.next_timer_ns() >= 0:
                        self.poller = BACKGROUND
                        n = self.wait_in_background(0)
                        if self.poller == BACKGROUND:
                            self.poller = NOBODY
                            if n > 0:
                                self.handle(self.ready_background, n)
                            else:
                                self.p.now = now_ns()
                                self.after()
                    else:
                        self.sleep_background(True, 0)
                        continue
                elif not self.p.dirty.empty():
                    self.p.now = now
                    self.after()
                self.sleep_background(False, LOOP_GRACE_NS if self.p.dirty.empty() else TOKEN_NS)
                continue
            if self.poller == USER:
                if not self.p.dirty.empty():
                    # Another thread has said something, and the one with the token may lie in epoll_wait for long.
                    self.sleep_background(False, TOKEN_NS)
                    if not self.p.dirty.empty():
                        self.p.now = now_ns()
                        self.after()
                elif now - self.poll_since > 2 * TOKEN_NS:
                    self.sleep_background(True, 0)
                else:
                    self.sleep_background(False, TOKEN_NS)
                continue
            if not self.p.dirty.empty():
                self.p.now = now
                self.after()
            if now - self.released < TOKEN_NS and self.open_callbacks == 0:
                self.sleep_background(False, TOKEN_NS)
                continue
            # Somebody submits without a pause. Answers are read once a millisecond then: each that was read at once would let a worker run dry, and the next
            # task would go to it alone, with a system call and a wake-up of its own.
            if now - looked >= TOKEN_NS:
                steady = (self.p.submitted - submitted) * TOKEN_NS >= STEADY_SUBMISSIONS * (now - looked) and self.open_callbacks == 0
                submitted = self.p.submitted
                looked = now
            timer = self.p.next_timer_ns()
            timeout = -1 if timer < 0 else <int> ((timer + 999_999) // 1_000_000)
            if steady:
                timeout = 0
            elif self.p.store == NULL and self.arena != NULL:
                timeout = 50
            self.poller = BACKGROUND
            n = self.wait_in_background(timeout)
            if self.poller == BACKGROUND:
                self.poller = NOBODY
                if n > 0:
                    self.handle(self.ready_background, n)
                else:
                    self.p.now = now_ns()
                    self.after()
            if steady:
                self.sleep_background(False, TOKEN_NS)
        self.mutex.unlock()

    cdef int wait_in_background(self, int timeout_ms) noexcept nogil:
        cdef int n
        self.background_waiting = True
        self.mutex.unlock()
        n = wait_ready(self.epoll, self.ready_background[0], timeout_ms)
        self.mutex.lock()
        self.background_waiting = False
        self.background_kicked = False
        return n

    cdef void sleep_background(self, bint deep, int64_t ns) noexcept nogil:
        store_release(&self.background_word, 0)
        self.background_deep = deep
        self.mutex.unlock()
        futex_wait(&self.background_word, 0, -1 if deep else ns)
        self.mutex.lock()
        self.background_deep = False

    cdef int wait_for(self, Waiter* w, double timeout, what) except -1:
        """Waits with signals looked after. 0 when it was in vain; raises TimeoutError where `what` names what did not come."""
        cdef int r = self.wait_until(w, FOREVER if timeout < 0 else now_ns() + <uint64_t> (timeout * 1e9))
        if not r and what is not None:
            raise TimeoutError(f"{what} did not come within {timeout:g} s")
        return r

    cdef int wait_until(self, Waiter* w, uint64_t deadline) except -1:
        cdef int r
        while True:
            with nogil:
                self.mutex.lock()
                r = self.serve(w, deadline, SLICE_NS)
                self.mutex.unlock()
            if r == FIRED:
                return 1
            if r == TIMED_OUT:
                return 0
            if r == ENDED:
                if w.fired:
                    return 1
                raise ConnectionError("Shoal was shut down while this call waited")
            PyErr_CheckSignals()

    cdef void park(self, Waiter* w, int64_t ns) noexcept nogil:
        """Waits without taking the token."""
        self.mutex.lock()
        if not w.fired and not self.p.closing:
            store_release(&w.wake, 0)
            w.parked = True
            self.mutex.unlock()
            futex_wait(&w.wake, 0, ns)
            self.mutex.lock()
            w.parked = False
        self.mutex.unlock()

    def fileno(self):
        self.mutex.lock()
        self.loop_mode = True
        self.loop_polled = now_ns()
        if self.poller == BACKGROUND:
            kick(self.kicker)
            self.poller = NOBODY
        self.mutex.unlock()
        return self.epoll

    def loop_fileno(self):
        """Readable when another thread has received or settled what the loop waits for; poll() then."""
        return self.loop_kicker

    def poll(self):
        """Serves what is ready, without waiting; runs callbacks that are due. For the loop that watches fileno()."""
        cdef int n
        self.mutex.lock()
        n = wait_ready(self.epoll, self.ready_loop[0], 0)
        self.loop_polled = now_ns()
        if self.loop_kicked:
            self.loop_kicked = False
            drain(self.loop_kicker)
        self.loop_polling = True
        if n > 0:
            self.handle(self.ready_loop, n)
        else:
            self.p.now = self.loop_polled
            self.after()
        self.loop_polling = False
        if self.background_deep and self.p.runs.size():
            self.background_deep = False
            store_release(&self.background_word, 1)
            futex_wake(&self.background_word, 1)
        self.mutex.unlock()
        (<Engine> self).run_callbacks()

    cdef void block(self, bint on) noexcept nogil:
        """Says on the control page that this process waits, or goes on. The mutex is held."""
        if on:
            self.blocked += 1
            if self.record != NULL and self.blocked == 1:
                self.record.blocked_since_ns = now_ns()
        else:
            self.blocked -= 1
            if self.record != NULL and self.blocked == 0:
                self.record.blocked_since_ns = 0
