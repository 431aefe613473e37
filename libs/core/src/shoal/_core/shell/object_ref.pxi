@cython.no_gc
cdef class ObjectRef:
    """A counted reference to an object: a value that may not exist yet, perhaps in another process."""
    # Unknown to the collector: what it leads to lives for as long as the process. Each of a million references would bring the next collection of everything nearer,
    # and each of those visits all of them.

    def __init__(self):
        raise TypeError("an ObjectRef comes from .remote() or put()")

    def __dealloc__(self):
        if self.engine is not None:
            self.engine.release(self.id)

    def binary(self):
        return object_id_bytes(self.id)

    def hex(self):
        return object_id_bytes(self.id).hex()

    def task_id(self):
        return id_bytes(self.id.task)

    def owner(self):
        return id_bytes(self.who.worker) + id_bytes(self.who.node)

    def job_id(self):
        from shoal._ids import JobID

        return JobID(self.engine.job_id)

    def is_nil(self):
        return False

    def __hash__(self):
        return <Py_hash_t> ((self.id.task.low ^ (self.id.task.high * 0x9e3779b97f4a7c15ULL) ^ (<uint64_t> self.id.index << 40)) >> 2)

    def __eq__(self, other):
        return isinstance(other, ObjectRef) and (<ObjectRef> other).id == self.id

    def __repr__(self):
        return f"ObjectRef({self.hex()})"

    @classmethod
    def __class_getitem__(cls, item):
        import types

        return types.GenericAlias(cls, item)

    def __reduce__(self):
        from shoal import _serialization

        _serialization.record_ref(self)
        return _serialization.rebuild_ref, (self.binary(), self.owner())

    def future(self):
        """A concurrent.futures.Future of the value."""
        from shoal import _serialization

        future = concurrent.futures.Future()

        def settle(ref):
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(_serialization.load(self.engine.get([ref])[0]))
            except BaseException as error:
                future.set_exception(error)

        self.engine.add_done_callback(self, settle)
        return future

    def as_future(self, _internal=False):
        """An asyncio.Future of the value, on the running loop."""
        from shoal import _serialization

        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def deliver(ref):
            if future.done():
                return
            try:
                future.set_result(_serialization.load(self.engine.get([ref])[0]))
            except BaseException as error:
                future.set_exception(error if not isinstance(error, StopIteration) else RuntimeError(str(error)))

        self.engine.add_loop_callback(self, loop, deliver)
        return future

    def __await__(self):
        return self.as_future().__await__()
