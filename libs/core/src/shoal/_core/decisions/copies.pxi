cdef class Copies(Objects):
    """Objects that lie on another node or on this one's disk: copies of them here, by the node's store, and what the owner knows of copies."""

    cdef void pull(self, Entry* e) noexcept nogil:
        """A copy of what lies on another node or on disk, by the node's store."""
        cdef size_t start
        cdef uint64_t id
        cdef Call call
        cdef string address
        cdef uint8_t urgency
        if e.state != IN_ARENA or self.is_local(e):
            return
        if self.dead_nodes.count(e.place.node):
            (<Protocol> self).not_found(e, CODE_NODE_DIED, (<Protocol> self).death_of(e.place.node))
            return
        urgency = urgency_of(e[0])
        if e.pulling and urgency >= e.pull_urgency:
            return  # else the store is asked once more, since somebody is in a greater hurry
        if self.store == NULL:
            self.interrupted_pulls.push_back(e.id)
            return
        if not (e.place.node == self.me.node):
            it = self.addresses.find(e.place.node)
            if it == self.addresses.end():
                self.ask_address(e.place.node)
                return
            address = deref(it).second
        e.pulling = True
        e.pull_urgency = urgency
        self.call_counter += 1
        id = self.call_counter
        start = begin_frame(self.store[0], PULL)
        put64(self.store.out, id)
        put_object_id(self.store.out, e.id)
        put64(self.store.out, e.place.size)
        put_id(self.store.out, e.place.node)
        put32(self.store.out, e.place.slot)
        put32(self.store.out, e.place.generation)
        put_str16(self.store.out, address)
        put8(self.store.out, urgency)
        self.put_sources(e)
        put_owner(self.store.out, e.owner)
        self.done(self.store, start)
        put_object_id(call.method, e.id)
        put_place(call.method, e.place)
        self.calls[id] = call

    cdef void put_sources(self, Entry* e) noexcept nogil:
        """Further copies, of which the store may read parts, too."""
        cdef vector[Place] copies, known
        cdef size_t i
        if not e.copies.empty() and not (e.place.node == self.me.node):
            choose_copies(e[0], self.me.node, self.call_counter, copies)
        for i in range(copies.size()):
            if self.dead_nodes.count(copies[i].node):
                continue
            if self.addresses.count(copies[i].node):
                known.push_back(copies[i])
            else:
                self.ask_address(copies[i].node)  # for the next time
        put16(self.store.out, <uint16_t> known.size())
        for i in range(known.size()):
            put_place(self.store.out, known[i])
            put_str16(self.store.out, self.addresses[known[i].node])

    cdef void on_pulled(self, Reader& r) noexcept nogil:
        cdef uint64_t number = r.u64()
        cdef uint16_t code = r.u16()
        cdef uint32_t slot = r.u32()
        cdef uint32_t generation = r.u32()
        cdef ObjectId id
        cdef Entry* e
        cdef Peer* peer
        cdef size_t start
        cdef string asked, wanted
        call = self.calls.find(number)
        if call == self.calls.end():
            return
        asked = deref(call).second.method
        id = load_object_id(asked.data())
        self.calls.erase(number)
        e = find_entry(self.entries, id)
        if e == NULL or e.state != IN_ARENA:
            return
        put_object_id(wanted, id)
        put_place(wanted, e.place)
        if asked == wanted:
            e.pulling = False
        elif code:
            return  # from where it lay before its node died: another pull is under way
        if code == CODE_UNREACHABLE or code == CODE_SHUTTING_DOWN:
            self.pull_later(e, r.rest())
            return
        if not self.unreached.empty():
            self.unreached.erase(id)
        if code == CODE_OBJECT_LOST or code == CODE_OBJECT_FREED:
            (<Protocol> self).not_found(e, CODE_OBJECT_LOST, r.rest())
            return
        if code and self.is_to_move(e) and not is_wanted(e[0]):
            self.later_pulls.push_back(id)  # there may be room later
            self.later_pulls_ns = self.now + PULL_AGAIN_NS
            return
        if code and not is_wanted(e[0]):
            return
        if code:
            # It is not lost: who reads it now is told, who reads it later may have more luck.
            trouble_entry(e[0], code, r.rest())
            self.on_ready(e)
            return
        e.trouble.reset()
        if e.place.node == self.me.node and e.place.slot == slot and e.place.generation == generation:
            e.moved = False
            if not e.owned and self.is_dead(e.owner):
                self.to_hold.push_back(id)
            self.on_ready(e)
            return
        e.has_copy = True
        e.copy.node = self.me.node
        e.copy.slot = slot
        e.copy.generation = generation
        e.copy.size = e.place.size
        if e.owned:
            self.know_copy(e, e.copy)
            if self.is_to_move(e):
                self.move_here(e)
        elif self.is_dead(e.owner):
            self.to_hold.push_back(id)
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

    cdef void pull_later(self, Entry* e, const string& why) noexcept nogil:
        """Its node cannot be reached. It comes back, or is declared dead; until then, and not for ever, whoever waits goes on waiting."""
        since = self.unreached.find(e.id)
        if since == self.unreached.end():
            self.unreached[e.id] = self.now
        elif self.now - deref(since).second > UNREACHED_NS:
            self.unreached.erase(e.id)
            trouble_entry(e[0], CODE_FETCH_TIMED_OUT, why)
            self.on_ready(e)
            return
        self.later_pulls.push_back(e.id)
        self.later_pulls_ns = self.now + PULL_AGAIN_NS

    cdef void node_found(self, const Id16& node, const string& address) noexcept nogil:
        """Where a node listens; what is wanted from there is pulled."""
        cdef vector[ObjectId] wanted
        cdef Entry* e
        cdef size_t i
        self.addresses[node] = address
        self.address_asked.erase(node)
        self.tell_again()
        it = self.entries.begin()
        while it != self.entries.end():
            e = &deref(it).second
            if e.state == IN_ARENA and not e.pulling and e.place.node == node and self.needs_copy(e):
                wanted.push_back(e.id)
            inc(it)
        for i in range(wanted.size()):
            e = find_entry(self.entries, wanted[i])
            if e != NULL:
                self.pull(e)

    cdef void pull_again(self) noexcept nogil:
        cdef vector[ObjectId] due
        cdef Entry* e
        cdef size_t i
        due.swap(self.later_pulls)
        for i in range(due.size()):
            e = find_entry(self.entries, due[i])
            if e != NULL and e.state == IN_ARENA and self.needs_copy(e):
                self.pull(e)
            else:
                self.unreached.erase(due[i])

    cdef bint needs_copy(self, Entry* e) noexcept nogil:
        return is_wanted(e[0]) or e.adopted or self.is_to_move(e)

    # -- nodes that are to go: their owners bring here what lies there, and free it there -----------------------------------------------

    cdef bint is_to_move(self, Entry* e) noexcept nogil:
        return e.owned and e.state == IN_ARENA and not self.draining.empty() and self.draining.count(e.place.node)

    cdef void node_drains(self, const Id16& node) noexcept nogil:
        cdef vector[ObjectId] there
        cdef Entry* e
        cdef size_t i
        if node == self.me.node or self.draining.count(node):
            return
        self.draining[node] = self.now
        it = self.entries.begin()
        while it != self.entries.end():
            e = &deref(it).second
            if self.is_to_move(e):
                there.push_back(e.id)
            inc(it)
        for i in range(there.size()):
            e = find_entry(self.entries, there[i])
            if e != NULL:
                self.bring_here(e)

    cdef void bring_here(self, Entry* e) noexcept nogil:
        """Also where a copy is known here: its store may have dropped it, and knows."""
        e.has_copy = False
        self.pull(e)

    cdef void move_here(self, Entry* e) noexcept nogil:
        """A copy is here, and stays for a moment: it becomes the primary one. Who still looks for it there tells so, and is told."""
        cdef Place old = e.place
        e.place = e.copy
        e.has_copy = e.moved = False
        drop_copy(e[0], e.place)
        self.tell_store(KEEP, e.place)
        self.free_place(old)

    cdef void on_location(self, Peer* peer, Reader& r) noexcept nogil:
        cdef ObjectId id = r.oid()
        cdef Place place
        cdef Entry* e
        place.node = r.id()
        place.slot = r.u32()
        place.generation = r.u32()
        place.size = r.u64()
        e = find_entry(self.entries, id)
        if e == NULL or e.state != IN_ARENA:
            self.free_place(place)
        else:
            self.know_copy(e, place)

    cdef void know_copy(self, Entry* e, const Place& place) noexcept nogil:
        cdef Place old
        if add_copy(e[0], place, old):
            self.free_place(old)  # most likely gone; or forgotten by a store that began anew

    cdef void store_lost(self) noexcept nogil:
        """The store's process ended; its supervisor starts it again and the shell reconnects. Questions are asked again then."""
        cdef vector[uint64_t] pulls
        cdef vector[ObjectId] wanted
        cdef size_t i
        cdef Entry* e
        self.store = NULL
        self.tellings_lost()
        call = self.calls.begin()
        while call != self.calls.end():
            if deref(call).second.waiter == NULL and deref(call).second.method.size() == PULL_KEY_BYTES:
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
        self.tell_again()
        again.swap(self.interrupted_pulls)
        for i in range(again.size()):
            e = find_entry(self.entries, again[i])
            if e != NULL:
                self.pull(e)
