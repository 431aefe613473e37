# The arena's headers, from shoal_objectstore.
from libc.stdint cimport uint32_t, uint64_t

cdef extern from "shoal_arena.h" nogil:
    ctypedef struct shoal_loc_t:
        uint32_t slot
        uint32_t generation
    ctypedef struct shoal_arena_t:
        pass
    int SHOAL_OK, SHOAL_NEED_EXTENT, SHOAL_GONE
    int shoal_arena_attach(int, uint32_t, shoal_arena_t**, char*, size_t)
    int shoal_arena_create(shoal_arena_t*, uint64_t, shoal_loc_t*, void**)
    int shoal_arena_add_extent(shoal_arena_t*, uint32_t)
    int shoal_arena_own(shoal_arena_t*, shoal_loc_t, const void*, const void*)
    int shoal_arena_seal(shoal_arena_t*, shoal_loc_t)
    int shoal_arena_has(shoal_arena_t*, shoal_loc_t)
    int shoal_arena_get(shoal_arena_t*, shoal_loc_t, const void**, uint64_t*)
    int shoal_arena_unpin(shoal_arena_t*, shoal_loc_t)
    int shoal_arena_free(shoal_arena_t*, shoal_loc_t)
    int shoal_arena_abort(shoal_arena_t*, shoal_loc_t)
    void shoal_arena_fork_child(shoal_arena_t*)
    void shoal_arena_close_fd(shoal_arena_t*)
    void shoal_arena_detach(shoal_arena_t*)
    void* shoal_arena_private(shoal_arena_t*, const void*, uint64_t, void**, uint64_t*)

cdef extern from "shoal_copy.h" nogil:
    const uint64_t SHOAL_LARGE_BUFFER
    uint64_t shoal_buffer_end(uint64_t, uint64_t)
    uint64_t shoal_buffer_begin(const void*, uint64_t, const void*, uint64_t)

cdef extern from "<sys/mman.h>" nogil:
    int munmap(void*, size_t)
