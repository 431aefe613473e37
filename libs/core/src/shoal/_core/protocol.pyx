# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The core worker's protocol: ownership, leases, actors and execution, without a socket, a clock or the GIL.

Frames come in by `on_frame`, time by `now`; frames go out into each peer's `out`, and everything else that the world must do is left in lists
for the shell (`engine.pyx`): connections to open, waiters to wake, events for Python, arena slots to free. The shell holds one lock around every call.
"""
from cython.operator cimport dereference as deref, preincrement as inc
from libc.math cimport fabs
from libc.string cimport memcpy
from shoal._core.state cimport *
from shoal._core.std cimport deque, shared_ptr, string, unordered_map, vector

# Limits and times, each with its reason.
cdef enum:
    IDLE_LEASE_NS = 50_000_000          # an idle worker is worth more to somebody else
    HAND_BACK_NS = 10_000_000           # what waited this long behind a running task is better off elsewhere
    PIPELINE_US = 2_000                 # work to keep ahead at a worker: hides the round trip, little enough to rebalance
    PIPELINE_MOST = 256
    WANT_MOST = 4096                    # more wishes than this tell the raylet nothing
    DEATH_NOTICE_NS = 1_000_000_000     # how long a closed connection waits for the raylet to say why

    OF_ACTOR = 0x8000

def records():
    """The layout of the records that this extension was built with."""
    return layout()


cdef Id16 NIL
cdef string EMPTY


cdef class Protocol:
    def __cinit__(self):
        self.raylet = NULL
        self.store = NULL
        self.ordered_runs = True

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.all_peers.size()):
            free_peer(self.all_peers[i])
        for i in range(self.classes.size()):
            free_class(self.classes[i])

    # -- peers ------------------------------------------------------------------------------------------------------------------

    cdef Peer* new_peer(self) noexcept nogil:
        cdef Peer* peer = make_peer()
        self.all_peers.push_back(peer)
        return peer

    cdef Peer* peer_to(self, const Owner& who) noexcept nogil:
        """The connection on which this process speaks to `who`; opened by the shell when it is new."""
        it = self.peers.find(who.worker)
        if it != self.peers.end():
            return deref(it).second
        cdef Peer* peer = self.new_peer()
        peer.who = who
        peer.identified = True
        peer.outgoing = True
        peer.remote = not (who.node == self.me.node)
        self.peers[who.worker] = peer
        if self.dead_workers.count(who.worker) or self.dead_nodes.count(who.node):
            peer.phase = CLOSED
            peer.gone = True
            self.peers.erase(who.worker)
        else:
            self.hello(peer)
            self.to_connect.push_back(peer)
        return peer

    cdef void touch(self, Peer* peer) noexcept nogil:
        if not peer.dirty:
            peer.dirty = True
            self.dirty.push_back(peer)

    cdef void done(self, Peer* peer, size_t start) noexcept nogil:
        end_frame(peer[0], start)
        self.touch(peer)

    cdef void flush_deltas(self, Peer* peer) noexcept nogil:
        cdef size_t start
        if peer.n_deltas:
            start = begin_frame(peer[0], REF_DELTA)
            put32(peer.out, peer.n_deltas)
            peer.out.append(peer.deltas)
            end_frame(peer[0], start)
            peer.deltas.clear()
            peer.n_deltas = 0

    cdef void hello(self, Peer* peer) noexcept nogil:
        cdef size_t start = begin_frame(peer[0], HELLO)
        put_id(peer.out, self.me.worker)
        put_id(peer.out, self.me.node)
        put32(peer.out, self.job)
        put32(peer.out, self.pid)
        put8(peer.out, WIRE_VERSION)
        put8(peer.out, WIRE_VERSION)
        put8(peer.out, self.python_major)
        put8(peer.out, self.python_minor)
        put8(peer.out, self.kind)
        self.done(peer, start)

    cdef void on_acknowledged(self, Peer* peer, uint64_t sequence) noexcept nogil:
        while not peer.marks.empty() and peer.marks.front().first <= sequence:
            peer.acked_offset = peer.marks.front().second
            peer.marks.pop_front()

    cdef int on_frame(self, Peer* peer, uint8_t type, const char* data, size_t size) noexcept nogil:
        """One frame. -1 when it is broken: the connection must end."""
        cdef Reader r = Reader(data, size)
        cdef Owner who
        cdef Id16 a, b
        cdef uint64_t number
        cdef uint16_t code
        cdef size_t start
        cdef string text
        cdef Waiter* waiter
        if type == TASK:
            self.on_task(peer, r, False)
        elif type == REPLY:
            self.on_reply(peer, r)
        elif type == HELLO:
            who.worker = r.id()
            who.node = r.id()
            r.u32()
            r.u32()
            if r.u8() > WIRE_VERSION or r.u8() < WIRE_VERSION:
                return -1
            r.u8()
            r.u8()
            peer.kind = r.u8()
            if not peer.identified:
                peer.who = who
                peer.identified = True
                peer.remote = not (who.node == self.me.node)
                if peer.kind <= 1 and not self.peers.count(who.worker):
                    self.peers[who.worker] = peer
        elif type == REF_DELTA:
            self.on_ref_delta(peer, r)
        elif type == GET:
            self.on_get(peer, r)
        elif type == GOT:
            self.on_got(peer, r)
        elif type == HANDBACK:
            self.on_handback(peer, r)
        elif type == CANCEL:
            self.on_cancel(peer, r)
        elif type == ITEM:
            self.on_item(peer, r)
        elif type == ITEM_ACK:
            a = r.id()
            number = r.u32()
            run = self.runs.find(a)
            if run != self.runs.end():
                deref(run).second.get().consumed = <uint32_t> number
                while not deref(run).second.get().item_waiters.empty():
                    waiter = deref(run).second.get().item_waiters.back()
                    deref(run).second.get().item_waiters.pop_back()
                    self.fire(waiter)
        elif type == LOCATION:
            self.on_location(peer, r)
        elif type == PING:
            number = r.u64()
            start = begin_frame(peer[0], PONG)
            put64(peer.out, number)
            self.done(peer, start)
        elif type == LEASE_GRANT and peer == self.raylet:
            self.on_grant(r)
        elif type == LEASE_REFUSED and peer == self.raylet:
            self.on_refused(r)
        elif type == LEASE_RECLAIM and peer == self.raylet:
            self.on_reclaim(r)
        elif type == LEASE_BEGIN and peer == self.raylet:
            number = r.u64()
            text = r.rest()
            self.lease_contexts[number] = text
            while not self.lease_waiters.empty():
                waiter = self.lease_waiters.back()
                self.lease_waiters.pop_back()
                self.fire(waiter)
            self.emit(EVENT_LEASE_BEGIN, number, NIL, EMPTY, text)
        elif type == WORKER_DIED and peer == self.raylet:
            a = r.id()
            r.id()
            b = r.id()
            code = r.u16()
            text = r.rest()
            self.worker_died(a, b, True, code, text)
        elif type == NODE_DIED and peer == self.raylet:
            a = r.id()
            text = r.rest()
            self.node_died(a, text)
        elif type == ACTOR_CREATE and peer == self.raylet:
            self.on_task(peer, r, True)
        elif type == EXIT and peer == self.raylet:
            number = r.u8()
            self.emit(EVENT_EXIT, number, NIL, r.rest(), EMPTY)
        elif type == RESULT and peer == self.raylet:
            number = r.u64()
            code = r.u16()
            call = self.calls.find(number)
            if call != self.calls.end():
                deref(call).second.code = code
                text = r.rest()
                if deref(call).second.waiter != NULL:
                    deref(call).second.done = True
                    deref(call).second.payload.swap(text)
                    self.fire(deref(call).second.waiter)
                else:
                    if code:
                        self.emit(EVENT_CALL_FAILED, code, NIL, deref(call).second.method, text)
                    self.calls.erase(number)
        elif type == EVENT and peer == self.raylet:
            text = r.str16()
            self.emit(EVENT_CHANNEL, 0, NIL, text, r.rest())
        elif type == EXTENT_GRANT and peer == self.store:
            number = r.u64()
            call = self.calls.find(number)
            if call != self.calls.end() and deref(call).second.waiter != NULL:
                deref(call).second.code = r.u16()
                deref(call).second.payload = r.rest()
                deref(call).second.done = True
                self.fire(deref(call).second.waiter)
        elif type == PULLED and peer == self.store:
            self.on_pulled(r)
        # ACK, PONG, BYE and what a newer side may add need no answer.
        return 0 if r.ok else -1

    cdef void on_closed(self, Peer* peer) noexcept nogil:
        """The connection ended. Who was behind it is judged when the raylet says so, or after a second."""
        if peer.phase == CLOSED:
            return
        peer.phase = CLOSED
        peer.closed_ns = self.now
        peer.out.clear()
        peer.marks.clear()
        if peer == self.raylet:
            self.raylet_lost()
            return
        if peer == self.store:
            self.store_lost()
            return
        self.closed.push_back(peer)

    cdef void store_lost(self) noexcept nogil:
        """The store's process ended; its supervisor starts it again and the shell reconnects. Questions are asked again then."""
        cdef vector[uint64_t] pulls
        cdef vector[ObjectId] wanted
        cdef size_t i
        cdef Entry* e
        self.store = NULL
        call = self.calls.begin()
        while call != self.calls.end():
            if deref(call).second.waiter == NULL and deref(call).second.method.size() == 20:
                pulls.push_back(deref(call).first)
                e = find_entry(self.entries, load_object_id(deref(call).second.method.data()))
                if e != NULL:
                    e.pulling = False
                    wanted.push_back(e.id)
            elif deref(call).second.waiter != NULL and deref(call).second.method.empty():
                deref(call).second.code = CODE_UNREACHABLE
                deref(call).second.done = True
                self.fire(deref(call).second.waiter)
            inc(call)
        for i in range(pulls.size()):
            self.calls.erase(pulls[i])
        for i in range(wanted.size()):
            self.interrupted_pulls.push_back(wanted[i])

    cdef void store_found(self) noexcept nogil:
        cdef vector[ObjectId] again
        cdef Entry* e
        cdef size_t i
        again.swap(self.interrupted_pulls)
        for i in range(again.size()):
            e = find_entry(self.entries, again[i])
            if e != NULL:
                self.pull(e)

    cdef void fire(self, Waiter* waiter) noexcept nogil:
        waiter.remaining -= 1
        if waiter.remaining <= 0 and not waiter.fired:
            waiter.fired = 1
            store_release(&waiter.wake, 1)
            self.woken.push_back(waiter)

    cdef void emit(self, uint8_t kind, uint64_t number, const Id16& a, const string& text, const string& payload) noexcept nogil:
        cdef Event event
        cdef Waiter* waiter
        event.kind = kind
        event.number = number
        event.a = a
        event.text = text
        event.payload = payload
        self.events.push_back(event)
        while not self.event_waiters.empty():
            waiter = self.event_waiters.back()
            self.event_waiters.pop_back()
            self.fire(waiter)

    # -- objects ----------------------------------------------------------------------------------------------------------------

    cdef Entry* own(self, const ObjectId& id) noexcept nogil:
        cdef Entry* e = make_entry(self.entries, id)
        e.owned = True
        e.owner = self.me
        return e

    cdef Entry* borrow(self, const ObjectId& id, const Owner& owner) noexcept nogil:
        """The entry for a reference that came from outside; nothing is counted yet."""
        cdef Entry* e = find_entry(self.entries, id)
        if e != NULL:
            return e
        e = make_entry(self.entries, id)
        e.owner = owner
        if owner.worker == self.me.worker:
            e.owned = True
            self.fail_object(e, CODE_OBJECT_FREED, string(b"its owner has already freed it: the reference outlived every count"), EMPTY)
        return e

    cdef void drop_local(self, const ObjectId& id) noexcept nogil:
        cdef Entry* e = find_entry(self.entries, id)
        if e == NULL:
            return
        e.local -= 1
        if e.local == 0 and e.holds == 0:
            self.drops.push_back(id)
            self.settle_drops()

    cdef void drop_hold(self, const ObjectId& id) noexcept nogil:
        cdef Entry* e = find_entry(self.entries, id)
        if e == NULL:
            return
        e.holds -= 1
        if e.local == 0 and e.holds == 0:
            self.drops.push_back(id)
            self.settle_drops()

    cdef void settle_drops(self) noexcept nogil:
        """Frees what nobody counts. A list and not recursion: objects may contain references a million deep."""
        cdef Entry* e
        cdef ObjectId id
        if self.dropping:
            return
        self.dropping = True
        while not self.drops.empty():
            id = self.drops.back()
            self.drops.pop_back()
            e = find_entry(self.entries, id)
            if e != NULL and e.local == 0 and e.holds == 0 and not has_rows(e[0]):
                self.free_entry(e)
        self.dropping = False

    cdef void free_entry(self, Entry* e) noexcept nogil:
        cdef size_t i
        cdef vector[ContainedRef] contains
        cdef ObjectId id = e.id
        cdef ObjectId inner
        if e.owned:
            if e.state == IN_ARENA:
                self.free_place(e.place)
            for i in range(e.copies.size()):
                self.free_place(e.copies[i])
            if e.is_actor_handle:
                self.emit(EVENT_ACTOR_OUT_OF_SCOPE, 0, id.task, EMPTY, EMPTY)
        elif e.registrations:
            self.register(id, e.owner, self.me, -e.registrations)
        contains.swap(e.contains)
        self.entries.erase(id)
        for i in range(contains.size()):
            inner = contains[i].id
            self.drop_hold(inner)

    cdef void free_place(self, const Place& place) noexcept nogil:
        cdef size_t start
        if place.node == self.me.node:
            self.arena_frees.push_back(place)
            return
        if self.store == NULL or self.dead_nodes.count(place.node):
            return
        start = begin_frame(self.store[0], FREE)
        put_id(self.store.out, place.node)
        put32(self.store.out, 1)
        put32(self.store.out, place.slot)
        put32(self.store.out, place.generation)
        put_str16(self.store.out, self.addresses[place.node])
        self.done(self.store, start)

    cdef void register(self, const ObjectId& id, const Owner& owner, const Owner& receiver, int32_t delta) noexcept nogil:
        """Changes the row (id, receiver) at the owner. Nothing to do when the receiver is the owner."""
        cdef Entry* e
        cdef Peer* peer
        if receiver.worker == owner.worker:
            return
        if owner.worker == self.me.worker:
            e = find_entry(self.entries, id)
            if e == NULL:
                return
            if self.dead_workers.count(receiver.worker):
                return  # its row has gone with it; what it had still sent may come after the news of its end
            change_row(e[0], receiver.worker, delta)
            if e.local == 0 and e.holds == 0 and not has_rows(e[0]):
                self.drops.push_back(id)
                self.settle_drops()
            return
        peer = self.peer_to(owner)
        put_object_id(peer.deltas, id)
        put_id(peer.deltas, receiver.worker)
        put32(peer.deltas, <uint32_t> delta)
        peer.n_deltas += 1
        self.touch(peer)

    cdef void put_contains(self, string& out, vector[ContainedRef]& refs, const Owner& receiver) noexcept nogil:
        cdef size_t i
        put32(out, <uint32_t> refs.size())
        for i in range(refs.size()):
            put_object_id(out, refs[i].id)
            put_owner(out, refs[i].owner)
            self.register(refs[i].id, refs[i].owner, receiver, 1)

    cdef void put_object(self, string& out, Entry* e, const Owner& receiver) noexcept nogil:
        if e.state == INLINE:
            put8(out, 0)
            put_str32(out, e.value.get()[0])
        elif e.state == IN_ARENA:
            put8(out, 1)
            put_id(out, e.place.node)
            put32(out, e.place.slot)
            put32(out, e.place.generation)
            put64(out, e.place.size)
        else:
            put8(out, 2)
            if e.failure.get() == NULL:
                put16(out, CODE_OBJECT_LOST)
                put_str16(out, EMPTY)
                put_str32(out, EMPTY)
            else:
                put16(out, e.failure.get().code)
                put_str16(out, e.failure.get().name)
                put_str32(out, e.failure.get().message)
        self.put_contains(out, e.contains, receiver)

    cdef void read_object(self, Reader& r, Arrived& a) noexcept nogil:
        """Reads an object and counts the references inside it as held by it."""
        cdef uint8_t place = r.u8()
        cdef uint32_t n, i
        cdef ContainedRef c
        cdef Entry* e
        a.contains.clear()
        if place == 0:
            a.state = INLINE
            n = r.u32()
            if r.left() < n:
                r.ok = False
                n = 0
            a.value = make_bytes(r.p, n)
            r.p += n
        elif place == 1:
            a.state = IN_ARENA
            a.place.node = r.id()
            a.place.slot = r.u32()
            a.place.generation = r.u32()
            a.place.size = r.u64()
        else:
            a.state = FAILED
            a.code = r.u16()
            a.name = r.str16()
            a.message = r.str32()
        n = r.u32()
        if <uint64_t> n * 52 > r.left():
            r.ok = False
            n = 0
        for i in range(n):
            c.id = r.oid()
            c.owner = r.owner()
            e = self.borrow(c.id, c.owner)
            e.holds += 1
            if not e.owned:
                e.registrations += 1
            a.contains.push_back(c)

    cdef void discard(self, Arrived& a) noexcept nogil:
        cdef size_t i
        for i in range(a.contains.size()):
            self.drop_hold(a.contains[i].id)
        a.contains.clear()

    cdef void apply(self, Entry* e, Arrived& a) noexcept nogil:
        e.state = a.state
        e.asked = False
        if a.state == INLINE:
            e.value = a.value
        elif a.state == IN_ARENA:
            e.place = a.place
        else:
            fail_entry(e[0], a.code, a.message, a.name)
        e.contains.swap(a.contains)
        self.on_ready(e)

    cdef void fail_object(self, Entry* e, uint16_t code, const string& message, const string& name) noexcept nogil:
        fail_entry(e[0], code, message, name)
        e.pulling = False
        self.on_ready(e)

    cdef bint is_local(self, Entry* e) noexcept nogil:
        return e.state == INLINE or e.state == FAILED or (e.state == IN_ARENA and (e.has_copy or e.place.node == self.me.node))

    cdef void on_ready(self, Entry* e) noexcept nogil:
        """The state changed from pending, or a copy came near. Tells everybody who waits and may go on."""
        cdef bint near = self.is_local(e)
        cdef size_t i
        cdef vector[EntryWaiter] waiters
        cdef vector[shared_ptr[TaskState]] dependants
        cdef vector[shared_ptr[RunTask]] runs
        cdef vector[Peer*] getters
        cdef size_t start
        cdef ObjectId id = e.id
        e.holds += 1  # whoever is told may drop the last count
        waiters.swap(e.waiters)
        for i in range(waiters.size()):
            if near or not waiters[i].need_local:
                self.fire(waiters[i].waiter)
            else:
                e.waiters.push_back(waiters[i])
        for i in range(e.callbacks.size()):
            self.callbacks.push_back(e.callbacks[i])
        if not e.callbacks.empty():
            e.callbacks.clear()
            for i in range(self.callback_waiters.size()):
                self.fire(self.callback_waiters[i])
            self.callback_waiters.clear()
        getters.swap(e.getters)
        for i in range(getters.size()):
            start = begin_frame(getters[i][0], GOT)
            put_object_id(getters[i].out, id)
            self.put_object(getters[i].out, e, getters[i].who)
            self.done(getters[i], start)
        if near:
            runs.swap(e.run_dependants)
            for i in range(runs.size()):
                runs[i].get().missing -= 1
                self.run_ready(runs[i])
        elif not e.run_dependants.empty() or not e.waiters.empty():
            self.pull(e)
        dependants.swap(e.dependants)
        for i in range(dependants.size()):
            self.dependency_ready(dependants[i])
        self.drop_hold(id)

    cdef void ask(self, Entry* e) noexcept nogil:
        """A borrowed object that is wanted: the owner answers once it is ready."""
        cdef Peer* peer
        cdef size_t start
        if e.owned or e.asked or e.state != PENDING:
            return
        dead = self.dead_workers.find(e.owner.worker)
        if dead != self.dead_workers.end():
            self.fail_object(e, CODE_OWNER_DIED, deref(dead).second, EMPTY)
            return
        gone = self.dead_nodes.find(e.owner.node)
        if gone != self.dead_nodes.end():
            self.fail_object(e, CODE_OWNER_DIED, deref(gone).second, EMPTY)
            return
        e.asked = True
        peer = self.peer_to(e.owner)
        start = begin_frame(peer[0], GET)
        put32(peer.out, 1)
        put_object_id(peer.out, e.id)
        self.done(peer, start)

    cdef void pull(self, Entry* e) noexcept nogil:
        """A copy of what lies on another node, by the node's store."""
        cdef size_t start
        cdef uint64_t id
        cdef Call call
        if e.pulling or self.is_local(e) or e.state != IN_ARENA:
            return
        if self.store == NULL:
            self.interrupted_pulls.push_back(e.id)
            return
        if self.dead_nodes.count(e.place.node):
            self.fail_object(e, CODE_OBJECT_LOST, string(b"the node that held it died"), EMPTY)
            return
        it = self.addresses.find(e.place.node)
        if it == self.addresses.end():
            self.emit(EVENT_NODE_ADDRESS, 0, e.place.node, EMPTY, EMPTY)
            return
        e.pulling = True
        self.call_counter += 1
        id = self.call_counter
        start = begin_frame(self.store[0], PULL)
        put64(self.store.out, id)
        put_object_id(self.store.out, e.id)
        put64(self.store.out, e.place.size)
        put_id(self.store.out, e.place.node)
        put32(self.store.out, e.place.slot)
        put32(self.store.out, e.place.generation)
        put_str16(self.store.out, deref(it).second)
        self.done(self.store, start)
        call.method.resize(20)
        store_object_id(call.method.data(), e.id)
        self.calls[id] = call

    cdef void on_pulled(self, Reader& r) noexcept nogil:
        cdef uint64_t number = r.u64()
        cdef uint16_t code = r.u16()
        cdef uint32_t slot = r.u32()
        cdef uint32_t generation = r.u32()
        cdef ObjectId id
        cdef Entry* e
        cdef Peer* peer
        cdef size_t start
        call = self.calls.find(number)
        if call == self.calls.end():
            return
        id = load_object_id(deref(call).second.method.data())
        self.calls.erase(number)
        e = find_entry(self.entries, id)
        if e == NULL or e.state != IN_ARENA:
            return
        e.pulling = False
        if code:
            self.fail_object(e, CODE_OBJECT_LOST, r.rest(), EMPTY)
            return
        e.has_copy = True
        e.copy.node = self.me.node
        e.copy.slot = slot
        e.copy.generation = generation
        e.copy.size = e.place.size
        if e.owned:
            e.copies.push_back(e.copy)
        else:
            peer = self.peer_to(e.owner)
            start = begin_frame(peer[0], LOCATION)
            put_object_id(peer.out, id)
            put_id(peer.out, self.me.node)
            put32(peer.out, slot)
            put32(peer.out, generation)
            put64(peer.out, e.place.size)
            self.done(peer, start)
        self.on_ready(e)

    cdef void on_get(self, Peer* peer, Reader& r) noexcept nogil:
        cdef uint32_t n = r.u32()
        cdef uint32_t i
        cdef ObjectId id
        cdef Entry* e
        cdef size_t start
        if <uint64_t> n * 20 > r.left():
            r.ok = False
            return
        for i in range(n):
            id = r.oid()
            e = find_entry(self.entries, id)
            if e != NULL and e.state == PENDING:
                e.getters.push_back(peer)
                continue
            start = begin_frame(peer[0], GOT)
            put_object_id(peer.out, id)
            if e == NULL:
                put8(peer.out, 2)
                put16(peer.out, CODE_OBJECT_FREED)
                put_str16(peer.out, EMPTY)
                put_str32(peer.out, string(b"its owner has already freed it"))
                put32(peer.out, 0)
            else:
                self.put_object(peer.out, e, peer.who)
            self.done(peer, start)

    cdef void on_got(self, Peer* peer, Reader& r) noexcept nogil:
        cdef ObjectId id = r.oid()
        cdef Arrived a
        cdef Entry* e
        self.read_object(r, a)
        e = find_entry(self.entries, id)
        if e == NULL or e.state != PENDING or not r.ok:
            self.discard(a)
        else:
            self.apply(e, a)

    cdef void on_ref_delta(self, Peer* peer, Reader& r) noexcept nogil:
        cdef uint32_t n = r.u32()
        cdef uint32_t i
        cdef ObjectId id
        cdef Owner receiver
        cdef int32_t delta
        if <uint64_t> n * 40 > r.left():
            r.ok = False
            return
        for i in range(n):
            id = r.oid()
            receiver.worker = r.id()
            delta = r.i32()
            self.register(id, self.me, receiver, delta)

    cdef void on_location(self, Peer* peer, Reader& r) noexcept nogil:
        cdef ObjectId id = r.oid()
        cdef Place place
        cdef Entry* e
        place.node = r.id()
        place.slot = r.u32()
        place.generation = r.u32()
        place.size = r.u64()
        e = find_entry(self.entries, id)
        if e == NULL:
            self.free_place(place)
        else:
            e.copies.push_back(place)

    # -- submitting -------------------------------------------------------------------------------------------------------------

    cdef Id16 new_task_id(self) noexcept nogil:
        cdef Id16 id
        self.task_counter += 1
        id.low = self.task_prefix
        id.high = self.task_counter
        return id

    cdef uint32_t class_of(self, const string& spec) noexcept nogil:
        cdef LeaseClass* c
        it = self.class_numbers.find(spec)
        if it != self.class_numbers.end():
            return deref(it).second
        c = make_class()
        c.id = <uint32_t> self.classes.size()
        c.spec = spec
        self.classes.push_back(c)
        self.class_numbers[spec] = c.id
        return c.id

    cdef void submit(self, shared_ptr[TaskState] task) noexcept nogil:
        """Takes a task whose return entries exist. Holds its references until its end, and queues it once its dependencies are ready."""
        cdef TaskState* t = task.get()
        cdef Entry* e
        cdef size_t i
        self.submitted += 1
        self.tasks[t.id] = task
        if t.kind == 2 and find_entry(self.entries, object_id(t.actor, 0xFFFFFFFFU)) != NULL:
            t.holds.push_back(object_id(t.actor, 0xFFFFFFFFU))  # a call keeps its actor alive, when the last handle goes meanwhile
        for i in range(t.holds.size()):
            e = find_entry(self.entries, t.holds[i])
            if e != NULL:
                e.holds += 1
        t.missing = 1
        for i in range(t.deps.size()):
            e = find_entry(self.entries, t.deps[i].id)
            if e != NULL and e.state == PENDING:
                t.missing += 1
                e.dependants.push_back(task)
                self.ask(e)
        if t.kind == 2:
            a = self.actor(t.actor)
            a.pending += 1
            if a.ordered and a.phase != ACTOR_DEAD:
                a.queue.push_back(task)
        self.dependency_ready(task)

    cdef void dependency_ready(self, shared_ptr[TaskState] task) noexcept nogil:
        cdef TaskState* t = task.get()
        t.missing -= 1
        if t.missing == 0 and t.phase == WAITING:
            if self.failed_dependency(t):
                return
            t.phase = QUEUED
            self.enqueue(task)

    cdef bint failed_dependency(self, TaskState* t) noexcept nogil:
        """A task whose argument failed fails with that very error, without a worker."""
        cdef size_t i
        cdef Entry* e
        cdef Bytes value
        cdef uint32_t k
        cdef Arrived a
        cdef shared_ptr[TaskState] task
        for i in range(t.deps.size()):
            e = find_entry(self.entries, t.deps[i].id)
            if e == NULL:
                continue
            if e.state == FAILED and e.failure.get() != NULL:
                self.fail_task(self.tasks[t.id], e.failure.get().code, e.failure.get().message)
                return True
            if e.state == INLINE and e.value.get().size() and e.value.get().data()[0] == 3:
                a.state = INLINE
                a.value = e.value
                task = self.tasks[t.id]
                if t.flags & STREAMING:
                    self.end_stream(t, STATUS_RAISED, 0, &a)
                else:
                    for k in range(1, t.num_returns + 1):
                        e = find_entry(self.entries, object_id(t.id, k))
                        if e != NULL:
                            a.state = INLINE
                            self.apply(e, a)
                self.finish(task)
                return True
        return False

    cdef void enqueue(self, shared_ptr[TaskState] task) noexcept nogil:
        cdef TaskState* t = task.get()
        cdef ActorState* a
        if t.kind == 0:
            self.classes[t.lease_class].ready.push_back(task)
            self.pump(self.classes[t.lease_class])
            return
        a = self.actor(t.actor)
        if a.phase == ACTOR_DEAD:
            self.fail_actor_task(a, task, a.code, a.cause)
            return
        if not a.ordered:
            a.queue.push_back(task)
        self.drain_actor(a)

    cdef uint32_t depth(self, LeaseClass* c) noexcept nogil:
        cdef double n
        if c.mean_us < 0 or (c.mean_us > 200 and c.deviation_us > 2 * c.mean_us):
            return 1
        n = PIPELINE_US / (c.mean_us + 1)
        if n < 1:
            return 1
        return PIPELINE_MOST if n > PIPELINE_MOST else <uint32_t> n

    cdef void pump(self, LeaseClass* c) noexcept nogil:
        """Sends what is ready to the leases that have room, the emptiest first; tells the raylet how many more are wished."""
        cdef uint32_t depth = self.depth(c)
        cdef size_t i
        cdef Lease* best
        cdef Lease* lease
        cdef shared_ptr[TaskState] task
        cdef TaskState* t
        while not c.ready.empty():
            t = c.ready.front().get()
            if t.phase != QUEUED:
                c.ready.pop_front()
                continue
            best = NULL
            for i in range(c.leases.size()):
                lease = c.leases[i]
                if lease.reclaimed or lease.stalled or lease.in_flight.size() >= depth or lease.peer.phase == CLOSED:
                    continue
                if best == NULL or lease.in_flight.size() < best.in_flight.size():
                    best = lease
                    if best.in_flight.empty():
                        break
            if best == NULL:
                break
            task = c.ready.front()
            c.ready.pop_front()
            best.in_flight.push_back(task)
            t.phase = SENT
            t.lease = best
            self.send_task(best.peer, t, best.id, 0)
        self.demand(c)

    cdef void demand(self, LeaseClass* c) noexcept nogil:
        """`want` follows the queue; small changes downwards are not worth a frame."""
        cdef uint64_t want = c.ready.size()
        cdef size_t start
        if want > WANT_MOST:
            want = WANT_MOST
        if want == c.want or (want and want < c.want and want * 2 > c.want) or (want > c.want and c.want and want < c.want * 2 and c.want > 8):
            return
        if self.raylet == NULL:
            return
        c.want = <uint32_t> want
        start = begin_frame(self.raylet[0], LEASE_DEMAND)
        put32(self.raylet.out, c.id)
        put32(self.raylet.out, c.want)
        if not c.announced:
            c.announced = True
            self.raylet.out.append(c.spec)
        self.done(self.raylet, start)

    cdef void send_task(self, Peer* peer, TaskState* t, uint64_t lease_id, uint64_t sequence) noexcept nogil:
        cdef size_t start = begin_frame(peer[0], TASK)
        cdef size_t body = peer.out.size()
        cdef size_t i
        cdef Entry* e
        cdef Owner nobody
        peer.out.append(t.spec)
        patch32(peer.out, body + TASK_ATTEMPT, t.attempt)
        patch64(peer.out, body + TASK_LEASE, lease_id)
        patch64(peer.out, body + TASK_SEQUENCE, sequence)
        put16(peer.out, <uint16_t> t.deps.size())
        for i in range(t.deps.size()):
            put16(peer.out, t.deps[i].position)
            put_object_id(peer.out, t.deps[i].id)
            e = find_entry(self.entries, t.deps[i].id)
            if e == NULL:
                put_owner(peer.out, nobody)
                put8(peer.out, 0)
                put8(peer.out, 2)
                put16(peer.out, CODE_OBJECT_FREED)
                put_str16(peer.out, EMPTY)
                put_str32(peer.out, EMPTY)
                put32(peer.out, 0)
            else:
                put_owner(peer.out, e.owner)
                put8(peer.out, 0)
                self.put_object(peer.out, e, peer.who)
        put_str32(peer.out, t.extra)
        self.done(peer, start)

    cdef void on_reply(self, Peer* peer, Reader& r) noexcept nogil:
        cdef Id16 id = r.id()
        cdef uint32_t attempt = r.u32()
        cdef uint8_t status = r.u8()
        cdef uint32_t duration = r.u32()
        cdef uint32_t n = r.u32()
        cdef uint32_t i, items
        cdef bint current
        cdef shared_ptr[TaskState] task
        cdef TaskState* t = NULL
        cdef Lease* lease = NULL
        cdef LeaseClass* c
        cdef Arrived a
        cdef Arrived error
        cdef ObjectId oid
        cdef Owner owner
        cdef Entry* e
        cdef ActorState* actor = NULL
        cdef bint again = False
        it = self.tasks.find(id)
        current = it != self.tasks.end() and deref(it).second.get().attempt == attempt and deref(it).second.get().phase == SENT
        if current:
            task = deref(it).second
            t = task.get()
            lease = t.lease
            if t.kind == 2:
                actor = self.actor(t.actor)
                erase_task(actor.in_flight, task)
            elif lease != NULL:
                erase_task(lease.in_flight, task)
                lease.stalled = False
                t.lease = NULL
            again = (status == STATUS_RAISED_RETRY and t.retries_left != 0 or status == STATUS_LEAVING or status == STATUS_REJECTED) and not t.cancelled
        for i in range(n):
            self.read_object(r, a)
            if not r.ok:
                break
            if not current or again:
                if current and status == STATUS_OK and a.state == IN_ARENA or not current and a.state == IN_ARENA:
                    self.free_place(a.place)
                self.discard(a)
            elif t.flags & STREAMING:
                error = a
            elif status == STATUS_OK:
                e = find_entry(self.entries, object_id(id, i + 1))
                if e == NULL or e.state != PENDING:
                    if a.state == IN_ARENA:
                        self.free_place(a.place)
                    self.discard(a)
                else:
                    e.creator = t.name
                    self.apply(e, a)
            else:
                for k in range(1, t.num_returns + 1):
                    e = find_entry(self.entries, object_id(id, k))
                    if e != NULL and e.state == PENDING:
                        self.apply(e, a)
        n = r.u32()
        if <uint64_t> n * 52 > r.left():
            r.ok = False
            n = 0
        for i in range(n):
            oid = r.oid()
            owner = r.owner()
            self.register(oid, owner, peer.who, 1)
        items = r.u32()
        if not current:
            return
        if again:
            if status == STATUS_RAISED_RETRY:
                if t.retries_left > 0:
                    t.retries_left -= 1
                t.attempt += 1
            self.retry(task)
        else:
            if t.flags & STREAMING:
                self.end_stream(t, status, items, &error)
            self.finish(task)
        if lease != NULL:
            c = self.classes[lease.lease_class]
            if status == STATUS_LEAVING or status == STATUS_REJECTED:
                lease.reclaimed = True
            elif duration:
                if c.mean_us < 0:
                    c.mean_us = duration
                    c.deviation_us = 0
                else:
                    c.deviation_us += (fabs(duration - c.mean_us) - c.deviation_us) / 8
                    c.mean_us += (duration - c.mean_us) / 8
            self.lease_progress(lease)

    cdef void end_stream(self, TaskState* t, uint8_t status, uint32_t items, Arrived* error) noexcept nogil:
        cdef ObjectId id = object_id(t.id, 0)
        cdef Entry* e
        cdef Stream* s
        cdef Waiter* w
        cdef Arrived none
        it = self.streams.find(t.id)
        if it != self.streams.end():
            s = deref(it).second
            s.producer = NULL
            if status == STATUS_OK:
                s.end = items
            else:
                s.end = s.received + 1
                if s.dropped:
                    self.discard(error[0])
                else:
                    s.received += 1
                    s.held.insert(s.received)
                    e = self.own(object_id(t.id, s.received))
                    e.holds += 1
                    e.creator = t.name
                    self.apply(e, error[0])
            while not s.waiters.empty():
                w = s.waiters.back()
                s.waiters.pop_back()
                self.fire(w)
            if s.dropped:
                self.streams.erase(t.id)
                free_stream(s)
        e = find_entry(self.entries, id)
        if e != NULL and e.state == PENDING:
            none.state = INLINE
            none.value = none_value()
            self.apply(e, none)

    cdef void finish(self, shared_ptr[TaskState] task) noexcept nogil:
        """The end of a task, whatever it was: its references are let go."""
        cdef TaskState* t = task.get()
        cdef size_t i
        cdef vector[ObjectId] holds
        if t.phase == DONE:
            return
        t.phase = DONE
        self.completed += 1
        self.tasks.erase(t.id)
        if t.kind == 2:
            self.actor(t.actor).pending -= 1
        holds.swap(t.holds)
        for i in range(holds.size()):
            self.drop_hold(holds[i])

    cdef void fail_task(self, shared_ptr[TaskState] task, uint16_t code, const string& message) noexcept nogil:
        cdef TaskState* t = task.get()
        cdef Entry* e
        cdef Arrived a
        cdef string name
        if t.phase == DONE:
            return
        if t.name.get() != NULL:
            name = t.name.get()[0]
        if t.flags & STREAMING:
            a.state = FAILED
            a.code = code
            a.message = message
            a.name = name
            self.end_stream(t, STATUS_RAISED, 0, &a)
        else:
            for k in range(1, t.num_returns + 1):
                e = find_entry(self.entries, object_id(t.id, k))
                if e != NULL and e.state == PENDING:
                    self.fail_object(e, code, message, name)
        self.finish(task)

    cdef void retry(self, shared_ptr[TaskState] task) noexcept nogil:
        cdef TaskState* t = task.get()
        self.retried += 1
        t.phase = QUEUED
        t.lease = NULL
        if t.kind == 2:
            # The actor's own queue keeps the order: what was in flight goes before what was not.
            self.actor(t.actor).queue.push_front(task)
            self.drain_actor(self.actor(t.actor))
        else:
            self.classes[t.lease_class].ready.push_front(task)
            self.pump(self.classes[t.lease_class])

    cdef void on_handback(self, Peer* peer, Reader& r) noexcept nogil:
        cdef uint32_t n = r.u32()
        cdef uint32_t i
        cdef TaskState* t
        cdef Lease* lease = NULL
        cdef LeaseClass* c = NULL
        cdef vector[shared_ptr[TaskState]] back
        for i in range(n):
            it = self.tasks.find(r.id())
            if it == self.tasks.end():
                continue
            t = deref(it).second.get()
            if t.phase != SENT or t.lease == NULL or t.lease.peer != peer:
                continue
            lease = t.lease
            erase_task(lease.in_flight, deref(it).second)
            t.lease = NULL
            t.phase = QUEUED
            back.push_back(deref(it).second)
        if lease == NULL:
            return
        lease.stalled = not lease.in_flight.empty()
        c = self.classes[lease.lease_class]
        if c.mean_us < HAND_BACK_NS // 1000:
            c.mean_us = HAND_BACK_NS // 1000
        while not back.empty():
            c.ready.push_front(back.back())
            back.pop_back()
        self.pump(c)

    cdef void on_grant(self, Reader& r) noexcept nogil:
        cdef uint32_t number = r.u32()
        cdef uint64_t id = r.u64()
        cdef Owner who
        cdef string address
        cdef Lease* lease
        cdef LeaseClass* c
        who.worker = r.id()
        who.node = r.id()
        address = r.str16()
        if number >= self.classes.size() or not r.ok:
            return
        c = self.classes[number]
        if c.want:
            c.want -= 1
        if not address.empty():
            self.addresses[who.node] = address
        lease = make_lease()
        lease.id = id
        lease.node = who.node
        lease.lease_class = number
        lease.peer = self.peer_to(who)
        lease.idle_since_ns = self.now
        c.leases.push_back(lease)
        if lease.peer.phase == CLOSED:
            self.lose_lease(lease, NIL, True, CODE_WORKER_CRASHED, string(b"the worker died before its first task"))
            return
        self.pump(c)

    cdef void on_refused(self, Reader& r) noexcept nogil:
        cdef uint32_t number = r.u32()
        cdef uint16_t code = r.u16()
        cdef string why = r.rest()
        cdef LeaseClass* c
        cdef deque[shared_ptr[TaskState]] ready
        if number >= self.classes.size():
            return
        c = self.classes[number]
        c.want = 0
        ready.swap(c.ready)
        while not ready.empty():
            if ready.front().get().phase == QUEUED:
                self.fail_task(ready.front(), code, why)
            ready.pop_front()

    cdef void on_reclaim(self, Reader& r) noexcept nogil:
        cdef uint64_t id = r.u64()
        cdef Id16 node = r.id()
        cdef size_t i, k
        cdef LeaseClass* c
        for i in range(self.classes.size()):
            c = self.classes[i]
            for k in range(c.leases.size()):
                if c.leases[k].id == id and c.leases[k].node == node:
                    c.leases[k].reclaimed = True
                    self.lease_progress(c.leases[k])
                    return

    cdef void lease_progress(self, Lease* lease) noexcept nogil:
        cdef LeaseClass* c = self.classes[lease.lease_class]
        if lease.in_flight.empty():
            lease.idle_since_ns = self.now
            if lease.reclaimed:
                self.return_lease(lease, False)
        self.pump(c)

    cdef void return_lease(self, Lease* lease, bint discard) noexcept nogil:
        if self.raylet != NULL:
            self.tell_return(lease, discard)
        erase_lease(self.classes[lease.lease_class].leases, lease)
        free_lease(lease)

    cdef void give_up_lease(self, Lease* lease) noexcept nogil:
        """Its worker cannot be reached from here: the raylet must not lend it on as it is."""
        if self.raylet != NULL:
            self.tell_return(lease, True)

    cdef void tell_return(self, Lease* lease, bint discard) noexcept nogil:
        cdef size_t start = begin_frame(self.raylet[0], LEASE_RETURN)
        put64(self.raylet.out, lease.id)
        put_id(self.raylet.out, lease.node)
        put8(self.raylet.out, 1 if discard else 0)
        self.done(self.raylet, start)

    cdef void lose_lease(self, Lease* lease, const Id16& started, bint known, uint16_t code, const string& cause) noexcept nogil:
        """Its worker died: the task that had started pays a retry, those behind it nothing. Where nobody knows which had, it was the first."""
        cdef LeaseClass* c = self.classes[lease.lease_class]
        cdef deque[shared_ptr[TaskState]] lost
        cdef TaskState* t
        cdef bint first = True
        cdef bint hit
        lost.swap(lease.in_flight)
        erase_lease(c.leases, lease)
        free_lease(lease)
        while not lost.empty():
            t = lost.back().get()
            first = lost.size() == 1
            hit = t.id == started if known else first
            t.lease = NULL
            if not hit and not t.cancelled:
                self.retry(lost.back())
            elif t.cancelled:
                self.fail_task(lost.back(), CODE_CANCELLED if code != CODE_NODE_DIED else code, cause)
            elif t.retries_left != 0:
                if t.retries_left > 0:
                    t.retries_left -= 1
                t.attempt += 1
                self.retry(lost.back())
            else:
                self.fail_task(lost.back(), code, cause)
            lost.pop_back()
        self.pump(c)

    cdef void cancel(self, const Id16& task_id, bint force, bint recursive) noexcept nogil:
        cdef shared_ptr[TaskState] task
        cdef TaskState* t
        cdef Peer* peer
        cdef size_t start
        it = self.tasks.find(task_id)
        if it == self.tasks.end():
            return
        task = deref(it).second
        t = task.get()
        t.cancelled = True
        if t.phase != SENT:
            if t.kind == 2:
                erase_task(self.actor(t.actor).queue, task)
            self.fail_task(task, CODE_CANCELLED, EMPTY)
            if t.kind == 2:
                self.drain_actor(self.actor(t.actor))
            return
        if t.kind == 2:
            peer = self.peer_to(actor_owner(self.actor(t.actor)))
        else:
            peer = t.lease.peer
        start = begin_frame(peer[0], CANCEL)
        put_id(peer.out, task_id)
        put8(peer.out, (1 if force else 0) | (2 if recursive else 0))
        self.done(peer, start)

    cdef void on_item(self, Peer* peer, Reader& r) noexcept nogil:
        cdef Id16 id = r.id()
        cdef uint32_t attempt = r.u32()
        cdef uint32_t index = r.u32()
        cdef Arrived a
        cdef Stream* s
        cdef Entry* e
        cdef Waiter* w
        self.read_object(r, a)
        it = self.streams.find(id)
        if it == self.streams.end() or deref(it).second.dropped or index <= deref(it).second.received or not r.ok:
            if a.state == IN_ARENA:
                self.free_place(a.place)
            self.discard(a)
            return
        s = deref(it).second
        s.producer = peer
        s.received = index
        s.held.insert(index)
        e = self.own(object_id(id, index))
        e.holds += 1
        self.apply(e, a)
        while not s.waiters.empty():
            w = s.waiters.back()
            s.waiters.pop_back()
            self.fire(w)

    cdef void drop_stream(self, const Id16& task_id) noexcept nogil:
        cdef Stream* s
        cdef vector[uint32_t] left
        cdef size_t i
        it = self.streams.find(task_id)
        if it == self.streams.end():
            return
        s = deref(it).second
        s.dropped = True
        held = s.held.begin()
        while held != s.held.end():
            left.push_back(deref(held))
            inc(held)
        s.held.clear()
        for i in range(left.size()):
            self.drop_hold(object_id(task_id, left[i]))
        if s.end != NO_END or not self.tasks.count(task_id):
            self.streams.erase(task_id)
            free_stream(s)
        else:
            self.cancel(task_id, False, True)

    # -- actors -----------------------------------------------------------------------------------------------------------------

    cdef ActorState* actor(self, const Id16& id) noexcept nogil:
        cdef ActorState* a
        it = self.actors.find(id)
        if it != self.actors.end():
            return deref(it).second
        a = make_actor()
        a.id = id
        self.actors[id] = a
        return a

    cdef void drain_actor(self, ActorState* a) noexcept nogil:
        cdef shared_ptr[TaskState] task
        cdef deque[shared_ptr[TaskState]] kept
        cdef Peer* peer
        if a.phase != ACTOR_ALIVE or a.broken:
            return
        peer = self.peer_to(actor_owner(a))
        if peer.phase == CLOSED:
            a.broken = True
            return
        while not a.queue.empty():
            task = a.queue.front()
            if task.get().phase == DONE:
                a.queue.pop_front()
                continue
            if task.get().phase == WAITING:
                if a.ordered:
                    break
                a.queue.pop_front()
                kept.push_back(task)
                continue
            a.queue.pop_front()
            a.sequence += 1
            task.get().phase = SENT
            task.get().incarnation = a.incarnation
            a.in_flight.push_back(task)
            self.send_task(peer, task.get(), 0, a.sequence)
        if not kept.empty():
            a.queue.swap(kept)

    cdef void on_actor(self, ActorState* a, uint8_t phase, const Id16& worker, const Id16& node, uint64_t incarnation, uint16_t code,
                       const string& cause, const string& error) noexcept nogil:
        """What the control store says of an actor. A new life, or the end: what was in flight in the old one is settled."""
        cdef deque[shared_ptr[TaskState]] old
        cdef vector[ObjectId] holds
        cdef size_t i
        if a.phase == ACTOR_DEAD or incarnation < a.incarnation:
            return
        if phase == ACTOR_ALIVE and a.phase == ACTOR_ALIVE and incarnation == a.incarnation and worker == a.worker:
            return
        a.phase = <ActorPhase> phase
        a.code = code
        a.cause = cause
        if phase == ACTOR_DEAD:
            if not error.empty():
                a.error = make_bytes(error.c_str(), error.size())
            old.swap(a.in_flight)
            while not old.empty():
                self.fail_actor_task(a, old.front(), code, cause)
                old.pop_front()
            old.swap(a.queue)
            while not old.empty():
                self.fail_actor_task(a, old.front(), code, cause)
                old.pop_front()
            holds.swap(a.creation_holds)
            for i in range(holds.size()):
                self.drop_hold(holds[i])
            return
        if incarnation > a.incarnation or phase == ACTOR_RESTARTING:
            self.settle_in_flight(a, cause)
            a.sequence = 0
        a.incarnation = incarnation
        if phase == ACTOR_ALIVE:
            a.worker = worker
            a.node = node
            a.broken = self.dead_workers.count(worker) > 0
            self.drain_actor(a)

    cdef void settle_in_flight(self, ActorState* a, const string& cause) noexcept nogil:
        """Whether these calls ran is unknown: at most once, unless the caller allowed retries."""
        cdef deque[shared_ptr[TaskState]] old
        cdef shared_ptr[TaskState] task
        old.swap(a.in_flight)
        while not old.empty():
            task = old.back()
            old.pop_back()
            if task.get().retries_left != 0 and not task.get().cancelled:
                if task.get().retries_left > 0:
                    task.get().retries_left -= 1
                task.get().attempt += 1
                task.get().phase = QUEUED
                self.retried += 1
                a.queue.push_front(task)
            else:
                self.fail_actor_task(a, task, CODE_ACTOR_UNAVAILABLE, cause)

    cdef void fail_actor_task(self, ActorState* a, shared_ptr[TaskState] task, uint16_t code, const string& cause) noexcept nogil:
        cdef Arrived error
        cdef Entry* e
        cdef TaskState* t = task.get()
        if a.error.get() == NULL:
            # The bit says that it was an actor's call: the same cause makes another error than for a task.
            self.fail_task(task, (code if code else CODE_ACTOR_DIED) | OF_ACTOR, cause)
            return
        if t.phase == DONE:
            return
        error.state = INLINE
        error.value = a.error
        if t.flags & STREAMING:
            self.end_stream(t, STATUS_RAISED, 0, &error)
        else:
            for k in range(1, t.num_returns + 1):
                e = find_entry(self.entries, object_id(t.id, k))
                if e != NULL and e.state == PENDING:
                    error.state = INLINE
                    self.apply(e, error)
        self.finish(task)

    # -- executing --------------------------------------------------------------------------------------------------------------

    cdef void on_task(self, Peer* peer, Reader& r, bint creation) noexcept nogil:
        cdef shared_ptr[RunTask] run = new_run()
        cdef RunTask* t = run.get()
        cdef uint16_t n, i
        cdef RunDependency dep
        cdef Owner owner
        cdef Arrived a
        cdef Entry* e
        t.id = r.id()
        t.kind = r.u8()
        t.flags = r.u8()
        t.num_returns = r.u16()
        t.attempt = r.u32()
        t.lease_id = r.u64()
        t.job = r.u32()
        t.function = r.id()
        t.actor = r.id()
        t.sequence = r.u64()
        t.depth = r.u32()
        t.backpressure = r.u32()
        t.name = r.str16()
        t.method = r.str16()
        t.group = r.str16()
        t.args = r.str32()
        t.from_ = peer
        t.caller = peer.who
        t.received_ns = self.now
        n = r.u16()
        t.missing = 1
        if self.runs.count(t.id) and deref(self.runs.find(t.id)).second.get().attempt >= t.attempt:
            return  # sent again after a reconnect
        for i in range(n):
            if not r.ok:
                return
            dep.position = r.u16()
            dep.id = r.oid()
            owner = r.owner()
            dep.entry = True
            dep.value.reset()
            if r.u8() == 0:
                self.read_object(r, a)
                if a.state == INLINE and a.contains.empty():
                    dep.entry = False
                    dep.value = a.value
                else:
                    e = self.borrow(dep.id, owner)
                    e.holds += 1
                    if e.state == PENDING:
                        self.apply(e, a)
                    else:
                        self.discard(a)
            else:
                e = self.borrow(dep.id, owner)
                e.holds += 1
                self.ask(e)
            if dep.entry:
                e = find_entry(self.entries, dep.id)
                if not self.is_local(e):
                    t.missing += 1
                    e.run_dependants.push_back(run)
                    self.pull(e)
            t.deps.push_back(dep)
        t.extra = r.str32()
        if not r.ok:
            return
        self.runs[t.id] = run
        if self.ordered_runs and t.kind == 2:
            self.enqueue_run(run)
        self.run_ready(run)

    cdef void run_ready(self, shared_ptr[RunTask] run) noexcept nogil:
        cdef RunTask* t = run.get()
        if t.missing:
            t.missing -= 1
        if t.missing or t.phase != RUN_WAITING:
            return
        t.phase = RUN_QUEUED
        if not (self.ordered_runs and t.kind == 2):
            self.enqueue_run(run)
        waiters = self.task_waiters.find(t.group)
        if waiters != self.task_waiters.end() and not deref(waiters).second.empty():
            waiter = deref(waiters).second.back()
            deref(waiters).second.pop_back()
            self.fire(waiter)

    cdef void enqueue_run(self, shared_ptr[RunTask] run) noexcept nogil:
        it = self.queues.find(run.get().group)
        if it == self.queues.end():
            self.queues[run.get().group] = make_queue()
            it = self.queues.find(run.get().group)
        deref(it).second.push_back(run)

    cdef bint has_run(self, const string& group) noexcept nogil:
        cdef RunQueue* q
        it = self.queues.find(group)
        if it == self.queues.end():
            return False
        q = deref(it).second
        while not q.empty() and q.front().get().phase == RUN_ENDED:
            q.pop_front()
        return not q.empty() and q.front().get().phase == RUN_QUEUED

    cdef shared_ptr[RunTask] pop_run(self, const string& group) noexcept nogil:
        cdef shared_ptr[RunTask] run
        cdef RunQueue* q
        if self.has_run(group):
            q = deref(self.queues.find(group)).second
            run = q.front()
            q.pop_front()
        return run

    cdef void end_run(self, shared_ptr[RunTask] run) noexcept nogil:
        cdef RunTask* t = run.get()
        cdef size_t i
        cdef vector[RunDependency] deps
        if t.phase == RUN_ENDED:
            return
        t.phase = RUN_ENDED
        it = self.runs.find(t.id)
        if it != self.runs.end() and deref(it).second.get() == t:
            self.runs.erase(t.id)
        deps.swap(t.deps)
        for i in range(deps.size()):
            if deps[i].entry:
                self.drop_hold(deps[i].id)

    cdef void put_borrowed(self, string& out, RunTask* t) noexcept nogil:
        """The references that came with this task's arguments and that somebody here still holds."""
        cdef size_t i, at = out.size()
        cdef uint32_t n = 0
        cdef Entry* e
        put32(out, 0)
        for i in range(t.introduced.size()):
            e = find_entry(self.entries, t.introduced[i])
            if e == NULL or e.owned or e.registrations or (e.local == 0 and e.holds == 0):
                continue
            e.registrations += 1
            put_object_id(out, e.id)
            put_owner(out, e.owner)
            n += 1
        patch32(out, at, n)

    cdef void reply_plain(self, shared_ptr[RunTask] run, uint8_t status, uint16_t code, const string& message) noexcept nogil:
        """An answer that needs no Python: cancelled before its start, or refused."""
        cdef RunTask* t = run.get()
        cdef Peer* peer = t.from_
        cdef size_t start
        if peer != NULL and peer.phase != CLOSED:
            start = begin_frame(peer[0], REPLY)
            put_id(peer.out, t.id)
            put32(peer.out, t.attempt)
            put8(peer.out, status)
            put32(peer.out, 0)
            put32(peer.out, 1)
            put8(peer.out, 2)
            put16(peer.out, code)
            put_str16(peer.out, t.name)
            put_str32(peer.out, message)
            put32(peer.out, 0)
            self.put_borrowed(peer.out, t)
            put32(peer.out, 0)
            self.done(peer, start)
        self.end_run(run)

    cdef void on_cancel(self, Peer* peer, Reader& r) noexcept nogil:
        cdef Id16 id = r.id()
        cdef uint8_t flags = r.u8()
        cdef shared_ptr[RunTask] run
        cdef vector[Id16] children
        cdef size_t i
        cdef Waiter* w
        it = self.runs.find(id)
        if it == self.runs.end():
            return
        run = deref(it).second
        run.get().cancelled = True
        if run.get().phase != RUN_STARTED:
            self.reply_plain(run, STATUS_CANCELLED, CODE_CANCELLED, EMPTY)
            return
        while not run.get().item_waiters.empty():
            w = run.get().item_waiters.back()
            run.get().item_waiters.pop_back()
            self.fire(w)
        if flags & 2:
            child = self.tasks.begin()
            while child != self.tasks.end():
                if deref(child).second.get().parent == id:
                    children.push_back(deref(child).first)
                inc(child)
            for i in range(children.size()):
                self.cancel(children[i], flags & 1, True)
        self.emit(EVENT_CANCEL, flags & 1, id, EMPTY, EMPTY)

    cdef void hand_back(self) noexcept nogil:
        """Tasks that waited 10 ms behind a running one go back, so that whatever that one does cannot hold them up."""
        cdef RunQueue* q
        cdef Peer* peer
        cdef size_t start, at, first, i
        cdef uint32_t n
        cdef shared_ptr[RunTask] run
        it = self.queues.find(EMPTY)
        if not self.started or it == self.queues.end() or self.now - self.started_at < HAND_BACK_NS:
            return
        q = deref(it).second
        while not q.empty() and q.back().get().kind == 0 and self.now - q.back().get().received_ns >= HAND_BACK_NS:
            peer = q.back().get().from_
            if peer == NULL:
                break
            start = begin_frame(peer[0], HANDBACK)
            at = peer.out.size()
            put32(peer.out, 0)
            n = 0
            # One frame for the run of tasks that one peer sent, in their order.
            first = q.size()
            while first > 0 and q[0][first - 1].get().from_ == peer and q[0][first - 1].get().kind == 0:
                first -= 1
            for i in range(first, q.size()):
                run = q[0][i]
                if run.get().phase == RUN_QUEUED:
                    put_id(peer.out, run.get().id)
                    n += 1
            while q.size() > first:
                run = q.back()
                q.pop_back()
                self.end_run(run)
            patch32(peer.out, at, n)
            self.done(peer, start)

    # -- time and deaths --------------------------------------------------------------------------------------------------------

    cdef void on_timer(self) noexcept nogil:
        cdef size_t i, k
        cdef LeaseClass* c
        cdef vector[Lease*] idle
        cdef Peer* peer
        for i in range(self.classes.size()):
            c = self.classes[i]
            for k in range(c.leases.size()):
                if c.leases[k].in_flight.empty() and self.now - c.leases[k].idle_since_ns >= IDLE_LEASE_NS:
                    idle.push_back(c.leases[k])
        for i in range(idle.size()):
            self.return_lease(idle[i], False)
        self.hand_back()
        i = 0
        while i < self.closed.size():
            peer = self.closed[i]
            if peer.gone or not peer.identified:
                erase_peer(self.closed, peer)
                continue
            if self.now - peer.closed_ns >= DEATH_NOTICE_NS:
                erase_peer(self.closed, peer)
                if peer.remote:
                    self.connection_lost(peer)
                    continue
                self.worker_died(peer.who.worker, NIL, False, CODE_WORKER_CRASHED, string(b"its connection ended, and its raylet did not say why"))
                continue
            i += 1

    cdef int64_t next_timer_ns(self) noexcept nogil:
        """How long the shell may sleep: -1 for as long as it likes."""
        cdef size_t i
        it = self.queues.find(EMPTY)
        if self.started and it != self.queues.end() and not deref(it).second.empty():
            return HAND_BACK_NS
        for i in range(self.classes.size()):
            if not self.classes[i].leases.empty():
                return IDLE_LEASE_NS // 2
        if not self.closed.empty():
            return DEATH_NOTICE_NS // 4
        return -1

    cdef void worker_died(self, const Id16& worker, const Id16& started, bint known, uint16_t code, const string& cause) noexcept nogil:
        cdef size_t i, k
        cdef LeaseClass* c
        cdef vector[Lease*] lost
        cdef vector[ObjectId] failed, dropped
        cdef vector[shared_ptr[RunTask]] orphans
        cdef Peer* peer
        cdef Entry* e
        if self.dead_workers.count(worker):
            return
        self.dead_workers[worker] = cause
        entered = self.peers.find(worker)
        if entered != self.peers.end():
            peer = deref(entered).second
            peer.gone = True
            self.peers.erase(worker)
        for i in range(self.all_peers.size()):
            peer = self.all_peers[i]
            if peer.who.worker == worker and peer != self.raylet and peer != self.store:
                peer.gone = True
                if peer.phase == UNCONNECTED or peer.phase == CONNECTING:
                    peer.phase = CLOSED
        for i in range(self.classes.size()):
            c = self.classes[i]
            for k in range(c.leases.size()):
                if c.leases[k].peer.who.worker == worker:
                    lost.push_back(c.leases[k])
        for i in range(lost.size()):
            self.lose_lease(lost[i], started, known, code, cause)
        a = self.actors.begin()
        while a != self.actors.end():
            if deref(a).second.phase == ACTOR_ALIVE and deref(a).second.worker == worker:
                deref(a).second.broken = True
            inc(a)
        it = self.entries.begin()
        while it != self.entries.end():
            e = &deref(it).second
            if e.owned:
                if drop_row(e[0], worker) and e.local == 0 and e.holds == 0 and not has_rows(e[0]):
                    dropped.push_back(e.id)
                for k in range(e.getters.size()):
                    if e.getters[k].who.worker == worker:
                        erase_peer(e.getters, e.getters[k])
                        break
            elif e.state == PENDING and e.owner.worker == worker:
                failed.push_back(e.id)
            inc(it)
        for i in range(failed.size()):
            e = find_entry(self.entries, failed[i])
            if e != NULL and e.state == PENDING:
                self.fail_object(e, CODE_OWNER_DIED, cause, EMPTY)
        for i in range(dropped.size()):
            self.drops.push_back(dropped[i])
        self.settle_drops()
        run = self.runs.begin()
        while run != self.runs.end():
            if deref(run).second.get().caller.worker == worker:
                orphans.push_back(deref(run).second)
            inc(run)
        for i in range(orphans.size()):
            orphans[i].get().from_ = NULL
            orphans[i].get().cancelled = True
            if orphans[i].get().phase != RUN_STARTED:
                self.end_run(orphans[i])
            elif orphans[i].get().kind != 1:
                self.emit(EVENT_CANCEL, 0, orphans[i].get().id, EMPTY, EMPTY)

    cdef void connection_lost(self, Peer* peer) noexcept nogil:
        """A network connection broke, and nobody says that the process behind it died. What was in flight on it is unknown: calls of actors fail or are
        retried as at a restart, leases are given up, questions are asked again. Whatever comes next opens a new connection, or learns of the death."""
        cdef size_t i, k
        cdef LeaseClass* c
        cdef vector[Lease*] lost
        cdef vector[ObjectId] unanswered
        cdef vector[ActorPointer] callees
        cdef Entry* e
        cdef string why = string(b"the connection to its node broke")
        peer.gone = True
        known = self.peers.find(peer.who.worker)
        if known != self.peers.end() and deref(known).second == peer:
            self.peers.erase(peer.who.worker)
        for i in range(self.classes.size()):
            c = self.classes[i]
            for k in range(c.leases.size()):
                if c.leases[k].peer == peer:
                    lost.push_back(c.leases[k])
        for i in range(lost.size()):
            self.give_up_lease(lost[i])
            self.lose_lease(lost[i], NIL, False, CODE_WORKER_CRASHED, why)
        run = self.runs.begin()
        while run != self.runs.end():
            if deref(run).second.get().from_ == peer:
                deref(run).second.get().from_ = NULL
            inc(run)
        it = self.entries.begin()
        while it != self.entries.end():
            e = &deref(it).second
            erase_peer(e.getters, peer)
            if not e.owned and e.state == PENDING and e.asked and e.owner.worker == peer.who.worker:
                unanswered.push_back(e.id)
            inc(it)
        for i in range(unanswered.size()):
            e = find_entry(self.entries, unanswered[i])
            if e != NULL and e.state == PENDING:
                e.asked = False
                self.ask(e)
        a = self.actors.begin()
        while a != self.actors.end():
            if deref(a).second.phase == ACTOR_ALIVE and deref(a).second.worker == peer.who.worker:
                callees.push_back(deref(a).second)
            inc(a)
        for i in range(callees.size()):
            self.settle_in_flight(callees[i], why)
            callees[i].broken = False
            self.drain_actor(callees[i])

    cdef void node_died(self, const Id16& node, const string& cause) noexcept nogil:
        cdef size_t i, k
        cdef vector[Id16] workers
        cdef vector[ObjectId] lost
        cdef vector[Lease*] leases
        cdef Entry* e
        if self.dead_nodes.count(node):
            return
        self.dead_nodes[node] = cause
        for i in range(self.all_peers.size()):
            if self.all_peers[i].who.node == node and self.all_peers[i].identified:
                workers.push_back(self.all_peers[i].who.worker)
        for i in range(workers.size()):
            self.worker_died(workers[i], NIL, False, CODE_NODE_DIED, cause)
        it = self.entries.begin()
        while it != self.entries.end():
            e = &deref(it).second
            if (e.state == IN_ARENA and e.place.node == node and not e.has_copy) or (e.state == PENDING and not e.owned and e.owner.node == node):
                lost.push_back(e.id)
            inc(it)
        for i in range(lost.size()):
            e = find_entry(self.entries, lost[i])
            if e == NULL:
                continue
            if e.state == PENDING:
                self.fail_object(e, CODE_OWNER_DIED, cause, EMPTY)
            elif e.owned and not e.copies.empty() and not self.dead_nodes.count(e.copies.back().node):
                e.place = e.copies.back()  # a secondary copy becomes the primary one
                e.copies.pop_back()
            else:
                self.fail_object(e, CODE_OBJECT_LOST, cause, e.creator.get()[0] if e.creator.get() != NULL else EMPTY)

    cdef void raylet_lost(self) noexcept nogil:
        """Without its raylet this process is cut off: everything that waits ends with one error."""
        cdef vector[shared_ptr[TaskState]] tasks
        cdef vector[ObjectId] pending
        cdef string why = string(b"the connection to this node's raylet ended: the node is down, or was shut down")
        cdef Entry* e
        cdef size_t i
        self.closing = True
        self.raylet = NULL
        it = self.tasks.begin()
        while it != self.tasks.end():
            tasks.push_back(deref(it).second)
            inc(it)
        for i in range(tasks.size()):
            self.fail_task(tasks[i], CODE_NODE_DIED, why)
        entry = self.entries.begin()
        while entry != self.entries.end():
            if deref(entry).second.state == PENDING:
                pending.push_back(deref(entry).first)
            inc(entry)
        for i in range(pending.size()):
            e = find_entry(self.entries, pending[i])
            if e != NULL and e.state == PENDING:
                self.fail_object(e, CODE_NODE_DIED, why, EMPTY)
        call = self.calls.begin()
        while call != self.calls.end():
            if deref(call).second.waiter != NULL:
                deref(call).second.done = True
                deref(call).second.code = 14  # UNAVAILABLE
                deref(call).second.payload = why
                self.fire(deref(call).second.waiter)
            inc(call)
        self.emit(EVENT_RAYLET_LOST, 0, NIL, why, EMPTY)
        waiting = self.task_waiters.begin()
        while waiting != self.task_waiters.end():
            while not deref(waiting).second.empty():
                waiter = deref(waiting).second.back()
                deref(waiting).second.pop_back()
                self.fire(waiter)
            inc(waiting)
