cdef class Deaths(Execution):
    """Connections, processes and nodes that end, and what time brings."""

    cdef void forget_peers(self, const Id16& worker) noexcept nogil:
        """The connections of a process that died. What it had still written on an open one is read to its end, for a second: should it live after all, it must
        not be left without an answer on a connection that nobody looks at."""
        cdef size_t i
        cdef Peer* peer
        for i in range(self.all_peers.size()):
            peer = self.all_peers[i]
            if peer.who.worker == worker and peer != self.raylet and peer != self.store:
                peer.gone = True
                self.unmap(peer)
                self.forget_producer(peer)
                if peer.phase != OPEN or peer.resuming:
                    self.retire(peer)
                else:
                    peer.closed_ns = self.now
                    self.closed.push_back(peer)

    cdef void forget_producer(self, Peer* peer) noexcept nogil:
        it = self.streams.begin()
        while it != self.streams.end():
            if deref(it).second.producer == peer:
                deref(it).second.producer = NULL
            inc(it)

    cdef void worker_died(self, const Id16& worker, const Id16& started, bint known, uint16_t code, const string& cause) noexcept nogil:
        cdef size_t i, k
        cdef LeaseClass* c
        cdef vector[Lease*] lost
        cdef vector[ObjectId] unanswered, adopted, dropped
        cdef vector[shared_ptr[RunTask]] orphans
        cdef Peer* peer
        cdef Entry* e
        cdef bint before, hit
        if self.dead_workers.count(worker):
            return
        self.remember_death(worker, cause)
        self.forget_peers(worker)
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
                before = has_rows(e[0])
                hit = drop_row(e[0], worker)
                self.rows_changed(e, before)
                if hit and e.local == 0 and e.holds == 0 and not has_rows(e[0]):
                    dropped.push_back(e.id)
                k = 0
                while k < e.getters.size():
                    if e.getters[k].who.worker == worker:
                        erase_getter(e.getters, e.getters[k])
                    else:
                        k += 1
            elif e.owner.worker == worker:
                if e.state == PENDING:
                    unanswered.push_back(e.id)
                elif e.state == IN_ARENA:
                    adopted.push_back(e.id)
            elif e.state == PENDING and e.asked_lender and e.lender.get().worker == worker:
                unanswered.push_back(e.id)
            inc(it)
        for i in range(unanswered.size()):
            e = find_entry(self.entries, unanswered[i])
            if e != NULL and e.state == PENDING:
                self.ask_anew(e)
        for i in range(adopted.size()):
            e = find_entry(self.entries, adopted[i])
            if e != NULL:
                self.adopt(e)
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

    cdef void unanswered(self, Peer* peer, const string& why) noexcept nogil:
        """Nothing of what waits here was ever sent. Tasks go elsewhere at once, at no charge; the rest is dialled for again, until the raylets say what has
        happened, or it has been too long."""
        cdef size_t i, k
        cdef vector[Lease*] lost
        cdef vector[ObjectId] questions
        cdef vector[ActorPointer] callees
        cdef Entry* e
        cdef Peer* next_peer
        cdef Undialled* dials = &self.undialled[peer.who.worker]
        if dials.first_ns == 0:
            dials.first_ns = self.now
        if self.now - dials.first_ns >= RESUME_NS:
            self.undialled.erase(peer.who.worker)
            self.unreachable(peer, why)
            return
        dials.due_ns = self.now + DIAL_PAUSE_NS
        self.retire(peer)
        self.map_accepted(peer.who.worker)
        self.leases_of(peer, lost)
        for i in range(lost.size()):
            for k in range(lost[i].in_flight.size()):
                self.untell(lost[i].in_flight[k].get(), peer.who)
            self.tell_return(lost[i].id, lost[i].node, False)
            self.lose_lease(lost[i], NIL, True, CODE_UNREACHABLE, why)
        self.questions_to(peer, questions)
        for i in range(questions.size()):
            e = find_entry(self.entries, questions[i])
            if e != NULL and e.state == PENDING:
                self.ask_anew(e)
        if peer.n_deltas:
            next_peer = self.peer_to(peer.who)
            next_peer.deltas.append(peer.deltas)
            next_peer.delta_nodes.append(peer.delta_nodes)
            next_peer.n_deltas += peer.n_deltas
            peer.n_deltas = 0
            self.touch(next_peer)
        self.callees_of(peer, callees)
        for i in range(callees.size()):
            self.unsend(callees[i])

    cdef void map_accepted(self, const Id16& worker) noexcept nogil:
        """A connection that the other side has opened meanwhile serves as well."""
        cdef size_t i
        cdef Peer* other
        for i in range(self.all_peers.size()):
            other = self.all_peers[i]
            if other.identified and other.who.worker == worker and other.phase == OPEN and not other.gone and not other.leaving:
                self.peers[worker] = other
                return

    cdef void unreachable(self, Peer* peer, const string& why) noexcept nogil:
        """Dialled for again and again in vain. Whoever needs it later dials anew: it may live."""
        cdef size_t i
        cdef vector[ObjectId] questions
        cdef Entry* e
        cdef string cause = string(b"its worker cannot be reached: ") + why
        self.questions_to(peer, questions)
        for i in range(questions.size()):
            e = find_entry(self.entries, questions[i])
            if e == NULL or e.state != PENDING:
                continue
            if e.lender.get() != NULL and not e.asked_lender and not self.is_dead(e.lender.get()[0]):
                e.asked_lender = True
                self.ask_at(e, e.lender.get()[0])
            else:
                e.asked = False
                self.fail_object(e, CODE_OWNER_DIED, self.name_of_owner(e) + string(b", cannot be reached: ") + why, EMPTY)
        self.connection_lost(peer, cause)

    cdef void leases_of(self, Peer* peer, vector[Lease*]& found) noexcept nogil:
        cdef size_t i, k
        cdef LeaseClass* c
        for i in range(self.classes.size()):
            c = self.classes[i]
            for k in range(c.leases.size()):
                if c.leases[k].peer == peer:
                    found.push_back(c.leases[k])

    cdef void questions_to(self, Peer* peer, vector[ObjectId]& found) noexcept nogil:
        cdef Entry* e
        it = self.entries.begin()
        while it != self.entries.end():
            e = &deref(it).second
            if not e.owned and e.state == PENDING and e.asked and self.was_asked(e, peer.who.worker):
                found.push_back(e.id)
            inc(it)

    cdef void callees_of(self, Peer* peer, vector[ActorPointer]& found) noexcept nogil:
        a = self.actors.begin()
        while a != self.actors.end():
            if deref(a).second.phase == ACTOR_ALIVE and deref(a).second.worker == peer.who.worker:
                found.push_back(deref(a).second)
            inc(a)

    cdef void connection_lost(self, Peer* peer, const string& why) noexcept nogil:
        """A network connection broke, and nobody says that the process behind it died. What was in flight on it is unknown: calls of actors fail or are
        retried as at a restart, leases are given up, questions are asked again. Whatever comes next opens a new connection, or learns of the death."""
        cdef size_t i
        cdef vector[Lease*] lost
        cdef vector[ObjectId] unanswered
        cdef vector[ActorPointer] callees
        cdef vector[shared_ptr[RunTask]] unstarted
        cdef Entry* e
        cdef bint mapped  # else calls and questions went by another connection
        known = self.peers.find(peer.who.worker)
        mapped = known != self.peers.end() and deref(known).second == peer
        self.forget_producer(peer)
        self.retire(peer)
        self.leases_of(peer, lost)
        for i in range(lost.size()):
            self.give_up_lease(lost[i])
            self.lose_lease(lost[i], NIL, False, CODE_WORKER_CRASHED, why)
        run = self.runs.begin()
        while run != self.runs.end():
            if deref(run).second.get().from_ == peer:
                deref(run).second.get().from_ = NULL
                if deref(run).second.get().kind == 0 and deref(run).second.get().phase != RUN_STARTED:
                    unstarted.push_back(deref(run).second)  # its caller has it run elsewhere
            inc(run)
        for i in range(unstarted.size()):
            self.end_run(unstarted[i])
        entry = self.entries.begin()
        while entry != self.entries.end():
            while erase_getter(deref(entry).second.getters, peer):
                pass
            inc(entry)
        if not mapped:
            return
        self.questions_to(peer, unanswered)
        for i in range(unanswered.size()):
            e = find_entry(self.entries, unanswered[i])
            if e != NULL and e.state == PENDING:
                e.asked_lender = False
                self.ask_anew(e)
        self.callees_of(peer, callees)
        for i in range(callees.size()):
            self.settle_in_flight(callees[i], why)
            callees[i].broken = False
            self.drain_actor(callees[i])

    cdef bint was_asked(self, Entry* e, const Id16& worker) noexcept nogil:
        return e.lender.get().worker == worker if e.asked_lender else e.owner.worker == worker

    cdef void node_died(self, const Id16& node, const string& cause) noexcept nogil:
        cdef size_t i, k
        cdef vector[Id16] workers
        cdef vector[ObjectId] lost, adopted
        cdef Entry* e
        if self.dead_nodes.count(node):
            return
        self.dead_nodes[node] = cause
        self.addresses.erase(node)
        self.address_asked.erase(node)
        self.draining.erase(node)
        for i in range(self.all_peers.size()):
            if self.all_peers[i].who.node == node and self.all_peers[i].identified:
                self.all_peers[i].gone = True  # what one of its workers loses must not go to another one
                workers.push_back(self.all_peers[i].who.worker)
        for i in range(workers.size()):
            self.worker_died(workers[i], NIL, False, CODE_NODE_DIED, cause)
        for i in range(self.all_peers.size()):
            if self.all_peers[i].who.node == node and self.all_peers[i].gone:
                self.to_close.push_back(self.all_peers[i].number)  # nobody there would say so
        it = self.entries.begin()
        while it != self.entries.end():
            e = &deref(it).second
            if e.owned and drop_rows_of_node(e[0], node):
                self.rows_changed(e, True)
                self.drops.push_back(e.id)  # of processes there that this one had never spoken with
            if not e.copies.empty():
                drop_copies_of_node(e[0], node)
            if not e.owned and e.state == IN_ARENA and e.owner.node == node:
                adopted.push_back(e.id)
            if (e.state == IN_ARENA and e.place.node == node) or (e.state == PENDING and not e.owned and e.owner.node == node):
                lost.push_back(e.id)
            inc(it)
        self.settle_drops()
        self.tell_again()
        for i in range(lost.size()):
            e = find_entry(self.entries, lost[i])
            if e == NULL:
                continue
            if e.state == IN_ARENA:
                self.leave_node(e, node)
            elif e.state == PENDING and not e.owned and not e.asked_lender:
                self.ask_anew(e)
        for i in range(adopted.size()):
            e = find_entry(self.entries, adopted[i])
            if e != NULL:
                self.adopt(e)

    cdef void raylet_lost(self) noexcept nogil:
        """Without its raylet this process is cut off: everything that waits ends with one error."""
        cdef vector[shared_ptr[TaskState]] tasks
        cdef vector[ObjectId] pending
        cdef string why = string(b"the connection to this node's raylet ended: the node is down, or was shut down")
        cdef Entry* e
        cdef size_t i
        self.closing = True
        self.raylet = NULL
        entry = self.entries.begin()
        while entry != self.entries.end():
            deref(entry).second.getters.clear()  # who asked from another node hears what happened from its own raylet
            inc(entry)
        run = self.runs.begin()
        while run != self.runs.end():
            deref(run).second.get().from_ = NULL  # what fails here for want of a node is no answer: the caller hears of the death, and tries again
            inc(run)
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
            self.fire_all(deref(waiting).second[0])
            inc(waiting)
