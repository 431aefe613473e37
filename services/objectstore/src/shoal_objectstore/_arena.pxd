from libc.stdint cimport uint32_t

from ._header cimport shoal_arena_t, shoal_loc_t, shoal_store_t


cdef class Arena:
    cdef shoal_arena_t* a
    cdef bint owned
    cdef object keep  # whom the handle belongs to when it is not ours
    cdef object __weakref__
    cdef _on(self, int code, what, uint32_t slot, uint32_t generation)


cdef class Writable:
    cdef readonly Arena arena
    cdef shoal_loc_t loc
    cdef void* data
    cdef readonly Py_ssize_t nbytes
    cdef int state
    cdef object __weakref__


cdef class Buffer:
    cdef readonly Arena arena
    cdef shoal_loc_t loc
    cdef const void* data
    cdef readonly Py_ssize_t nbytes
    cdef object __weakref__


cdef class Store:
    cdef shoal_store_t* s
    cdef readonly int fd
    cdef object __weakref__
