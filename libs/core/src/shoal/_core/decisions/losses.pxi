cdef class Losses(Lineage):
    """Objects that are not where they were: with a node's death, or where a store finds nothing. The owner decides what becomes of them; others tell it."""

    cdef string death_of(self, const Id16& node) noexcept nogil:
        return string(b"the node ") + hex_text(node) + string(b" that held it died: ") + self.dead_nodes[node]

    cdef void not_found(self, Entry* e, uint16_t code, const string& why) noexcept nogil:
        """This process wanted to read it, and it is not at its place."""
        e.pulling = False
        if e.owned:
            self.place_lost(e, e.place, True, why)
        else:
            self.miss(e, code, why)

    cdef void place_lost(self, Entry* e, const Place& at, bint sure, const string& why) noexcept nogil:
        """Of an own object: one place of it is void. Another copy steps in; without one it is made again."""
        cdef Place place = at
        if e.has_copy and same_place(e.copy, place):
            e.has_copy = False
        if e.state != IN_ARENA or not same_place(e.place, place):
            drop_copy(e[0], place)
            return
        e.pulling = False
        if not e.copies.empty():
            self.free_place(place)
            self.promote(e)
        elif sure or e.remake == REMAKE_KEPT:
            self.free_place(place)  # whoever did not find it may be wrong
            self.lose(e, why)

    cdef void promote(self, Entry* e) noexcept nogil:
        """A secondary copy becomes the primary one."""
        e.place = e.copies.back()
        e.copies.pop_back()
        e.moved = e.pulling = False
        if e.place.node == self.me.node:
            e.has_copy = False
        if e.owned:
            self.tell_store(KEEP, e.place)
        self.on_ready(e)  # whoever waits for a copy here gets it from there

    cdef void lose(self, Entry* e, const string& why) noexcept nogil:
        """The last copy of an own object is gone."""
        cdef ObjectId id = e.id
        cdef Place place = e.place
        miss_entry(e[0], place, why)
        e.holds += 1
        running = self.tasks.find(id.task)
        if running != self.tasks.end() and id.index:
            # Its task runs: for the first time and yields, or again. It brings this one too, or is asked once more when it has ended.
            deref(running).second.get().lost_more = deref(running).second.get().flags & STREAMING
            self.make_pending(e)
            e.gone = False
            self.give_back_runs(e, place, why)
        elif e.remake == REMAKE_KEPT:
            self.make_pending(e)
            self.give_back_runs(e, place, why)
            self.ask(e)
        else:
            self.fail_lost(e, EMPTY)
        self.drop_hold(id)

    cdef void miss(self, Entry* e, uint16_t code, const string& why) noexcept nogil:
        """A borrowed object is not where its owner said: the owner is told, and asked again by whoever wants it."""
        cdef Place place = e.place
        if self.is_dead(e.owner):
            self.fail_owner_died(e)
            return
        self.tell_lost(self.peer_to(e.owner), e.id, place, code, why)
        miss_entry(e[0], place, why)
        self.make_pending(e)
        self.give_back_runs(e, place, why)
        if is_wanted(e[0]):
            self.ask(e)

    cdef void tell_lost(self, Peer* peer, const ObjectId& id, const Place& place, uint16_t code, const string& why) noexcept nogil:
        cdef size_t start = begin_frame(peer[0], LOST)
        put_object_id(peer.out, id)
        put_id(peer.out, place.node)
        put32(peer.out, place.slot)
        put32(peer.out, place.generation)
        put16(peer.out, code)
        peer.out.append(why)
        self.done(peer, start)

    cdef void on_lost(self, Peer* peer, Reader& r) noexcept nogil:
        cdef ObjectId id = r.oid()
        cdef Place place
        cdef uint16_t code
        cdef string why
        cdef Entry* e
        place.node = r.id()
        place.slot = r.u32()
        place.generation = r.u32()
        code = r.u16()
        why = r.rest()
        e = find_entry(self.entries, id)
        if e == NULL or e.state != IN_ARENA or not r.ok:
            return
        if e.owned:
            # What one reader could not read is lost to it alone, where nobody can make it again.
            self.place_lost(e, place, code == CODE_NODE_DIED, why)
        elif same_place(e.place, place) and not self.is_local(e):
            self.miss(e, code, why)  # who runs a task of ours for us did not find its argument

    cdef void give_back_runs(self, Entry* e, const Place& place, const string& why) noexcept nogil:
        """Tasks that wait here for an argument which must be made anew go back: making it may need the very worker that they occupy."""
        cdef vector[shared_ptr[RunTask]] runs
        cdef RunTask* t
        cdef size_t i, start
        cdef ObjectId id = e.id
        cdef bint owned = e.owned
        cdef Id16 owner = e.owner.worker
        e.holds += 1
        e.run_dependants.swap(runs)
        for i in range(runs.size()):
            t = runs[i].get()
            if t.phase != RUN_WAITING:
                continue
            if t.kind != 0 or t.from_ == NULL or t.from_.phase == CLOSED:
                e.run_dependants.push_back(runs[i])
                continue
            if owned or not (t.from_.who.worker == owner):
                self.tell_lost(t.from_, id, place, CODE_NODE_DIED if self.dead_nodes.count(place.node) else CODE_OBJECT_LOST, why)
            start = begin_frame(t.from_[0], HANDBACK)
            put32(t.from_.out, 1)
            put_id(t.from_.out, t.id)
            self.done(t.from_, start)
            (<Protocol> self).end_run(runs[i])
        self.drop_hold(id)

    cdef void leave_node(self, Entry* e, const Id16& node) noexcept nogil:
        """A node died: an object that lay there."""
        if not e.owned and e.has_copy:
            e.place = e.copy
            e.has_copy = False
        elif not e.copies.empty():
            self.promote(e)
        else:
            self.not_found(e, CODE_NODE_DIED, self.death_of(node))
