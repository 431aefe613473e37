cdef class References(Calls):
    """Who counts an object: local references, holds, and the rows of other processes; and its end when nobody does."""

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
            if e == NULL or e.local or e.holds or has_rows(e[0]):
                continue
            if e.lineage:
                (<Protocol> self).let_go(e)
            else:
                self.free_entry(e)
        self.dropping = False

    cdef void free_entry(self, Entry* e) noexcept nogil:
        cdef size_t i
        cdef vector[ContainedRef] contains
        cdef ObjectId id = e.id
        cdef ObjectId inner
        cdef bint kept = e.remake == REMAKE_KEPT
        if e.held.get() != NULL:
            self.arena_unpins.push_back(e.held.get()[0])
        if e.adopted:
            self.adopted_bytes -= e.place.size
        if e.owned:
            self.put_down(e)
            self.free_places(e)
            if e.is_actor_handle:
                self.emit(EVENT_ACTOR_OUT_OF_SCOPE, 0, id.task, EMPTY, EMPTY)
        elif e.registrations:
            self.register(id, e.owner, self.me, -e.registrations)
        e.contains.swap(contains)
        self.entries.erase(id)
        if kept:
            (<Protocol> self).result_freed(id)
        for i in range(contains.size()):
            inner = contains[i].id
            self.drop_hold(inner)

    cdef void put_down(self, Entry* e) noexcept nogil:
        """Its bytes are no longer among what this process holds in stores, if they were."""
        if e.owned and e.state == IN_ARENA:
            self.allowance.held_bytes -= e.place.size

    cdef void free_places(self, Entry* e) noexcept nogil:
        cdef size_t i
        if e.state == IN_ARENA:
            self.free_place(e.place)
        for i in range(e.copies.size()):
            self.free_place(e.copies[i])

    cdef void free_place(self, const Place& place) noexcept nogil:
        if place.node == self.me.node:
            self.arena_frees.push_back(place)
            return
        self.tell_free(place)

    cdef void tell_free(self, const Place& place) noexcept nogil:
        """By the store: what lies on another node, or on this one's disk."""
        self.tell_store(FREE, place)

    cdef void tell_store(self, uint8_t frame, const Place& place) noexcept nogil:
        """FREE or KEEP, until the store has done it: one that begins anew is told again."""
        cdef Telling telling
        if self.dead_nodes.count(place.node) or self.tellings.size() >= TELLINGS_MOST:
            return
        telling.frame = frame
        telling.place = place
        self.call_counter += 1
        self.tellings[self.call_counter] = telling
        it = self.tellings.find(self.call_counter)
        self.send_telling(deref(it).first, deref(it).second)

    cdef void send_telling(self, uint64_t number, Telling& telling) noexcept nogil:
        """Once the store is there, and the address of the place's node is known."""
        cdef size_t start
        cdef string address
        if self.store == NULL:
            return
        if not (telling.place.node == self.me.node):
            it = self.addresses.find(telling.place.node)
            if it == self.addresses.end():
                self.ask_address(telling.place.node)
                return
            address = deref(it).second
        telling.sent = True
        start = begin_frame(self.store[0], telling.frame)
        put_id(self.store.out, telling.place.node)
        put32(self.store.out, 1)
        put32(self.store.out, telling.place.slot)
        put32(self.store.out, telling.place.generation)
        put_str16(self.store.out, address)
        put64(self.store.out, number)
        self.done(self.store, start)

    cdef void tell_again(self) noexcept nogil:
        """What could not be told yet. What lay on nodes that died has gone with them."""
        cdef vector[uint64_t] over
        cdef size_t i
        it = self.tellings.begin()
        while it != self.tellings.end():
            if self.dead_nodes.count(deref(it).second.place.node):
                over.push_back(deref(it).first)
            elif not deref(it).second.sent:
                self.send_telling(deref(it).first, deref(it).second)
            inc(it)
        for i in range(over.size()):
            self.tellings.erase(over[i])

    cdef void tellings_lost(self) noexcept nogil:
        it = self.tellings.begin()
        while it != self.tellings.end():
            deref(it).second.sent = False
            inc(it)

    cdef void on_settled(self, Reader& r) noexcept nogil:
        cdef uint64_t number = r.u64()
        self.tellings.erase(number)

    cdef void register(self, const ObjectId& id, const Owner& owner, const Owner& receiver, int32_t delta) noexcept nogil:
        """Changes the row (id, receiver) at the owner. Nothing to do when the receiver is the owner."""
        cdef Entry* e
        cdef Peer* peer
        cdef bint before
        if receiver.worker == owner.worker:
            return
        if owner.worker == self.me.worker:
            e = find_entry(self.entries, id)
            if e == NULL:
                return
            if self.is_dead(receiver):
                return  # its row has gone with it; what it had still sent may come after the news of its end
            before = has_rows(e[0])
            change_row(e[0], receiver, delta)
            self.rows_changed(e, before)
            if e.local == 0 and e.holds == 0 and not has_rows(e[0]):
                self.drops.push_back(id)
                self.settle_drops()
            return
        peer = self.peer_to(owner)
        put_object_id(peer.deltas, id)
        put_id(peer.deltas, receiver.worker)
        put32(peer.deltas, <uint32_t> delta)
        put_id(peer.delta_nodes, receiver.node)
        peer.n_deltas += 1
        self.touch(peer)

    cdef void rows_changed(self, Entry* e, bint before) noexcept nogil:
        """Counts what is lent. That there is something is told at once; that there is nothing any more, when it has stayed so."""
        cdef bint now = has_rows(e[0])
        if before and not now:
            self.lent -= 1
            self.lent_ns = self.now
        elif now and not before:
            self.lent += 1
            if not self.told_owns & OWNS_OBJECTS:
                self.tell_owns(self.told_owns | OWNS_OBJECTS)

    cdef void tell_owns(self, uint8_t flags) noexcept nogil:
        cdef size_t start
        if self.kind != 1 or self.raylet == NULL:
            return  # a driver is nobody's to end
        self.told_owns = flags
        start = begin_frame(self.raylet[0], OWNS)
        put8(self.raylet.out, flags)
        self.done(self.raylet, start)

    cdef void on_ref_delta(self, Peer* peer, Reader& r) noexcept nogil:
        cdef uint32_t n = r.u32()
        cdef uint32_t i
        cdef ObjectId id
        cdef Owner receiver
        cdef int32_t delta
        cdef Reader nodes
        if <uint64_t> n * 40 > r.left():
            r.ok = False
            return
        nodes = Reader(r.p + n * 40, r.left() - n * 40)
        for i in range(n):
            id = r.oid()
            receiver.worker = r.id()
            receiver.node = nodes.id()  # nil from an older side, which tells no nodes
            delta = r.i32()
            if receiver.node.nil() and receiver.worker == peer.who.worker:
                receiver.node = peer.who.node
            self.register(id, self.me, receiver, delta)
