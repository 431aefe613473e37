cdef class Allowances(Polling):
    """What this process may hold of its job's limits: given in advance, so that it is one comparison, and asked for when it is used up."""

    def limit_job(self, bint tasks, bint object_bytes):
        """Of the job that this process is in: whether its unfinished tasks and its bytes in stores have limits. Nothing is allowed before it was asked for."""
        cdef Allowance* before = self.p.allowance
        cdef Allowance* now = self.granted if tasks or object_bytes else &self.p.unlimited
        if now == NULL:
            raise RuntimeError("this node's raylet keeps no allowances, which the limits of JobConfig need: it runs an older version")
        self.mutex.lock()
        now.tasks = self.p.tasks.size()
        now.held_bytes = before.held_bytes
        now.writing_bytes = now.passed_bytes = now.leaving_bytes = 0
        now.allowed_tasks = 0 if tasks else WITHOUT_LIMIT
        now.allowed_bytes = 0 if object_bytes else WITHOUT_LIMIT
        if before != now:
            before.job = 0
        now.job = self.p.job
        self.p.allowance = now
        self.mutex.unlock()

    cdef int set_aside(self, uint64_t size_bytes) except -1:
        """Before so many bytes are written into the store; `settle` ends it. Raises JobStoreLimitExceeded."""
        cdef Allowance* a = self.p.allowance
        if a == &self.p.unlimited:
            return 0
        while True:
            a.writing_bytes += size_bytes
            fence()  # the raylet lowers what is allowed, and looks again: one of us sees the other
            if a.held_bytes + a.writing_bytes + a.leaving_bytes + a.passed_bytes <= load_word(&a.allowed_bytes):
                return 0
            a.writing_bytes -= size_bytes
            self.ask_allowance(False, size_bytes)

    cdef void settle(self, uint64_t size_bytes) noexcept:
        """What was set aside is counted otherwise by now, or was not written."""
        if self.p.allowance != &self.p.unlimited:
            self.p.allowance.writing_bytes -= size_bytes

    cdef int ask_allowance(self, bint of_tasks, uint64_t more) except -1:
        """Returns when this process may hold so much more. Raises JobLimitExceeded, of bytes JobStoreLimitExceeded."""
        from shoal_gcs.v1 import gcs_pb2

        from shoal.exceptions import JobLimitExceeded, JobStoreLimitExceeded, RpcError

        kind = gcs_pb2.UNFINISHED_TASKS if of_tasks else gcs_pb2.OBJECT_BYTES
        self.asked += 1
        query = gcs_pb2.AllowanceQuery(job_id=self.job_id, node_id=self.node_id, worker_id=self.worker_id, kind=kind, more=more)
        try:
            answer = gcs_pb2.AllowanceAnswer.FromString(self.call("gcs/AskAllowance", query.SerializeToString(), ALLOWANCE_TIMEOUT_S))
        except CallError as error:
            if error.code != NOT_FOUND:
                raise RpcError(f"the control store did not say whether the job may hold more: {error.message}", error.code) from error
            self.limit_job(False, False)  # the job has ended so long ago that nobody knows its limits
            return 0
        if answer.refusal and of_tasks:
            raise JobLimitExceeded(answer.refusal)
        if answer.refusal:
            raise JobStoreLimitExceeded(f"{answer.refusal}. Let references go, or set a higher max_object_bytes.")
        return 0
