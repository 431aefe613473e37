cdef class Adoption(Copies):
    """Borrowed objects that outlive their owner. Whoever goes on with a reference asks for the object at once, and not only when it reads it: so it has
    the value, if small, or knows where it lies, before the owner dies; then it takes what lies in an arena into its own node's, and answers those to whom
    it lends the reference."""

    cdef void came_inside(self, vector[ContainedRef]& refs, const Owner& lender) noexcept nogil:
        """References that came inside an object which this process has, or waits for. Not those inside *their* values: a chain of a million would be asked for."""
        cdef Entry* e
        cdef size_t i
        for i in range(refs.size()):
            e = find_entry(self.entries, refs[i].id)
            if e != NULL:
                self.take_over(e, lender)

    cdef void take_over(self, Entry* e, const Owner& lender) noexcept nogil:
        if e.owned or e.state != PENDING or e.id.index == ACTOR_HANDLE:
            return
        if e.lender.get() == NULL and not (lender.worker == e.owner.worker):
            lend_entry(e[0], lender)
        self.ask(e)

    cdef void adopt(self, Entry* e) noexcept nogil:
        """Its owner is dead: what lies in this node's arena is pinned, what lies elsewhere is brought first, while its store still has it."""
        if e.state != IN_ARENA or e.held.get() != NULL:
            return
        if self.is_local(e):
            self.to_hold.push_back(e.id)
            return
        if not e.adopted:
            if self.adopted_bytes + e.place.size > self.most_adopted_bytes:
                return  # Limit: pinned copies would fill the arena; whoever reads it before its store lets it go still gets it
            e.adopted = True
            self.adopted_bytes += e.place.size
        self.pull(e)

    cdef void held_here(self, Entry* e, uint32_t slot, uint32_t generation) noexcept nogil:
        """The shell has pinned it. From now on it lies here, for whoever borrows it from this process as well."""
        hold_entry(e[0], slot, generation)
        if e.has_copy:
            e.place = e.copy
            e.has_copy = False
        e.moved = False
        e.copies.clear()

    cdef void not_held(self, Entry* e) noexcept nogil:
        """It was not where it should be: on disk perhaps."""
        if e.has_copy:
            e.has_copy = False
        else:
            e.moved = True
        self.adopt(e)
