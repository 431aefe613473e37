cdef class Control(Streaming):
    """Calls to the raylet and through it, events for the control thread, counts."""

    cdef uint64_t send_call(self, bytes method, bytes payload, uint32_t timeout_ms, Waiter* w) noexcept:
        cdef Call call
        cdef uint64_t number
        cdef size_t start
        cdef Peer* raylet = self.p.raylet
        if raylet == NULL:
            return 0
        self.p.call_counter += 1
        number = self.p.call_counter
        call.waiter = w
        call.method = string(PyBytes_AS_STRING(method), PyBytes_GET_SIZE(method))
        self.p.calls[number] = call
        start = begin_frame(raylet[0], CALL)
        put64(raylet.out, number)
        put32(raylet.out, timeout_ms)
        put_str16(raylet.out, call.method)
        raylet.out.append(PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        self.p.done(raylet, start)
        self.after()
        return number

    def call(self, str method, bytes payload, double timeout=30.0):
        cdef Waiter w
        cdef uint64_t number
        cdef uint16_t code
        cdef string answer
        cdef bytes name = method.encode()
        self.check()
        self.mutex.lock()
        self.p.now = now_ns()
        number = self.send_call(name, payload, <uint32_t> (timeout * 1000) if timeout > 0 else 0, &w)
        if number:
            self.block(True)
        self.mutex.unlock()
        if not number:
            raise ConnectionError("the connection to this node's raylet has ended")
        try:
            self.wait_for(&w, timeout + 1 if timeout >= 0 else -1, f"the answer to {method}")
        finally:
            self.mutex.lock()
            self.block(False)
            it = self.p.calls.find(number)
            if it != self.p.calls.end():
                code = deref(it).second.code
                answer = deref(it).second.payload
                self.p.calls.erase(number)
            else:
                code = 14
            self.mutex.unlock()
        if code:
            raise CallError(code, to_str(answer))
        return to_bytes(answer)

    def call_async(self, str method, bytes payload):
        cdef bytes name = method.encode()
        self.check()
        self.mutex.lock()
        self.p.now = now_ns()
        self.send_call(name, payload, 30000, NULL)
        self.mutex.unlock()

    def next_event(self):
        cdef Waiter w
        cdef Event e
        cdef bint got = False
        while True:
            memset(&w, 0, sizeof(Waiter))
            w.remaining = 1
            self.mutex.lock()
            if not self.p.events.empty():
                e = self.p.events.front()
                self.p.events.pop_front()
                got = True
            elif not self.p.closing:
                self.p.event_waiters.push_back(&w)
            self.mutex.unlock()
            if got:
                break
            if self.closed or self.p.closing:
                return None
            with nogil:
                self.park(&w, IDLE_SLICE_NS)
            self.mutex.lock()
            forget_waiter_in(self.p.event_waiters, &w)
            self.mutex.unlock()
        if e.kind == EVENT_CHANNEL:
            return "event", to_str(e.text), to_bytes(e.payload)
        if e.kind == EVENT_SUBSCRIBE:
            return "subscribe", to_str(e.text)
        if e.kind == EVENT_CONNECT:
            return "connect", e.number, to_str(e.text), id_bytes(e.a)
        if e.kind == EVENT_LEASE_BEGIN:
            return "lease_begin", e.number, to_bytes(e.payload)
        if e.kind == EVENT_EXIT:
            return "exit", bool(e.number), to_str(e.text)
        if e.kind == EVENT_ACTOR_OUT_OF_SCOPE:
            return "actor_out_of_scope", id_bytes(e.a)
        if e.kind == EVENT_RAYLET_LOST:
            return "raylet_lost", to_str(e.text)
        if e.kind == EVENT_NODE_ADDRESS:
            return "node_address", id_bytes(e.a)
        if e.kind == EVENT_CANCEL:
            return "cancel", id_bytes(e.a), bool(e.number)
        if e.kind == EVENT_PUT_OFF:
            return "put_off", e.number, to_str(e.text), to_str(e.payload)
        return "call_failed", to_str(e.text), e.number, to_str(e.payload)

    def set_cancel_handler(self, fn):
        self.cancel_handler = fn

    @property
    def on_cancel(self):
        return self.cancel_handler

    def system_calls(self):
        """How many of each kind this process's engine has made so far: a dict, see system_calls.h."""
        return {name: count_of(i) for i, name in enumerate(SYSTEM_CALLS)}

    def queued(self):
        """Tasks that wait for a worker."""
        cdef size_t i
        cdef uint64_t queued = 0
        self.mutex.lock()
        for i in range(self.p.classes.size()):
            queued += self.p.classes[i].ready.size()
        self.mutex.unlock()
        return queued

    def stats(self):
        """Counts for tests and the state API."""
        cdef size_t i
        cdef uint64_t owned = 0, borrowed = 0, pending = 0, inline_bytes = 0, leases = 0, queued = 0, in_flight = 0, connections = 0, arena_bytes = 0
        cdef Entry* e
        self.mutex.lock()
        it = self.p.entries.begin()
        while it != self.p.entries.end():
            e = &deref(it).second
            if e.owned:
                owned += 1
            else:
                borrowed += 1
            if e.state == PENDING:
                pending += 1
            elif e.state == INLINE and e.value.get() != NULL:
                inline_bytes += e.value.get().size()
            elif e.state == IN_ARENA and e.owned:
                arena_bytes += e.place.size
            inc(it)
        for i in range(self.p.classes.size()):
            leases += self.p.classes[i].leases.size()
            queued += self.p.classes[i].ready.size()
        for i in range(self.p.all_peers.size()):
            if self.p.all_peers[i].phase == OPEN:
                connections += 1
        in_flight = self.p.tasks.size()
        submitted, completed, retried, runs = self.p.submitted, self.p.completed, self.p.retried, self.p.runs.size()
        resumed, peers, streams = self.p.resumed, self.p.all_peers.size(), self.p.streams.size()
        kept, kept_bytes, remade = self.p.lineage.size(), self.p.lineage_bytes, self.p.remade
        self.mutex.unlock()
        return {"owned": owned, "borrowed": borrowed, "pending": pending, "inline_bytes": inline_bytes, "arena_bytes": arena_bytes, "leases": leases,
                "queued": queued, "tasks": in_flight, "connections": connections, "submitted": submitted, "completed": completed, "retried": retried,
                "running": runs, "resumed": resumed, "peers": peers, "streams": streams,
                "lineage": kept, "lineage_bytes": kept_bytes, "remade": remade, "allowances_asked": self.asked}
