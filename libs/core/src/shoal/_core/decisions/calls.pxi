cdef class Calls(Peers):
    """Questions to the raylet and the store, and their answers."""

    cdef void on_result(self, Reader& r) noexcept nogil:
        cdef uint64_t number = r.u64()
        cdef uint16_t code = r.u16()
        cdef string text = r.rest()
        call = self.calls.find(number)
        if call == self.calls.end():
            return
        deref(call).second.code = code
        if deref(call).second.waiter != NULL:
            deref(call).second.done = True
            deref(call).second.payload.swap(text)
            self.fire(deref(call).second.waiter)
            return
        if code:
            self.emit(EVENT_CALL_FAILED, code, NIL, deref(call).second.method, text)
        self.calls.erase(number)

    cdef void on_extent(self, Reader& r) noexcept nogil:
        call = self.calls.find(r.u64())
        if call != self.calls.end() and deref(call).second.waiter != NULL:
            deref(call).second.code = r.u16()
            deref(call).second.payload = r.rest()
            deref(call).second.done = True
            self.fire(deref(call).second.waiter)
