cdef class Task:
    """What an executor got to run."""

    @property
    def task_id(self):
        return id_bytes(self.run.get().id)

    @property
    def kind(self):
        return self.run.get().kind

    @property
    def flags(self):
        return self.run.get().flags

    @property
    def num_returns(self):
        return self.run.get().num_returns

    @property
    def attempt(self):
        return self.run.get().attempt

    @property
    def lease_id(self):
        return self.run.get().lease_id

    @property
    def job_id(self):
        return PyBytes_FromStringAndSize(<char*> &self.run.get().job, 4)

    @property
    def function_id(self):
        return id_bytes(self.run.get().function)

    @property
    def actor_id(self):
        return id_bytes(self.run.get().actor)

    @property
    def depth(self):
        return self.run.get().depth

    @property
    def backpressure(self):
        return self.run.get().backpressure

    @property
    def name(self):
        return to_str(self.run.get().name)

    @property
    def method(self):
        return to_str(self.run.get().method)

    @property
    def group(self):
        return to_str(self.run.get().group)

    @property
    def extra(self):
        return to_bytes(self.run.get().extra)

    @property
    def caller(self):
        return id_bytes(self.run.get().caller.worker) + id_bytes(self.run.get().caller.node)

    def cancelled(self):
        return self.run.get().cancelled

    cdef tuple load(self):
        """(args value, deps): what the dependencies hold is read once, before the references in it could be let go."""
        cdef RunTask* t = self.run.get()
        cdef size_t i
        cdef RunDependency dep
        cdef Holder holder
        cdef object whole = None
        cdef list deps = []
        if self.deps_list is not None:
            return self.args_value, self.deps_list
        for i in range(t.deps.size()):
            dep = t.deps[i]
            if dep.entry:
                value = self.engine.value_of(dep.id, FOREVER)
            else:
                holder = Holder.__new__(Holder)
                holder.value = dep.value
                value = parse_value(holder, dep.value.get().data(), dep.value.get().size())
            if dep.position == ARGS_AS_OBJECT:
                whole = value
            else:
                deps.append((dep.position, value))
        if whole is None and not t.args.empty():
            holder = Holder.__new__(Holder)
            holder.value = make_bytes(t.args.data(), t.args.size())
            whole = parse_value(holder, holder.value.get().data(), holder.value.get().size())
        self.args_value = whole
        self.deps_list = deps
        return whole, deps

    def args(self):
        return self.load()[0]

    def deps(self):
        return self.load()[1]
