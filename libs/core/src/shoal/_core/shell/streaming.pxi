cdef enum:
    LEASE_LOOK_NS = 10000000

cdef class Streaming(Calling):
    """The items of tasks that yield, at both ends."""

    def next_item(self, bytes task_id, uint32_t index, double timeout=-1.0):
        cdef Id16 id = to_id(task_id)
        cdef ObjectId oid = object_id(id, index)
        cdef Waiter w
        cdef Stream* s
        cdef Entry* e
        cdef int state
        self.check()
        while True:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            state = 0
            self.mutex.lock()
            self.p.now = now_ns()
            it = self.p.streams.find(id)
            if it == self.p.streams.end() or deref(it).second.dropped:
                state = 2
            else:
                s = deref(it).second
                if index <= s.received:
                    state = 1
                    e = find_entry(self.p.entries, oid)
                    if e == NULL:
                        state = 2
                    else:
                        e.local += 1
                        if s.held.erase(index):
                            e.holds -= 1
                        if index > s.consumed:
                            s.consumed = index
                            if s.backpressure and s.producer != NULL and s.producer.phase != CLOSED:
                                self.p.acknowledge_items(s.producer, id, index)
                                self.soon(s.producer, 3)
                elif index > s.end:
                    state = 2
                else:
                    s.waiters.push_back(&w)
                    self.block(True)
            self.mutex.unlock()
            if state == 1:
                return self.new_ref(oid, self.p.me, e)
            if state == 2:
                return None
            try:
                done = self.wait_for(&w, timeout, None)
            finally:
                self.mutex.lock()
                self.block(False)
                it = self.p.streams.find(id)
                if it != self.p.streams.end():
                    forget_waiter_in(deref(it).second.waiters, &w)
                self.mutex.unlock()
            if not done:
                raise TimeoutError(f"item {index} did not come within {timeout:g} s")

    def watch_stream(self, bytes task_id, uint32_t index, loop, fn):
        """Calls fn(None) on the loop once next_item() would answer at once. A number for unwatch_stream()."""
        cdef Id16 id = to_id(task_id)
        cdef uint64_t token = self.new_callback(None, loop, fn)
        cdef Stream* s
        cdef bint now = True
        self.mutex.lock()
        self.p.now = now_ns()
        it = self.p.streams.find(id)
        if it != self.p.streams.end() and not deref(it).second.dropped:
            s = deref(it).second
            now = index <= s.received or index > s.end
            if not now:
                s.callbacks.push_back(token)
                self.expect_callback()
        self.mutex.unlock()
        if now:
            self.done_callbacks.pop(token, None)
            loop.call_soon(fn, None)
        return token

    def unwatch_stream(self, bytes task_id, uint64_t token):
        """Nobody waits any more. What is on its way to the loop is not held up."""
        cdef Id16 id = to_id(task_id)
        if self.done_callbacks.pop(token, None) is None:
            return
        self.mutex.lock()
        it = self.p.streams.find(id)
        if it != self.p.streams.end() and forget_number(deref(it).second.callbacks, token):
            self.open_callbacks -= 1
        self.mutex.unlock()

    def stream_state(self, bytes task_id):
        """(items received, number of items or None while unknown)."""
        cdef Id16 id = to_id(task_id)
        cdef uint32_t received = 0, end = 0
        self.mutex.lock()
        it = self.p.streams.find(id)
        if it != self.p.streams.end():
            received = deref(it).second.received
            end = deref(it).second.end
        self.mutex.unlock()
        return received, (None if end == NO_END else end)

    def stream_done(self, bytes task_id):
        cdef Id16 id
        if self.closed or self.forked:
            return
        id = to_id(task_id)
        self.mutex.lock()
        self.p.now = now_ns()
        self.p.drop_stream(id)
        self.after()
        self.mutex.unlock()

    cdef int await_lease(self) except -1:
        """Nothing begins here meanwhile, and no answer goes out. It goes on when the raylet renews the lease, and ends with the raylet."""
        cdef timespec pause
        sys.stderr.write(
            f"shoal worker {os.getpid()}: this node's lease is over, for no control store answers (or the raylet does not run): "
            "this actor, which could be started elsewhere, waits until one does, or ends with the node\n"
        )
        sys.stderr.flush()
        pause.tv_sec = 0
        pause.tv_nsec = LEASE_LOOK_NS
        while self.p.lease_is_over(now_ns()) and not self.p.closing:
            with nogil:
                nanosleep(&pause, NULL)
            PyErr_CheckSignals()
        return 0

    def item(self, Task task, uint32_t index, Payload payload):
        cdef RunTask* t = task.run.get()
        cdef Waiter w
        cdef Place place
        cdef Peer* peer
        cdef size_t start
        cdef string body
        cdef vector[ContainedRef] contains
        cdef bint wait
        if self.p.restartable and self.p.lease_is_over(now_ns()):
            self.await_lease()
        while True:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            self.mutex.lock()
            cancelled = t.cancelled
            wait = not cancelled and t.backpressure and index > t.consumed + t.backpressure
            if wait:
                t.item_waiters.push_back(&w)
                self.block(True)
            self.mutex.unlock()
            if cancelled:
                raise TaskCancelled(f"{task.name} was cancelled")
            if not wait:
                break
            try:
                self.wait_for(&w, -1, None)
            finally:
                self.mutex.lock()
                self.block(False)
                forget_waiter_in(t.item_waiters, &w)
                self.mutex.unlock()
        if payload.nbytes > self.inline_limit:
            self.write_arena(payload, t.caller, place)
        else:
            payload.append_to(body)
        self.contained(payload, contains)
        self.mutex.lock()
        self.p.now = now_ns()
        peer = t.from_
        if peer != NULL and peer.phase != CLOSED:
            start = begin_frame(peer[0], ITEM)
            put_id(peer.out, t.id)
            put32(peer.out, t.attempt)
            put32(peer.out, index)
            if place.size:
                put8(peer.out, 1)
                put_id(peer.out, place.node)
                put32(peer.out, place.slot)
                put32(peer.out, place.generation)
                put64(peer.out, place.size)
            else:
                put8(peer.out, 0)
                put_str32(peer.out, body)
            self.p.put_contains(peer.out, contains, peer.who)
            self.p.done(peer, start)
            if place.size:
                self.p.pass_on(peer, place.size)
            self.soon(peer, 3 if index > 2 else 0)
        elif place.size:
            self.p.free_place(place)
        self.mutex.unlock()
        if place.size:
            self.settle(place.size)
