cdef enum:
    UNRECORDED = 32  # TASK_UNRECORDED


cdef class Executing(Explaining):
    """Tasks that this process runs: taking, beginning and answering them."""

    def set_ordered(self, bint ordered):
        """Whether actor calls run in the order of their arrival, each waiting for its predecessors' arguments. Before the first call."""
        self.p.ordered_runs = ordered

    def lease_context(self, uint64_t lease_id, double timeout=5.0):
        """The LeaseContext under which a task came. It was written before the lease was granted, so it is here or on its way."""
        cdef Waiter w
        cdef string context
        cdef bint found = False
        self.mutex.lock()
        it = self.p.lease_contexts.find(lease_id)
        if it != self.p.lease_contexts.end():
            context = deref(it).second
            found = True
        else:
            self.p.lease_waiters.push_back(&w)
        self.mutex.unlock()
        if not found:
            try:
                self.wait_for(&w, timeout, f"the context of lease {lease_id}")
            finally:
                self.mutex.lock()
                forget_waiter_in(self.p.lease_waiters, &w)
                self.mutex.unlock()
            return self.lease_context(lease_id, timeout)
        self.mutex.lock()
        if self.p.lease_contexts.size() > 64:
            # Only the latest matter: a worker has one lease at a time.
            self.p.lease_contexts.clear()
            self.p.lease_contexts[lease_id] = context
        self.mutex.unlock()
        return to_bytes(context)

    @property
    def nudges(self):
        return self.nudged

    def nudge(self):
        """Whoever waits in next_task() looks up: it returns None there."""
        self.mutex.lock()
        self.nudged += 1
        it = self.p.task_waiters.begin()
        while it != self.p.task_waiters.end():
            self.p.fire_all(deref(it).second[0])
            inc(it)
        self.wake_all()
        self.mutex.unlock()

    def next_task(self, str group="", double timeout=-1.0, int64_t nudges=-1):
        cdef string name = from_str(group)
        cdef Waiter w
        cdef Task task
        cdef shared_ptr[RunTask] run
        cdef uint64_t deadline = FOREVER if timeout < 0 else now_ns() + <uint64_t> (timeout * 1e9)
        cdef int r
        while True:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            r = FIRED
            self.mutex.lock()
            run = self.p.pop_run(name)
            if run.get() == NULL:
                if self.p.closing or (nudges >= 0 and self.nudged != nudges):
                    self.mutex.unlock()
                    return None
                it = self.p.task_waiters.find(name)
                if it == self.p.task_waiters.end():
                    self.p.task_waiters[name] = make_waiters()
                    it = self.p.task_waiters.find(name)
                deref(it).second.push_back(&w)
            self.mutex.unlock()
            if run.get() != NULL:
                task = Task.__new__(Task)
                task.run = run
                task.engine = self
                return task
            with nogil:
                self.mutex.lock()
                r = self.serve(&w, deadline, IDLE_SLICE_NS)
                forget_waiter_in(deref(self.p.task_waiters.find(name)).second[0], &w)
                self.mutex.unlock()
            if r == TIMED_OUT or r == ENDED:
                return None
            if r == LOOK:
                PyErr_CheckSignals()

    def take_tasks(self, str group=""):
        """What is queued now, without waiting. For an event loop."""
        cdef string name = from_str(group)
        cdef Task task
        cdef shared_ptr[RunTask] run
        out = []
        while True:
            self.mutex.lock()
            run = self.p.pop_run(name)
            self.mutex.unlock()
            if run.get() == NULL:
                return out
            task = Task.__new__(Task)
            task.run = run
            task.engine = self
            out.append(task)

    def begin(self, Task task):
        cdef RunTask* t = task.run.get()
        cdef bint ok
        cdef shared_ptr[RunTask] mine
        cdef uint64_t now = now_ns()
        if self.p.lease_is_over(now):
            self.await_lease()
            now = now_ns()
        self.mutex.lock()
        ok = t.phase == RUN_QUEUED or t.phase == RUN_WAITING
        if ok:
            t.phase = RUN_STARTED
            self.p.started += 1
            self.p.started_at = now
            t.started_ns = self.p.started_at
            if self.record != NULL:
                self.record.started += 1
                store_id(self.record.task, t.id)
                self.record.started_at_ns = self.p.started_at
                copy_text(self.record.name, 96, t.name.data(), t.name.size())
                if t.kind == 1:
                    store_id(self.record.actor, t.actor)
        self.mutex.unlock()
        if ok:
            mine = task.run
            current_run().swap(mine)
        return ok

    def set_current(self, Task task):
        """For an event loop, whose calls interleave on one thread: the task that runs from here on, or None."""
        cdef shared_ptr[RunTask] mine
        if task is not None:
            mine = task.run
        current_run().swap(mine)

    def reply(self, Task task, int status, results, uint32_t duration_us=0, uint32_t items=0):
        cdef RunTask* t = task.run.get()
        cdef Payload payload
        cdef size_t start, i, at
        cdef Peer* peer
        cdef Py_ssize_t n = len(results)
        cdef vector[Place] places
        cdef vector[vector[ContainedRef]] contains
        cdef Place place
        cdef Place nowhere
        cdef string body
        cdef size_t waiting
        cdef vector[uint64_t] sizes
        cdef uint64_t written = 0
        if self.p.restartable and self.p.lease_is_over(now_ns()):
            self.await_lease()
        contains.resize(<size_t> n)
        for i in range(<size_t> n):
            payload = results[i]
            sizes.push_back(payload.nbytes)
            if payload.refs:
                self.contained(payload, contains[i])
            if t.kind != 1 and payload.nbytes > self.inline_limit:
                try:
                    self.write_arena(payload, t.caller, place)
                except BaseException:
                    self.free_places(places)
                    self.settle(written)
                    raise
                written += payload.nbytes
                places.push_back(place)
            else:
                places.push_back(nowhere)
        for i in range(<size_t> n):
            # Bytes and references are gathered before the mutex: reading a Python buffer may run Python, and an iterator's allocation the collector.
            if not places[i].size:
                payload = results[i]
                at = body.size()
                body.resize(at + payload.nbytes)
                payload.write(body.data() + at)
        at = 0
        self.mutex.lock()
        self.p.now = now_ns()
        if t.phase != RUN_STARTED:
            self.mutex.unlock()
            self.free_places(places)
            self.settle(written)
            return
        peer = t.from_
        if t.kind == 1:
            if self.p.raylet != NULL:
                start = begin_frame(self.p.raylet[0], ACTOR_CREATED)
                put_id(self.p.raylet.out, t.actor)
                put8(self.p.raylet.out, 1 if status == STATUS_OK else 0)
                if status != STATUS_OK:
                    self.p.raylet.out.append(body)
                self.p.done(self.p.raylet, start)
            peer = self.p.raylet
        elif peer != NULL and peer.phase != CLOSED:
            start = begin_frame(peer[0], REPLY)
            put_id(peer.out, t.id)
            put32(peer.out, t.attempt)
            put8(peer.out, <uint8_t> status)
            put32(peer.out, duration_us)
            put32(peer.out, <uint32_t> n)
            for i in range(<size_t> n):
                if places[i].size:
                    put8(peer.out, 1)
                    put_id(peer.out, places[i].node)
                    put32(peer.out, places[i].slot)
                    put32(peer.out, places[i].generation)
                    put64(peer.out, places[i].size)
                else:
                    put8(peer.out, 0)
                    put32(peer.out, <uint32_t> sizes[i])
                    peer.out.append(body.data() + at, sizes[i])
                    at += sizes[i]
                self.p.put_contains(peer.out, contains[i], peer.who)
            self.p.put_borrowed(peer.out, t)
            put32(peer.out, items)
            self.p.done(peer, start)
            if written:
                self.p.pass_on(peer, written)
            t.answered_by = peer.number
            t.answered_at = peer.sequence_out
        else:
            for i in range(places.size()):
                if places[i].size:
                    self.p.free_place(places[i])
        self.p.started -= 1
        if self.history != NULL and not t.flags & UNRECORDED:
            remember_task(self.history, t[0], <uint8_t> status, self.p.now)
        if self.record != NULL:
            memset(self.record.task, 0, 16)
        self.p.end_run(task.run)
        waiting = self.p.runs.size()
        self.soon(peer, 0 if waiting == 0 else 3)
        self.mutex.unlock()
        if written:
            self.settle(written)
        if current_run().get() == t:
            current_run().reset()

    def answer_mark(self, Task task):
        """Where the answer of a call went, for `arrived`."""
        return task.run.get().answered_by, task.run.get().answered_at

    def arrived(self, bytes caller, uint64_t connection, uint64_t number):
        """Whether that frame is certain to have reached its caller, or nobody is there any more to ask again."""
        cdef Owner who
        cdef Peer* peer
        cdef bint certain
        who.worker = to_id(caller[:16])
        who.node = to_id(caller[16:])
        self.mutex.lock()
        certain = self.p.is_dead(who)
        peer = self.p.numbered_peer(connection)
        if not certain and peer != NULL and peer.phase != CLOSED:
            certain = peer.marks.empty() or peer.marks.front().first > number
        self.mutex.unlock()
        return certain

    def by_value(self, Task task):
        """A creation's Task with its arguments inside it, whoever owned them; empty when they were inside it before."""
        cdef RunTask* t = task.run.get()
        cdef RunDependency dep
        cdef Payload payload
        cdef string out
        cdef size_t i
        cdef bint outside = False
        for i in range(t.deps.size()):
            outside = outside or t.deps[i].entry
        if not outside:
            return b""
        whole, deps = task.load()
        values = dict(deps)
        put_id(out, t.id)
        put8(out, t.kind)
        put8(out, t.flags)
        put16(out, t.num_returns)
        put32(out, 0)
        put64(out, 0)
        put32(out, t.job)
        put_id(out, t.function)
        put_id(out, t.actor)
        put64(out, 0)
        put32(out, t.depth)
        put32(out, t.backpressure)
        put_str16(out, t.name)
        put_str16(out, t.method)
        put_str16(out, t.group)
        put_str32(out, t.args)
        put16(out, <uint16_t> t.deps.size())
        for i in range(t.deps.size()):
            dep = t.deps[i]
            value = whole if dep.position == ARGS_AS_OBJECT else values[dep.position]
            payload = Payload(value.kind, bytes(value.inband), value.buffers)
            put16(out, dep.position)
            put_object_id(out, dep.id)
            put_owner(out, self.p.me)
            put8(out, 0)
            put8(out, 0)
            put32(out, <uint32_t> payload.nbytes)
            payload.append_to(out)
            put32(out, 0)
        put_str32(out, t.extra)
        return to_bytes(out)

    def lent(self):
        """How many objects of this process others hold."""
        return self.p.lent

    def leave(self):
        """Tells the raylet that this worker takes no more tasks, and ends when nobody holds its objects."""
        self.mutex.lock()
        self.p.now = now_ns()
        self.p.tell_owns(self.p.told_owns | LEAVING)
        self.after()
        self.mutex.unlock()

    def keep_no_history(self):
        """From now on nothing that this process runs is recorded."""
        self.history = NULL

    def running(self):
        cdef vector[Id16] ids
        cdef size_t i
        self.mutex.lock()
        it = self.p.runs.begin()
        while it != self.p.runs.end():
            if deref(it).second.get().phase == RUN_STARTED:
                ids.push_back(deref(it).first)
            inc(it)
        self.mutex.unlock()
        return [id_bytes(ids[i]) for i in range(ids.size())]

    def cancel_children(self, bytes task_id):
        """Cancels what a task that runs here has started, and what that has started."""
        cdef Id16 id = to_id(task_id)
        self.mutex.lock()
        self.p.now = now_ns()
        self.p.cancel_children(id, False)
        self.after()
        self.mutex.unlock()

    def set_last_words(self, str text):
        cdef string words = from_str(text)
        if self.record != NULL:
            copy_text(self.record.last_words, 96, words.data(), words.size())
