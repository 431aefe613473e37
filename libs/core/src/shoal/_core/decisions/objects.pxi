cdef class Objects(References):
    """Objects as frames tell them, and as this process knows them: pending, inline, in an arena, failed."""

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

    cdef void put_contains(self, string& out, vector[ContainedRef]& refs, const Owner& receiver) noexcept nogil:
        cdef size_t i
        put32(out, <uint32_t> refs.size())
        for i in range(refs.size()):
            self.put_contained(out, refs[i], receiver)

    cdef void put_contained(self, string& out, const ContainedRef& ref, const Owner& receiver) noexcept nogil:
        put_object_id(out, ref.id)
        put_owner(out, ref.owner)
        self.register(ref.id, ref.owner, receiver, 1)

    cdef void put_object(self, string& out, Entry* e, const Owner& receiver) noexcept nogil:
        cdef size_t i
        cdef vector[Place] copies
        if e.state == INLINE:
            put8(out, 0)
            put_str32(out, e.value.get()[0])
        elif e.state == IN_ARENA:
            if not e.copies.empty():
                choose_copies(e[0], receiver.node, self.now // 1000, copies)
            put8(out, 3 if copies.size() else 1)
            put_place(out, e.place)
            put64(out, e.place.size)
            if copies.size():
                put8(out, <uint8_t> copies.size())
                for i in range(copies.size()):
                    put_place(out, copies[i])
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
        put32(out, <uint32_t> e.contains.size())
        for i in range(e.contains.size()):
            self.put_contained(out, e.contains[i], receiver)

    cdef void read_object(self, Reader& r, Arrived& a) noexcept nogil:
        """Reads an object and counts the references inside it as held by it."""
        cdef uint8_t place = r.u8()
        cdef uint32_t n, i
        cdef ContainedRef c
        cdef Place copy
        cdef Entry* e
        a.contains.clear()
        a.copies.clear()
        if place == 0:
            a.state = INLINE
            n = r.u32()
            if r.left() < n:
                r.ok = False
                n = 0
            a.value = make_bytes(r.p, n)
            r.p += n
        elif place == 1 or place == 3:
            a.state = IN_ARENA
            a.place.node = r.id()
            a.place.slot = r.u32()
            a.place.generation = r.u32()
            a.place.size = r.u64()
            n = r.u8() if place == 3 else 0
            for i in range(n):
                copy.node = r.id()
                copy.slot = r.u32()
                copy.generation = r.u32()
                copy.size = a.place.size
                a.copies.push_back(copy)
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
        e.asked = e.gone = False
        if a.state == INLINE:
            e.value = a.value
        elif a.state == IN_ARENA:
            e.place = a.place
            e.moved = False
            if e.owned:
                self.allowance.held_bytes += a.place.size
                if (<Protocol> self).is_to_move(e):
                    (<Protocol> self).bring_here(e)
            else:
                e.copies.swap(a.copies)
                if self.is_dead(e.owner):
                    (<Protocol> self).adopt(e)
        else:
            fail_entry(e[0], a.code, a.message, a.name)
        e.contains.swap(a.contains)
        self.on_ready(e)

    cdef void fail_object(self, Entry* e, uint16_t code, const string& message, const string& name) noexcept nogil:
        self.put_down(e)
        fail_entry(e[0], code, message, name)
        e.pulling = False
        self.on_ready(e)

    cdef bint is_local(self, Entry* e) noexcept nogil:
        """Whether its value, or why there is none, can be had without asking anybody."""
        if e.state == IN_ARENA:
            return e.has_copy or (e.place.node == self.me.node and not e.moved) or e.trouble.get() != NULL
        return e.state == INLINE or e.state == FAILED

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
        e.waiters.swap(waiters)
        for i in range(waiters.size()):
            if near or not waiters[i].need_local:
                self.fire(waiters[i].waiter)
            else:
                e.waiters.push_back(waiters[i])
        for i in range(e.callbacks.size()):
            self.callbacks.push_back(e.callbacks[i])
        if not e.callbacks.empty():
            e.callbacks.clear()
            self.fire_all(self.callback_waiters)
        e.getters.swap(getters)
        for i in range(getters.size()):
            if getters[i].questions:
                getters[i].questions -= 1
            start = begin_frame(getters[i][0], GOT)
            put_object_id(getters[i].out, id)
            self.put_object(getters[i].out, e, getters[i].who)
            self.done(getters[i], start)
        if near:
            e.run_dependants.swap(runs)
            for i in range(runs.size()):
                (<Protocol> self).run_ready(runs[i])
        elif not e.run_dependants.empty() or not e.waiters.empty():
            (<Protocol> self).pull(e)
        e.dependants.swap(dependants)
        for i in range(dependants.size()):
            (<Protocol> self).dependency_ready(dependants[i])
        self.drop_hold(id)

    cdef void ask(self, Entry* e) noexcept nogil:
        """An object that is wanted: the owner of a borrowed one answers once it is ready; an own one that is gone is made again."""
        if e.asked or e.state != PENDING:
            return
        if e.owned:
            if e.gone:
                (<Protocol> self).want(e)
        elif not self.is_dead(e.owner):
            self.ask_at(e, e.owner)
        elif e.lender.get() != NULL and not e.asked_lender and not self.is_dead(e.lender.get()[0]):
            e.asked_lender = True  # whoever passed the reference on may know the value, or where it lies
            self.ask_at(e, e.lender.get()[0])
        else:
            self.fail_owner_died(e)

    cdef void ask_anew(self, Entry* e) noexcept nogil:
        """Whoever was asked does not answer any more."""
        e.asked = False
        self.ask(e)

    cdef void ask_at(self, Entry* e, const Owner& who) noexcept nogil:
        cdef Peer* peer = self.peer_to(who)
        cdef size_t start
        e.asked = True
        peer.questions += 1
        start = begin_frame(peer[0], GET)
        put32(peer.out, 1)
        put_object_id(peer.out, e.id)
        self.done(peer, start)

    cdef void fail_owner_died(self, Entry* e) noexcept nogil:
        if e.adopted:
            e.adopted = False
            self.adopted_bytes -= e.place.size
        self.fail_object(e, CODE_OWNER_DIED, self.death_of_owner(e), EMPTY)

    cdef string name_of_owner(self, Entry* e) noexcept nogil:
        return string(b"its owner, worker ") + hex_text(e.owner.worker) + string(b" on node ") + hex_text(e.owner.node)

    cdef string death_of_owner(self, Entry* e) noexcept nogil:
        cdef string why = self.name_of_owner(e) + string(b", died: ")
        dead = self.dead_workers.find(e.owner.worker)
        if dead != self.dead_workers.end():
            why = why + deref(dead).second
        else:
            gone = self.dead_nodes.find(e.owner.node)
            if gone != self.dead_nodes.end():
                why = why + deref(gone).second
        return why

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
            if e != NULL and e.state == PENDING and (e.owned or not self.is_dead(e.owner)):
                e.getters.push_back(peer)
                peer.questions += 1
                if e.gone:
                    (<Protocol> self).want(e)
                elif not e.owned:
                    self.ask(e)
                continue
            start = begin_frame(peer[0], GOT)
            put_object_id(peer.out, id)
            if e == NULL:
                put8(peer.out, 2)
                put16(peer.out, CODE_OBJECT_FREED)
                put_str16(peer.out, EMPTY)
                put_str32(peer.out, string(b"its owner has already freed it"))
                put32(peer.out, 0)
            elif e.state == PENDING:
                # Lent on, and its owner is dead: who waited for this process's own lender might wait in a circle.
                put8(peer.out, 2)
                put16(peer.out, CODE_OWNER_DIED)
                put_str16(peer.out, EMPTY)
                put_str32(peer.out, self.death_of_owner(e))
                put32(peer.out, 0)
            else:
                self.put_object(peer.out, e, peer.who)
            self.done(peer, start)

    cdef void on_got(self, Peer* peer, Reader& r) noexcept nogil:
        cdef ObjectId id = r.oid()
        cdef Arrived a
        cdef Entry* e
        if peer.questions:
            peer.questions -= 1
        self.read_object(r, a)
        e = find_entry(self.entries, id)
        if e == NULL or e.state != PENDING or not r.ok:
            self.discard(a)
        elif e.asked_lender and a.state == FAILED and a.code == CODE_OBJECT_FREED:
            self.fail_owner_died(e)  # its lender has let it go
        elif e.missed.get() != NULL and a.state == IN_ARENA and same_place(a.place, e.missed.get().place):
            # Its owner knows no better: what could not be read here is lost to this reader alone.
            self.discard(a)
            self.fail_object(e, CODE_OBJECT_LOST, e.missed.get().why, EMPTY)
        else:
            if is_wanted(e[0]):
                (<Protocol> self).came_inside(a.contains, peer.who)
            self.apply(e, a)
