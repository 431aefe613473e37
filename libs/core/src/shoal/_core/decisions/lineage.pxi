cdef class Lineage(Submission):
    """What finished tasks were called with, kept while results of theirs lie in a store, and their running again once such a result is lost.

    A kept task holds what nobody could make again (small values, its own large arguments): their bytes count. Of arguments that have a kept task themselves
    it keeps the entry alone: their values go as ever, and come back by running that task again. All else (puts in a store, borrowed references) it does not
    hold: whether such an argument is still there is seen when it is needed.
    """

    # -- keeping ----------------------------------------------------------------------------------------------------------------------

    cdef uint32_t results_of(self, TaskState* t) noexcept nogil:
        """Its results have the indices from 1 to this."""
        return t.items if t.flags & STREAMING else t.num_returns

    cdef void keep(self, shared_ptr[TaskState] task) noexcept nogil:
        """A task that ended well; its references are held for its flight still."""
        cdef TaskState* t = task.get()
        cdef Entry* e
        cdef uint32_t k
        cdef Remake why = REMAKE_KEPT
        if t.retries_left == 0:
            why = REMAKE_DISABLED
            if t.attempt:
                why = REMAKE_EXHAUSTED
        for k in range(1, self.results_of(t) + 1):
            e = find_entry(self.entries, object_id(t.id, k))
            if e == NULL or e.remake == REMAKE_KEPT or (e.state != IN_ARENA and e.state != PENDING):
                continue
            e.creator = t.name
            e.remake = why
            if why == REMAKE_KEPT:
                t.stored += 1
        if t.kept:
            if why != REMAKE_KEPT:
                self.forget(task, why)
            return
        if t.stored == 0:
            return
        t.kept = True
        self.sort_holds(t)
        self.lineage[t.id.high] = task
        self.lineage_bytes += t.lineage_bytes
        while self.lineage_bytes > self.most_lineage_bytes and not self.lineage.empty():
            self.forget(deref(self.lineage.begin()).second, REMAKE_EVICTED)

    cdef void sort_holds(self, TaskState* t) noexcept nogil:
        """Its references by how they are kept: see the class."""
        cdef vector[ObjectId] held, counted, others
        cdef Entry* e
        cdef size_t i
        t.lineage_bytes = LINEAGE_RECORD_BYTES + t.spec.size() + t.extra.size()
        for i in range(t.holds.size()):
            e = find_entry(self.entries, t.holds[i])
            if e == NULL or not e.owned or e.is_actor_handle:
                others.push_back(t.holds[i])
            elif e.remake == REMAKE_KEPT or e.state == PENDING:
                e.lineage += 1
                counted.push_back(t.holds[i])
            elif e.state == INLINE or (e.state == IN_ARENA and is_whole_arguments(t[0], e.id)):
                e.holds += 1
                t.lineage_bytes += e.value.get().size() if e.state == INLINE else e.place.size
                held.push_back(t.holds[i])
            else:
                others.push_back(t.holds[i])
        t.held = <uint32_t> held.size()
        t.counted = <uint32_t> counted.size()
        for i in range(counted.size()):
            held.push_back(counted[i])
        for i in range(others.size()):
            held.push_back(others[i])
        t.holds.swap(held)

    cdef void forget(self, shared_ptr[TaskState] task, Remake why) noexcept nogil:
        """It will not run again: none of its results needs it (REMAKE_NEVER), or they could not be made again from here on."""
        cdef TaskState* t = task.get()
        cdef Entry* e
        cdef size_t i
        cdef uint32_t k, held = t.held, all = t.held + t.counted
        cdef vector[ObjectId] holds
        holds = t.holds
        t.kept = False
        t.held = t.counted = t.stored = 0
        self.lineage_bytes -= t.lineage_bytes
        self.lineage.erase(t.id.high)
        if t.phase == DONE:
            t.holds.clear()
        if why != REMAKE_NEVER:
            for k in range(1, self.results_of(t) + 1):
                e = find_entry(self.entries, object_id(t.id, k))
                if e != NULL and e.remake == REMAKE_KEPT:
                    e.remake = why
        for i in range(held):
            self.drop_hold(holds[i])
        for i in range(held, all):
            e = find_entry(self.entries, holds[i])
            if e != NULL:
                e.lineage -= 1
                if e.lineage == 0:
                    self.drops.push_back(holds[i])
        self.settle_drops()

    cdef void result_freed(self, const ObjectId& id) noexcept nogil:
        """The entry of a result has gone whose task is kept."""
        cdef shared_ptr[TaskState] task
        it = self.lineage.find(id.task.high)
        if it == self.lineage.end():
            return
        task = deref(it).second
        task.get().stored -= 1
        if task.get().stored == 0:
            self.forget(task, REMAKE_NEVER)

    cdef void let_go(self, Entry* e) noexcept nogil:
        """Nobody counts it, but a kept task may need it again: the value goes, the entry stays."""
        if e.state == INLINE or e.state == IN_ARENA:
            self.free_places(e)
            self.make_pending(e)

    cdef void make_pending(self, Entry* e) noexcept nogil:
        """Its value is gone from everywhere."""
        cdef vector[ContainedRef] contains
        cdef vector[EntryWaiter] waiters
        cdef size_t i
        self.put_down(e)
        e.state = PENDING
        e.gone = e.owned
        e.asked = e.pulling = e.has_copy = e.moved = False
        e.value.reset()
        e.copies.clear()
        e.trouble.reset()
        e.contains.swap(contains)
        self.reverted += 1
        e.waiters.swap(waiters)
        for i in range(waiters.size()):
            if waiters[i].until_lost:
                self.fire(waiters[i].waiter)
            else:
                e.waiters.push_back(waiters[i])
        for i in range(contains.size()):
            self.drop_hold(contains[i].id)

    # -- making again -----------------------------------------------------------------------------------------------------------------

    cdef void want(self, Entry* e) noexcept nogil:
        """Somebody needs an object that is gone. A list and not recursion: its task's arguments may be gone too, a thousand deep."""
        cdef ObjectId id
        self.wanted.push_back(e.id)
        if self.making:
            return
        self.making = True
        while not self.wanted.empty():
            id = self.wanted.back()
            self.wanted.pop_back()
            e = find_entry(self.entries, id)
            if e != NULL and e.gone and e.state == PENDING:
                e.gone = False
                self.remake(e)
        self.making = False

    cdef void remake(self, Entry* e) noexcept nogil:
        cdef shared_ptr[TaskState] task
        cdef TaskState* t
        cdef string why
        it = self.lineage.find(e.id.task.high)
        if e.remake != REMAKE_KEPT or it == self.lineage.end():
            self.fail_lost(e, EMPTY)
            return
        task = deref(it).second
        t = task.get()
        if t.phase != DONE:
            return  # it runs again already, and will bring this one too
        why = self.obstacle(t)
        if not why.empty():
            self.fail_lost(e, why)
            return
        if t.retries_left > 0:
            t.retries_left -= 1
        t.attempt += 1
        t.phase = WAITING
        t.cancelled = t.lost_more = False
        self.remade += 1
        self.submit(task)

    cdef string obstacle(self, TaskState* t) noexcept nogil:
        """Why it cannot run again though it is kept; empty: it can. Forgets the references that have gone since."""
        cdef vector[ObjectId] left
        cdef size_t i
        cdef string why
        if t.kind == 2 and self.actor(t.actor).phase == ACTOR_DEAD:
            why = string(b"its actor is dead: ") + self.actor(t.actor).cause
            return why
        for i in range(t.deps.size()):
            if find_entry(self.entries, t.deps[i].id) == NULL:
                why = string(b"its argument ") + hex_text(t.deps[i].id) + string(b", which no task of this process made, has been let go since; hold on to it as long as to the result")
                return why
        for i in range(t.holds.size()):
            if i < t.held + t.counted or find_entry(self.entries, t.holds[i]) != NULL:
                left.push_back(t.holds[i])
        t.holds.swap(left)
        return why

    cdef void fail_lost(self, Entry* e, const string& obstacle) noexcept nogil:
        """It is lost for good: who made it, what happened, and why it does not come back."""
        cdef string name, made, why, where
        cdef uint16_t code = CODE_LINEAGE_BROKEN
        if e.creator.get() != NULL:
            name = e.creator.get()[0]
        made = string(b"It was returned by ") + name
        if e.missed.get() != NULL:
            why = e.missed.get().why
        else:
            why = string(b"its value was let go when nobody held it any more")
        if not obstacle.empty():
            why = why + string(b". ") + made + string(b", which cannot run again: ") + obstacle
        elif e.remake == REMAKE_EXHAUSTED:
            code = CODE_RETRIES_EXHAUSTED
            why = why + string(b". ") + made + string(b", which has used all of its max_retries (for actors: max_task_retries): give it more")
        elif e.remake == REMAKE_DISABLED:
            code = CODE_RETRIES_DISABLED
            why = why + string(b". ") + made + string(b", which was called with max_retries=0 (for actors: max_task_retries=0, the default) and does not run again")
        elif e.remake == REMAKE_EVICTED:
            code = CODE_LINEAGE_EVICTED
            why = why + string(b". ") + made + string(b", whose arguments were let go: more than SHOAL_MAX_LINEAGE_BYTES were kept of later tasks")
        elif e.id.index == 0:
            code = CODE_OBJECT_WAS_PUT
            where = name
            if where.empty():
                where = string(b"the driver")
            why = why + string(b". It was made by put() in ") + where + string(b", and so no task can make it again: return such values from tasks instead")
        else:
            why = why + string(b". ") + made + string(b", which did not end well, and so does not run again")
        self.fail_object(e, code, why, name)

    # -- generators -------------------------------------------------------------------------------------------------------------------

    cdef void settle_items(self, TaskState* t, uint8_t status, Arrived* error, uint32_t items) noexcept nogil:
        """A generator has ended some of whose items had been lost: what it did not give again."""
        cdef uint32_t k
        cdef Entry* e
        if status == STATUS_OK and t.lost_more:
            return  # they are asked for once it is kept
        t.lost_more = False
        for k in range(1, items + 1):
            e = find_entry(self.entries, object_id(t.id, k))
            if e == NULL or e.state != PENDING:
                continue
            e.gone = False
            if status == STATUS_OK:
                self.fail_lost(e, string(b"it did, and yielded fewer items than before"))
            else:
                self.apply(e, error[0])

    cdef void want_items(self, TaskState* t) noexcept nogil:
        """Items were lost while it ran, and it has ended: it runs once more."""
        cdef uint32_t k
        cdef Entry* e
        t.lost_more = False
        for k in range(1, t.items + 1):
            e = find_entry(self.entries, object_id(t.id, k))
            if e != NULL and e.state == PENDING:
                e.gone = True
                self.ask(e)
