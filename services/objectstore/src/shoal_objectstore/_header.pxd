# The C headers, as far as the modules here use them.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "shoal_arena_store.h" nogil:
    enum:
        SHOAL_ARENA_VERSION
        SHOAL_OK
        SHOAL_NEED_EXTENT
        SHOAL_GONE
        SHOAL_BAD_STATE
        SHOAL_NO_SLOT
        SHOAL_MISMATCH
        SHOAL_SYS
        SHOAL_SLOT_FREE
        SHOAL_SLOT_CLAIMED
        SHOAL_SLOT_CREATED
        SHOAL_SLOT_SEALED
        SHOAL_SLOT_DOOMED
        SHOAL_SLOT_RELEASED
        SHOAL_EXTENT_SHARED
        SHOAL_EXTENT_WHOLE
        SHOAL_EXTENT_LENT
        SHOAL_CLIENT_ATTACHED
        SHOAL_STORE_CLIENT
        SHOAL_EVICTED
        SHOAL_WORDS_PER_PAGE
        SHOAL_POINTS

    ctypedef struct shoal_loc_t:
        uint32_t slot
        uint32_t generation

    ctypedef struct shoal_owner_t:
        uint64_t* worker
        uint64_t* node

    ctypedef struct shoal_header_t:
        uint64_t capacity_bytes
        uint64_t file_bytes
        uint64_t data_offset
        uint64_t data_bytes
        uint64_t extent_bytes
        uint32_t max_clients
        uint32_t max_slots
        uint32_t max_extents
        uint32_t clients_used
        uint32_t clock
        uint64_t words_offset

    ctypedef struct shoal_client_t:
        uint32_t state
        uint32_t pid
        uint64_t pid_namespace
        uint64_t started
        uint64_t creates
        uint64_t create_bytes
        uint64_t gets
        uint64_t get_bytes
        uint64_t frees

    ctypedef struct shoal_info_t:
        uint64_t offset
        uint64_t bytes
        uint32_t extent
        uint32_t used

    ctypedef struct shoal_extent_t:
        uint64_t word
        uint64_t bytes
        uint64_t allocated_bytes
        uint32_t kind

    ctypedef struct shoal_arena_t:
        uint32_t client
        shoal_header_t* header
        shoal_client_t* clients
        uint64_t* words
        uint8_t* word_pages
        shoal_info_t* infos
        shoal_extent_t* extents
        uint8_t* data
        uint32_t max_slots
        uint32_t max_extents
        uint32_t local_count

    ctypedef struct shoal_store_t:
        shoal_arena_t* a
        int fd
        uint32_t* kept
        uint64_t resident_bytes
        uint64_t free_warm_bytes

    ctypedef struct shoal_stats_t:
        uint64_t capacity_bytes
        uint64_t resident_bytes
        uint64_t free_warm_bytes
        uint64_t sealed_bytes
        uint64_t created_bytes
        uint64_t doomed_bytes
        uint64_t lent_bytes
        uint64_t lent_free_bytes
        uint32_t sealed
        uint32_t created
        uint32_t doomed
        uint32_t released
        uint32_t claimed
        uint32_t clients
        uint32_t extents
        uint32_t extents_idle

    int shoal_arena_format(int memfd, uint64_t capacity, uint32_t max_clients, uint32_t max_slots, char* err, size_t errlen)
    int shoal_arena_attach(int memfd, uint32_t client, shoal_arena_t** out, char* err, size_t errlen)
    int shoal_arena_create(shoal_arena_t* a, uint64_t nbytes, shoal_loc_t* loc, void** data)
    int shoal_arena_add_extent(shoal_arena_t* a, uint32_t extent)
    int shoal_arena_own(shoal_arena_t* a, shoal_loc_t loc, const void* worker, const void* node)
    shoal_owner_t shoal_owner_get(const shoal_arena_t* a, uint32_t slot)
    int shoal_arena_seal(shoal_arena_t* a, shoal_loc_t loc)
    int shoal_arena_get(shoal_arena_t* a, shoal_loc_t loc, const void** data, uint64_t* nbytes)
    int shoal_arena_unpin(shoal_arena_t* a, shoal_loc_t loc)
    int shoal_arena_free(shoal_arena_t* a, shoal_loc_t loc)
    int shoal_arena_abort(shoal_arena_t* a, shoal_loc_t loc)
    void shoal_arena_fork_child(shoal_arena_t* a)
    void shoal_arena_detach(shoal_arena_t* a)
    int shoal_arena_usable(const shoal_arena_t* a)
    uint32_t shoal_word_generation(uint64_t w)
    uint32_t shoal_word_creator(uint64_t w)
    uint32_t shoal_word_state(uint64_t w)
    uint32_t shoal_extent_owner(uint64_t w)
    uint32_t shoal_extent_state(uint64_t w)
    uint64_t shoal_load(const uint64_t* p)
    int shoal_pinned(const shoal_arena_t* a, uint32_t slot)
    int shoal_pinned_by(const shoal_arena_t* a, uint32_t client, uint32_t slot)
    int shoal_read_slot(shoal_arena_t* a, uint32_t slot, uint64_t* word, shoal_info_t* info)
    int shoal_process_gone(uint32_t pid, uint64_t started)
    uint64_t shoal_pid_namespace()

    int shoal_store_open(int memfd, shoal_store_t** out, char* err, size_t errlen)
    void shoal_store_close(shoal_store_t* s)
    int shoal_store_reserve(shoal_store_t* s, uint64_t nbytes, uint32_t kind, uint32_t* extent, uint64_t* missing)
    void shoal_store_unreserve(shoal_store_t* s, uint32_t extent)
    void shoal_store_abandon(shoal_store_t* s, uint32_t extent)
    uint64_t shoal_store_cold(const shoal_store_t* s, uint32_t extent)
    int shoal_store_fill(shoal_store_t* s, uint32_t extent, uint32_t part, uint32_t parts)
    int shoal_store_lend(shoal_store_t* s, uint32_t extent, uint32_t client)
    int shoal_store_warm(shoal_store_t* s, uint64_t wanted, uint32_t most)
    uint64_t shoal_store_trim(shoal_store_t* s, uint64_t keep)
    uint64_t shoal_store_touch(shoal_store_t* s, uint64_t most, uint64_t most_ns)
    int shoal_store_reclaim_of(shoal_store_t* s, uint32_t client, int anybody, uint32_t pid, uint64_t started)
    ctypedef struct shoal_cold_t:
        uint32_t slot
        uint32_t generation
        uint32_t age
        uint64_t bytes

    int64_t shoal_store_coldest(shoal_store_t* s, uint64_t wanted, int64_t limit, shoal_cold_t** out)
    int64_t shoal_store_free_owned(shoal_store_t* s, const uint8_t* workers, uint64_t n_workers, const uint8_t* nodes, uint64_t n_nodes, uint64_t* nbytes)
    bint shoal_store_is_copy(const shoal_store_t* s, uint32_t slot, uint64_t word)
    void shoal_store_make_primary(shoal_store_t* s, shoal_loc_t loc)
    int shoal_store_evict(shoal_store_t* s, shoal_loc_t loc)
    int shoal_store_sweep(shoal_store_t* s, uint32_t idle_sweeps, int squeeze, shoal_stats_t* out)
    ctypedef void (*shoal_fault_t)(void* to, const char* text)
    void shoal_store_check(shoal_store_t* s, int quiet, shoal_fault_t fault, void* to)
    uint64_t shoal_store_file_resident(shoal_store_t* s)

    # Only with SHOAL_ARENA_CRASH_POINTS
    int shoal_crash_point
    int shoal_crash_after
    int shoal_crash_signal
    uint64_t* shoal_crash_passed

cdef extern from "shoal_copy.h" nogil:
    uint64_t shoal_buffer_end(uint64_t at, uint64_t n)
    uint64_t shoal_buffer_begin(const void* to, uint64_t at, const void* source, uint64_t n)

cdef extern from "shoal_checksum.h" nogil:
    uint32_t shoal_crc32c(uint32_t crc, const uint8_t* at, size_t n)
    uint32_t shoal_crc32c_portable(uint32_t crc, const uint8_t* at, size_t n)
