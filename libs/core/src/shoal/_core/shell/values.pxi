# Serialised values: before they have a place, and read where they lie.

cdef class Payload:
    """A serialised value before it has a place."""

    def __init__(self, uint8_t kind, bytes inband, buffers=(), refs=()):
        cdef uint64_t at
        self.kind = kind
        self.inband = inband
        self.buffers = [memoryview(b).cast("B") if not isinstance(b, bytes) else b for b in buffers] if buffers else ()
        self.refs = refs
        at = sizeof(ValueHeader) + PyBytes_GET_SIZE(inband)
        if self.buffers:
            at += 16 * len(self.buffers)
            for b in self.buffers:
                at = shoal_buffer_end(at, len(b))
        self.nbytes = at

    def to_bytes(self):
        cdef bytes out = PyBytes_FromStringAndSize(NULL, self.nbytes)
        self.write(PyBytes_AS_STRING(out))
        return out

    cdef int write(self, char* to) except -1:
        """Writes the value; `to` has room for nbytes. Copies what is large without the GIL."""
        cdef ValueHeader header
        cdef uint64_t at, offset
        cdef uint64_t n = PyBytes_GET_SIZE(self.inband)
        cdef Py_buffer view
        cdef char* table = to + sizeof(ValueHeader)
        cdef const char* inband
        memset(&header, 0, sizeof(header))
        header.kind = self.kind
        header.n_buffers = <uint32_t> len(self.buffers)
        header.inband_size = n
        memcpy(to, &header, sizeof(header))
        at = sizeof(ValueHeader) + 16 * <uint64_t> header.n_buffers
        inband = PyBytes_AS_STRING(self.inband)
        if n >= SHOAL_LARGE_BUFFER:
            with nogil:
                memcpy(to + at, inband, n)
        else:
            memcpy(to + at, inband, n)
        at += n
        for b in self.buffers:
            PyObject_GetBuffer(b, &view, PyBUF_SIMPLE)
            offset = shoal_buffer_begin(to, at, view.buf, view.len)
            memset(to + at, 0, offset - at)
            at = view.len
            memcpy(table, &offset, 8)
            memcpy(table + 8, &at, 8)
            table += 16
            if view.len > 65536:
                with nogil:
                    memcpy(to + offset, view.buf, view.len)
            else:
                memcpy(to + offset, view.buf, view.len)
            at = offset + view.len
            PyBuffer_Release(&view)
        # What was set aside for large buffers to begin where a copy is fast, and not needed.
        memset(to + at, 0, self.nbytes - at)
        return 0

    cdef int append_to(self, string& out) except -1:
        cdef size_t at = out.size()
        out.resize(at + self.nbytes)
        self.write(out.data() + at)
        return 0


@cython.no_gc
cdef class Holder:
    """Keeps the bytes behind a view alive: a shared inline value, or a pin in the arena."""
    # Safety: unknown to the collector, which would clear `engine` first in a cycle that it has found; then nobody could give the pin back.

    def __dealloc__(self):
        if self.pinned and self.engine is not None and self.engine.arena != NULL and not self.engine.forked:
            shoal_arena_unpin(self.engine.arena, self.place)


@cython.no_gc
cdef class View:
    """A read-only buffer into a value. NumPy arrays, Arrow buffers and memoryviews keep it, and with it the value."""

    def __getbuffer__(self, Py_buffer* view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("an object in the store is shared and read-only: copy it to change it")
        PyBuffer_FillInfo(view, self, <void*> self.data, self.size, 1, flags)

    def __len__(self):
        return self.size


cdef class Private:
    """A writable buffer over an object's bytes, copy on write: what is written is seen through this buffer alone. It keeps what it was made of, and with it the
    object."""

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.data, self.size, 0, flags)

    def __len__(self):
        return self.size

    def __dealloc__(self):
        # Before `keep` goes, and with it the pin.
        if self.mapping != NULL:
            munmap(self.mapping, self.mapped)


cdef class Value:
    """A value as it lies: its kind, the in-band bytes, views of its buffers."""

cdef Value parse_value(Holder holder, const char* data, uint64_t size):
    """A Value over bytes that `holder` keeps alive."""
    cdef Value value = Value.__new__(Value)
    cdef ValueHeader header
    cdef uint64_t at, offset, length
    cdef char* inband
    cdef uint32_t i
    cdef View view
    if size < sizeof(ValueHeader):
        raise ValueError(f"a value of {size} bytes is too short")
    memcpy(&header, data, sizeof(header))
    value.kind = header.kind
    at = sizeof(ValueHeader) + 16 * <uint64_t> header.n_buffers
    if at + header.inband_size > size:
        raise ValueError("a value's in-band part reaches past its end")
    if header.inband_size < SHOAL_LARGE_BUFFER:
        value.inband = PyBytes_FromStringAndSize(data + at, header.inband_size)
    else:
        # Without the GIL: nobody else knows the new object, and the holder keeps what is copied.
        value.inband = PyBytes_FromStringAndSize(NULL, header.inband_size)
        inband = PyBytes_AS_STRING(value.inband)
        with nogil:
            memcpy(inband, data + at, header.inband_size)
    value.buffers = []
    for i in range(header.n_buffers):
        memcpy(&offset, data + sizeof(ValueHeader) + 16 * i, 8)
        memcpy(&length, data + sizeof(ValueHeader) + 16 * i + 8, 8)
        if offset + length > size:
            raise ValueError("a value's buffer reaches past its end")
        view = View.__new__(View)
        view.holder = holder
        view.data = data + offset
        view.size = length
        value.buffers.append(view)
    return value
