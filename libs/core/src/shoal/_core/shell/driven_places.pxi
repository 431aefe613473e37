cdef class Places(Connections):
    """Objects in arenas that are numbers, and the connection to this node's store."""

    cdef Waiter waiter

    def join_store(self, uint64_t connection):
        cdef Peer* peer = self.p.new_peer()
        peer.kind = 3
        peer.identified = True
        self.p.store = self._open(peer, connection)
        self.p.store_found()

    def node_address(self, bytes node_id, bytes address):
        self.p.node_found(to_id(node_id), from_bytes(address))

    def put_at(self, bytes node_id, uint32_t slot, uint32_t generation, uint64_t size):
        """An object of this process that lies in a node's arena, with one local count."""
        cdef ObjectId id = object_id(self.p.new_task_id(), 0)
        cdef Entry* e = self.p.own(id)
        e.local = 1
        e.state = IN_ARENA
        e.place.node = to_id(node_id)
        e.place.slot = slot
        e.place.generation = generation
        e.place.size = size
        self.p.allowance.held_bytes += size
        return object_id_bytes(id)

    def want_here(self, bytes object_id, uint8_t urgency):
        """Somebody waits for a copy on this node: 0 in get, 1 in wait."""
        cdef Entry* e = find_entry(self.p.entries, to_object_id(object_id))
        cdef EntryWaiter waiter
        waiter.waiter = &self.waiter
        waiter.need_local = True
        waiter.urgency = urgency
        e.waiters.push_back(waiter)
        self.p.pull(e)

    def want_as_argument(self, bytes object_id):
        """A task that waits here needs it."""
        cdef Entry* e = find_entry(self.p.entries, to_object_id(object_id))
        e.run_dependants.push_back(new_run())
        self.p.pull(e)

    def place(self, bytes object_id):
        """(node id, slot, generation) of the primary copy; None when it is in no arena."""
        cdef Entry* e = find_entry(self.p.entries, to_object_id(object_id))
        if e == NULL or e.state != IN_ARENA:
            return None
        return id_bytes(e.place.node), e.place.slot, e.place.generation

    def arena_effects(self):
        """(slots to free, ids of objects to hold: answer each by `held`, slots that are held no more) since the last call."""
        cdef size_t i
        frees = [(self.p.arena_frees[i].slot, self.p.arena_frees[i].generation) for i in range(self.p.arena_frees.size())]
        holds = [object_id_bytes(self.p.to_hold[i]) for i in range(self.p.to_hold.size())]
        self.p.arena_frees.clear()
        ends = [(self.p.arena_unpins[i].slot, self.p.arena_unpins[i].generation) for i in range(self.p.arena_unpins.size())]
        self.p.to_hold.clear()
        self.p.arena_unpins.clear()
        return frees, holds, ends

    def to_hold(self, bytes object_id):
        """(slot, generation) of what is to be pinned here; None: not any more."""
        cdef Entry* e = find_entry(self.p.entries, to_object_id(object_id))
        if e == NULL or e.state != IN_ARENA or e.held.get() != NULL or not self.p.is_local(e):
            return None
        return (e.copy.slot, e.copy.generation) if e.has_copy else (e.place.slot, e.place.generation)

    def held(self, bytes object_id, bint found):
        """It was pinned at that place, or was not there."""
        cdef Entry* e = find_entry(self.p.entries, to_object_id(object_id))
        cdef Place at = e.copy if e.has_copy else e.place
        if found:
            self.p.held_here(e, at.slot, at.generation)
        else:
            self.p.not_held(e)
