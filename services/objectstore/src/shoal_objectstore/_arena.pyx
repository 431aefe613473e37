# cython: language_level=3, freethreading_compatible=False
"""The arena for Python: `Arena` is a client, `Store` is the one process that lends space. See include/shoal_arena.h for how it works."""

import os

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer, PyBUF_SIMPLE
from libc.errno cimport errno
from libc.stdint cimport UINT32_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy
from posix.types cimport off_t

from ._header cimport *

VERSION = SHOAL_ARENA_VERSION
DEFAULT_MAX_CLIENTS = 512
DEFAULT_MAX_SLOTS = 1 << 20
SHARED = SHOAL_EXTENT_SHARED
WHOLE = SHOAL_EXTENT_WHOLE
STATE_NAMES = {SHOAL_SLOT_FREE: "free", SHOAL_SLOT_CLAIMED: "claimed", SHOAL_SLOT_CREATED: "created", SHOAL_SLOT_SEALED: "sealed",
               SHOAL_SLOT_DOOMED: "freed, pinned", SHOAL_SLOT_RELEASED: "released"}


class ArenaError(Exception):
    """Base of the arena's errors: ArenaError -> NeedExtent, ObjectGone, WrongState, NoSlot, LayoutMismatch, ArenaOSError."""


class NeedExtent(ArenaError):
    """No extent of this client has room: ask the store for one, add_extent, again."""


class ObjectGone(ArenaError):
    """The object was freed, or never was."""


class WrongState(ArenaError):
    """The object or the handle is in a state in which this cannot be done."""


class NoSlot(ArenaError):
    """All slots of the arena are taken."""


class LayoutMismatch(ArenaError):
    """The descriptor is no arena, or one of another layout."""


class ArenaOSError(ArenaError):
    """The operating system refused."""


_ERRORS = {SHOAL_NEED_EXTENT: NeedExtent, SHOAL_GONE: ObjectGone, SHOAL_BAD_STATE: WrongState, SHOAL_NO_SLOT: NoSlot,
           SHOAL_MISMATCH: LayoutMismatch, SHOAL_SYS: ArenaOSError}
_TEXTS = {SHOAL_NEED_EXTENT: "no extent with room", SHOAL_GONE: "the object is gone: it was freed, or this location never existed",
          SHOAL_BAD_STATE: "the object is not in the state for this", SHOAL_NO_SLOT: "all slots of the arena are taken: free objects, or make fewer and larger ones",
          SHOAL_MISMATCH: "another layout", SHOAL_SYS: "the operating system refused"}


cdef raise_code(int code, what, text=None):
    raise _ERRORS[code](f"{what}: {text or _TEXTS[code]}")


def create_arena(capacity_bytes, max_clients=DEFAULT_MAX_CLIENTS, max_slots=DEFAULT_MAX_SLOTS):
    """A new memfd that holds an empty arena; returns its descriptor. Nothing of it takes memory until it is used."""
    fd = os.memfd_create("shoal-arena", os.MFD_CLOEXEC)
    try:
        format_arena(fd, capacity_bytes, max_clients, max_slots)
    except BaseException:
        os.close(fd)
        raise
    return fd


def format_arena(int fd, uint64_t capacity_bytes, uint32_t max_clients=DEFAULT_MAX_CLIENTS, uint32_t max_slots=DEFAULT_MAX_SLOTS):
    """Writes the layout of an arena into an empty memfd."""
    cdef char err[300]
    code = shoal_arena_format(fd, capacity_bytes, max_clients, max_slots, err, sizeof(err))
    if code != SHOAL_OK:
        raise_code(code, "format", err.decode())


def words(int fd, slots):
    """[(generation, state name, whether the store evicted it)] of slots, read from the descriptor of an arena that nobody need have opened. A state is "" where
    there is no such slot."""
    cdef shoal_header_t h
    cdef uint64_t word
    data = os.pread(fd, sizeof(h), 0)
    if len(data) != sizeof(h):
        raise_code(SHOAL_MISMATCH, "reading words", "this descriptor is no Shoal arena")
    memcpy(&h, <const char*> data, sizeof(h))
    out = []
    for slot in slots:
        if slot >= h.max_slots:
            out.append((0, "", False))
            continue
        data = os.pread(fd, 8, h.words_offset + 8 * slot)
        memcpy(&word, <const char*> data, 8)
        out.append((shoal_word_generation(word), STATE_NAMES.get(shoal_word_state(word), ""), shoal_word_creator(word) == SHOAL_EVICTED))
    return out


# Safety: Writable, Buffer and Arena are unknown to the collector. What it finds in a cycle it clears first, their `arena` and `keep` among it, and what they give
# back when they go is given back through these. They lead to one another and to the Store, and so close no cycle of their own.
@cython.no_gc
cdef class Writable:
    """An object being written: a writable buffer until `seal()`. Dropped unsealed, it is aborted."""

    @property
    def slot(self):
        return self.loc.slot

    @property
    def generation(self):
        return self.loc.generation

    @property
    def location(self):
        return self.loc.slot, self.loc.generation

    @property
    def address(self):
        return <size_t> self.data

    def __len__(self):
        return self.nbytes

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.state:
            raise BufferError("the object is sealed or aborted")
        PyBuffer_FillInfo(view, self, self.data, self.nbytes, 0, flags)

    def __releasebuffer__(self, Py_buffer* view):
        pass

    def seal(self):
        """Readers may get it from now on. Returns (slot, generation)."""
        code = shoal_arena_seal(self.arena.a, self.loc)
        if code != SHOAL_OK:
            raise_code(code, f"seal of slot {self.loc.slot} generation {self.loc.generation}")
        self.state = 1
        return self.location

    def own(self, bytes owner not None):
        """Whose object it is: 16 bytes of the owner's worker id, 16 of its node's. Its end ends the object, unless somebody pins it then."""
        if len(owner) != 32:
            raise ValueError(f"an owner takes 32 bytes, got {len(owner)}")
        code = shoal_arena_own(self.arena.a, self.loc, <const char*> owner, <const char*> owner + 16)
        if code != SHOAL_OK:
            raise_code(code, f"own of slot {self.loc.slot} generation {self.loc.generation}")

    def abort(self):
        if self.state:
            return
        code = shoal_arena_abort(self.arena.a, self.loc)
        self.state = 2
        if code != SHOAL_OK:
            raise_code(code, f"abort of slot {self.loc.slot} generation {self.loc.generation}")

    def __dealloc__(self):
        if self.state == 0 and self.arena is not None and self.arena.a != NULL:
            shoal_arena_abort(self.arena.a, self.loc)


@cython.no_gc
cdef class Buffer:
    """A sealed object's bytes: a read-only buffer without a copy. While it or a view of it lives, the object stays."""

    @property
    def location(self):
        return self.loc.slot, self.loc.generation

    @property
    def address(self):
        return <size_t> self.data

    def __len__(self):
        return self.nbytes

    def __getbuffer__(self, Py_buffer* view, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a sealed object is read-only")
        PyBuffer_FillInfo(view, self, <void*>self.data, self.nbytes, 1, flags)

    def __releasebuffer__(self, Py_buffer* view):
        pass

    def __dealloc__(self):
        if self.data != NULL:
            shoal_arena_unpin(self.arena.a, self.loc)


@cython.no_gc
cdef class Arena:
    """A client's place in an arena. Thread-safe. In a forked child every method fails and releases do nothing.

    >>> store = Store(create_arena(64 << 20))
    >>> arena = Arena(store.fd, 1)
    >>> extent = store.reserve(2 << 20)
    >>> store.lend_extent(extent, 1)
    >>> arena.add_extent(extent)
    >>> bytes(arena.get(*arena.put(b"bytes")))
    b'bytes'
    """

    def __cinit__(self):
        self.a = NULL
        self.owned = False

    def __init__(self, int fd, uint32_t client):
        cdef char err[300]
        if self.a != NULL:
            raise WrongState("attached already")
        code = shoal_arena_attach(fd, client, &self.a, err, sizeof(err))
        if code != SHOAL_OK:
            raise_code(code, f"attaching as client {client}", err.decode())
        self.owned = True

    def __dealloc__(self):
        if self.a != NULL and self.owned:
            shoal_arena_detach(self.a)

    @property
    def client(self):
        return self.a.client

    @property
    def capacity_bytes(self):
        return self.a.header.capacity_bytes

    @property
    def extent_bytes(self):
        return self.a.header.extent_bytes

    @property
    def extents(self):
        """How many extents this process allocates in."""
        return self.a.local_count

    def create(self, uint64_t nbytes):
        """Room for an object. Raises NeedExtent, NoSlot."""
        cdef Writable out
        cdef shoal_loc_t loc
        cdef void* data = NULL
        cdef int code
        with nogil:
            code = shoal_arena_create(self.a, nbytes, &loc, &data)
        if code != SHOAL_OK:
            raise_code(code, f"create of {nbytes} bytes")
        out = Writable.__new__(Writable)
        out.arena = self
        out.loc = loc
        out.data = data
        out.nbytes = nbytes
        return out

    def put(self, data, owner=None):
        """create, copy, seal. Returns (slot, generation). `owner`: see Writable.own."""
        cdef Py_buffer view
        cdef Writable out
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            out = self.create(view.len)
            with nogil:
                memcpy(out.data, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        if owner is not None:
            out.own(owner)
        return out.seal()

    def add_extent(self, uint32_t extent):
        code = shoal_arena_add_extent(self.a, extent)
        if code != SHOAL_OK:
            raise_code(code, "add_extent", f"extent {extent}")

    def seal(self, uint32_t slot, uint32_t generation):
        self._on(shoal_arena_seal(self.a, shoal_loc_t(slot, generation)), "seal", slot, generation)

    def abort(self, uint32_t slot, uint32_t generation):
        self._on(shoal_arena_abort(self.a, shoal_loc_t(slot, generation)), "abort", slot, generation)

    def free(self, uint32_t slot, uint32_t generation):
        """The owner wants it no more. Raises ObjectGone when somebody freed it before."""
        self._on(shoal_arena_free(self.a, shoal_loc_t(slot, generation)), "free", slot, generation)

    def get(self, uint32_t slot, uint32_t generation):
        """The object's bytes, pinned while the buffer lives. Raises ObjectGone; WrongState while it is not sealed."""
        cdef Buffer out = Buffer.__new__(Buffer)
        cdef uint64_t nbytes = 0
        out.arena = self
        out.loc = shoal_loc_t(slot, generation)
        self._on(shoal_arena_get(self.a, out.loc, &out.data, &nbytes), "get", slot, generation)
        out.nbytes = nbytes
        return out

    cdef _on(self, int code, what, uint32_t slot, uint32_t generation):
        if code != SHOAL_OK:
            raise_code(code, f"{what} of slot {slot} generation {generation}")

    def fork_child(self):
        """In a forked child: from here on nothing of the parent's is touched. (The child notices by itself, too.)"""
        shoal_arena_fork_child(self.a)

    @property
    def usable(self):
        return bool(shoal_arena_usable(self.a))


cdef void collect_fault(void* to, const char* text) noexcept nogil:
    with gil:
        (<list>to).append(text.decode())


cdef class Store:
    """The arena's one lender (client 0). Opening it rebuilds what a predecessor knew. Thread-safe; slow calls run without the GIL."""

    def __init__(self, int fd):
        cdef char err[300]
        cdef int code
        if self.s != NULL:
            raise WrongState("open already")
        self.fd = os.dup(fd)
        with nogil:
            code = shoal_store_open(self.fd, &self.s, err, sizeof(err))
        if code != SHOAL_OK:
            os.close(self.fd)
            raise_code(code, "opening the arena", err.decode())

    def __dealloc__(self):
        if self.s != NULL:
            os.close(self.fd)
            shoal_store_close(self.s)

    def arena(self):
        """The store as a client of itself, for objects that it brings here. It shares this handle and keeps it alive."""
        cdef Arena out = Arena.__new__(Arena)
        out.a = self.s.a
        out.keep = self
        return out

    @property
    def capacity_bytes(self):
        return self.s.a.header.capacity_bytes

    @property
    def extent_bytes(self):
        return self.s.a.header.extent_bytes

    @property
    def max_clients(self):
        return self.s.a.header.max_clients

    @property
    def max_slots(self):
        return self.s.a.max_slots

    @property
    def data_offset(self):
        return self.s.a.header.data_offset

    @property
    def resident_bytes(self):
        return self.s.resident_bytes

    @property
    def free_warm_bytes(self):
        return self.s.free_warm_bytes

    @property
    def file_resident_bytes(self):
        """Pages of data that the file really has."""
        return shoal_store_file_resident(self.s)

    def reserve(self, uint64_t nbytes, uint32_t kind=SHOAL_EXTENT_SHARED, bint fill=True):
        """An extent of `nbytes` with its pages; lend it or give it back. Raises NeedExtent when the capacity is used up (args[1]: bytes missing)."""
        cdef uint32_t extent = 0
        cdef uint64_t missing = 0
        cdef int code
        with nogil:
            code = shoal_store_reserve(self.s, nbytes, kind, &extent, &missing)
        if code != SHOAL_OK:
            raise NeedExtent(f"no room for {nbytes} bytes", missing)
        if fill:
            self.fill(extent)
        return extent

    def cold_bytes(self, uint32_t extent):
        """What of an extent that was reserved and not filled has no pages."""
        return shoal_store_cold(self.s, extent)

    def fill_part(self, uint32_t extent, uint32_t part, uint32_t parts):
        """Makes the pages of one of `parts` parts resident: slow when they are cold. Threads may each fill another part. Whether the system had the memory; if
        it had not, `abandon` once all are done."""
        cdef int code
        if part >= parts:
            raise ValueError(f"part {part} of {parts}")
        with nogil:
            code = shoal_store_fill(self.s, extent, part, parts)
        return code == SHOAL_OK

    def abandon(self, uint32_t extent):
        """Gives back an extent that could not be filled."""
        with nogil:
            shoal_store_abandon(self.s, extent)

    def fill(self, uint32_t extent):
        """Makes all of its pages resident. When the system has no memory left the extent is given back."""
        if not self.fill_part(extent, 0, 1):
            self.abandon(extent)
            raise_code(SHOAL_SYS, "allocating pages", "the system has no memory for them")

    def give_back(self, uint32_t extent):
        """An extent that was reserved and not lent."""
        with nogil:
            shoal_store_unreserve(self.s, extent)

    def lend_extent(self, uint32_t extent, uint32_t client):
        code = shoal_store_lend(self.s, extent, client)
        if code != SHOAL_OK:
            raise_code(code, "lend_extent", f"extent {extent} cannot be lent to client {client}")

    def reclaim_client(self, uint32_t client, pid=None, uint64_t started=0):
        """Takes back what a dead client held. Idempotent. With pid and start time (see `identity`): only while the place is still that process's.
        Returns how many extents that were."""
        cdef int n
        cdef bint anybody = pid is None
        cdef uint32_t of = 0 if anybody else pid
        if client >= self.s.a.header.max_clients:
            raise ValueError(f"client {client}: the arena has {self.s.a.header.max_clients}")
        with nogil:
            n = shoal_store_reclaim_of(self.s, client, anybody, of, started)
        if n < 0:
            raise MemoryError("reclaim_client")
        return n

    def warm(self, uint64_t wanted, uint32_t most=UINT32_MAX):
        """Fills free units until `wanted` bytes are warm, or the capacity allows no more, or another thread is in `fill_part`; `most` units at most. Holds no
        lock for long, so a thread of low priority may do it, or several. Returns the units filled; -1 when the system has no memory for one more."""
        cdef int n
        with nogil:
            n = shoal_store_warm(self.s, wanted, most)
        return n

    def trim(self, uint64_t keep):
        """Punches free pages out until `keep` bytes of them are left. Returns the bytes given back to the system."""
        cdef uint64_t out
        with nogil:
            out = shoal_store_trim(self.s, keep)
        return out

    def touch(self, uint64_t most, double most_s):
        """Keeps free warm pages from being taken for idle memory, `most` bytes of them, where the kernel gives huge ones, for `most_s` of CPU time. Returns the
        bytes; what there was no time for is next. By one thread at a time."""
        cdef uint64_t touched, most_ns = <uint64_t> (most_s * 1e9)
        with nogil:
            touched = shoal_store_touch(self.s, most, most_ns)
        return touched

    def sweep(self, uint32_t idle_sweeps=0, bint squeeze=False):
        """The regular round; see shoal_store_sweep. Returns the statistics it gathered."""
        cdef shoal_stats_t stats
        cdef int code
        with nogil:
            code = shoal_store_sweep(self.s, idle_sweeps, squeeze, &stats)
        if code != SHOAL_OK:
            raise MemoryError("sweep")
        return stats

    def check(self, bint quiet=False):
        """Verifies slots, extents, pins and books. Returns what is wrong. `quiet`: no client is at work, so passing states are faults too."""
        faults = []
        with nogil:
            shoal_store_check(self.s, quiet, collect_fault, <void*>faults)
        return faults

    def tick(self):
        """One step of the clock in which the last use of objects is told. Returns it."""
        self.s.a.header.clock += 1
        return self.s.a.header.clock

    def keep(self, uint32_t slot, uint32_t generation):
        """This object is not to be among the `coldest`."""
        if slot < self.s.a.max_slots:
            self.s.kept[slot] = generation

    def keep_no_more(self, uint32_t slot, uint32_t generation):
        if slot < self.s.a.max_slots and self.s.kept[slot] == generation:
            self.s.kept[slot] = 0

    def coldest(self, uint64_t wanted, int64_t limit=10_000):
        """[(slot, generation, size)] of sealed objects that nobody pins, the longest unused first, until they make up `wanted` bytes."""
        cdef shoal_cold_t* found = NULL
        cdef int64_t n, i
        with nogil:
            n = shoal_store_coldest(self.s, wanted, limit, &found)
        if n < 0:
            raise MemoryError("coldest")
        try:
            return [(found[i].slot, found[i].generation, found[i].bytes) for i in range(n)]
        finally:
            free(found)

    def owner(self, uint32_t slot, uint32_t generation):
        """Whose object it is: 32 bytes, zeros if nobody has said. Raises ObjectGone."""
        cdef uint64_t word = shoal_load(&self.s.a.words[slot]) if slot < self.s.a.max_slots else 0
        cdef shoal_owner_t owner
        if shoal_word_generation(word) != generation or shoal_word_state(word) < SHOAL_SLOT_SEALED:
            raise ObjectGone(f"slot {slot} generation {generation}")
        owner = shoal_owner_get(self.s.a, slot)
        if shoal_load(&self.s.a.words[slot]) >> 32 != generation:
            raise ObjectGone(f"slot {slot} generation {generation}")
        return (<char*> &owner)[:32]

    def free_owned(self, workers, nodes):
        """Frees the objects of these owners, all of which are dead, by worker id and by node id; what somebody pins is left for a later call. Returns how many
        they were, and their bytes."""
        cdef bytes of_workers = b"".join(sorted(workers)), of_nodes = b"".join(sorted(nodes))
        cdef const uint8_t* w = <const uint8_t*> <const char*> of_workers
        cdef const uint8_t* n = <const uint8_t*> <const char*> of_nodes
        cdef uint64_t n_workers = len(of_workers) // 16, n_nodes = len(of_nodes) // 16, nbytes = 0
        cdef int64_t freed
        with nogil:
            freed = shoal_store_free_owned(self.s, w, n_workers, n, n_nodes, &nbytes)
        return freed, nbytes

    def evict(self, Buffer pinned not None):
        """Frees an object whose bytes are kept elsewhere. The caller pins it, and drops that pin once its successor could know. False: it was freed, or
        somebody else reads it."""
        return shoal_store_evict(self.s, pinned.loc) == SHOAL_OK

    def sealed(self, locations):
        """Which of these (slot, generation) are readable, in their order."""
        cdef uint64_t word
        out = []
        for slot, generation in locations:
            word = shoal_load(&self.s.a.words[<uint32_t> slot]) if slot < self.s.a.max_slots else 0
            out.append(shoal_word_generation(word) == generation and shoal_word_state(word) == SHOAL_SLOT_SEALED)
        return out

    def sealed_between(self, uint32_t first, uint32_t last):
        """{(slot, generation): size} of the readable objects in slots first to last - 1."""
        cdef uint64_t word
        cdef shoal_info_t info
        cdef uint32_t slot
        out = {}
        for slot in range(first, min(last, self.s.a.max_slots)):
            if not self.s.a.word_pages[slot // SHOAL_WORDS_PER_PAGE] or not shoal_read_slot(self.s.a, slot, &word, &info):
                continue
            if shoal_word_state(word) == SHOAL_SLOT_SEALED:
                out[slot, shoal_word_generation(word)] = info.bytes
        return out

    def copies(self):
        """{(slot, generation): size} of the copies that a store of this arena made and that can be dropped."""
        cdef uint64_t word
        cdef shoal_info_t info
        cdef uint32_t page, slot
        out = {}
        for page in range(self.s.a.max_slots // SHOAL_WORDS_PER_PAGE):
            if not self.s.a.word_pages[page]:
                continue
            for slot in range(page * SHOAL_WORDS_PER_PAGE, (page + 1) * SHOAL_WORDS_PER_PAGE):
                if shoal_read_slot(self.s.a, slot, &word, &info) and shoal_store_is_copy(self.s, slot, word):
                    out[slot, shoal_word_generation(word)] = info.bytes
        return out

    def make_primary(self, uint32_t slot, uint32_t generation):
        """This copy is the primary one from now on: `copies` of a successor leaves it out."""
        shoal_store_make_primary(self.s, shoal_loc_t(slot, generation))

    def idle_s(self, uint32_t slot, uint32_t generation):
        """For how long nobody has got a sealed object, by the arena's clock (see `tick`); None when it is gone or pinned."""
        if self.unpinned_size(slot, generation) is None:
            return None
        return <uint32_t> (self.s.a.header.clock - self.s.a.infos[slot].used)

    def pinned_by_others(self, uint32_t slot):
        """Whether a client other than the store pins it now."""
        cdef uint32_t c
        if slot < self.s.a.max_slots:
            for c in range(self.s.a.header.clients_used):
                if c != SHOAL_STORE_CLIENT and shoal_pinned_by(self.s.a, c, slot):
                    return True
        return False

    def gets(self, uint32_t client):
        """How many objects a client has read."""
        return self.s.a.clients[client].gets if client < self.s.a.header.max_clients else 0

    def objects(self, Py_ssize_t limit=1000):
        """(slot, generation, size, state, creator, pins) of up to `limit` objects, and how many there are."""
        cdef uint64_t word
        cdef shoal_info_t info
        cdef uint32_t slot, c, pins
        out = []
        total = 0
        for slot in range(self.s.a.max_slots):
            if not self.s.a.word_pages[slot // SHOAL_WORDS_PER_PAGE] or not shoal_read_slot(self.s.a, slot, &word, &info):
                continue
            if shoal_word_state(word) == SHOAL_SLOT_CLAIMED:
                continue
            total += 1
            if len(out) >= limit:
                continue
            pins = 0
            for c in range(self.s.a.header.clients_used):
                pins += shoal_pinned_by(self.s.a, c, slot)
            out.append((slot, shoal_word_generation(word), info.bytes, STATE_NAMES[shoal_word_state(word)], shoal_word_creator(word), pins))
        return out, total

    def clients(self):
        """{client: (pid, puts, put bytes, gets, get bytes, frees)} of those attached."""
        out = {}
        for c in range(self.s.a.header.clients_used):
            r = self.s.a.clients[c]
            if r.state == SHOAL_CLIENT_ATTACHED:
                out[c] = (r.pid, r.creates, r.create_bytes, r.gets, r.get_bytes, r.frees)
        return out

    def lent_to(self, uint32_t client):
        """Bytes of the extents that are lent to this client."""
        cdef uint64_t total = 0, word
        cdef uint32_t x
        for x in range(self.s.a.max_extents):
            word = shoal_load(&self.s.a.extents[x].word)
            if shoal_extent_state(word) >= SHOAL_EXTENT_LENT and shoal_extent_owner(word) == client:
                total += self.s.a.extents[x].allocated_bytes
        return total

    def dead_clients(self):
        """(client, pid, start time) of those attached whose process, in our own pid namespace, exists no more."""
        out = []
        ours = shoal_pid_namespace()
        for c in range(1, self.s.a.header.clients_used):
            r = self.s.a.clients[c]
            if r.state != SHOAL_CLIENT_ATTACHED or not r.pid or r.pid_namespace != ours:
                continue
            if shoal_process_gone(r.pid, r.started):
                out.append((c, r.pid, r.started))
        return out

    def identity(self, uint32_t client):
        """(pid, start time) of the process that attached as this client; pid 0: none."""
        if client >= self.s.a.header.max_clients:
            raise ValueError(f"client {client}: the arena has {self.s.a.header.max_clients}")
        return self.s.a.clients[client].pid, self.s.a.clients[client].started

    def unpinned_size(self, uint32_t slot, uint32_t generation):
        """The bytes of a sealed object that nobody pins; None when it is gone or pinned."""
        cdef uint64_t word
        cdef shoal_info_t info
        if slot >= self.s.a.max_slots or not shoal_read_slot(self.s.a, slot, &word, &info):
            return None
        if shoal_word_generation(word) != generation or shoal_word_state(word) != SHOAL_SLOT_SEALED or shoal_pinned(self.s.a, slot):
            return None
        return info.bytes

    def location(self, uint32_t slot, uint32_t generation):
        """(offset in the file, size) of an object that the caller has pinned, or that is being written. Raises ObjectGone."""
        cdef uint64_t word
        cdef shoal_info_t info
        if slot >= self.s.a.max_slots or not shoal_read_slot(self.s.a, slot, &word, &info) or shoal_word_generation(word) != generation:
            raise ObjectGone(f"slot {slot} generation {generation}")
        return self.s.a.header.data_offset + info.offset, info.bytes


def buffer_end(uint64_t at, uint64_t nbytes):
    """Where a buffer ends, at the latest, that `lay` lays at `at` or after it."""
    return shoal_buffer_end(at, nbytes)


def lay(to, uint64_t at, source):
    """Copies `source` into the writable buffer `to`, at `at` or after it, where a copy of its size is fast (see include/shoal_copy.h). Returns where it begins."""
    cdef Py_buffer target, view
    cdef uint64_t offset
    PyObject_GetBuffer(to, &target, PyBUF_WRITABLE)
    try:
        PyObject_GetBuffer(source, &view, PyBUF_SIMPLE)
        try:
            offset = shoal_buffer_begin(target.buf, at, view.buf, view.len)
            if offset + view.len > <uint64_t> target.len:
                raise ValueError(f"no room for {view.len} bytes at {offset} of {target.len}")
            with nogil:
                memcpy(<char*> target.buf + offset, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
    finally:
        PyBuffer_Release(&target)
    return offset


def crc32c(data, uint32_t crc=0, bint portable=False):
    """The CRC-32C of bytes that follow others whose CRC-32C is `crc`. `portable`: without the processor's own instruction, for tests.

    >>> hex(crc32c(b"6789", crc32c(b"12345")))
    '0xe3069283'
    """
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            if portable:
                crc = shoal_crc32c_portable(crc, <const uint8_t*> view.buf, view.len)
            else:
                crc = shoal_crc32c(crc, <const uint8_t*> view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return crc


cdef extern from "fcntl.h" nogil:
    int c_fallocate "fallocate"(int fd, int mode, off_t offset, off_t length)
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE


def punch_hole(int fd, off_t offset, off_t length):
    """Gives a part of a file back to its file system. Raises OSError."""
    cdef int code
    with nogil:
        code = c_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)
    if code:
        raise_os_error()


def allocate_ahead(int fd, off_t offset, off_t length):
    """Blocks for a part of a file beyond its end, so that appending to it needs none. Raises OSError."""
    cdef int code
    with nogil:
        code = c_fallocate(fd, FALLOC_FL_KEEP_SIZE, offset, length)
    if code:
        raise_os_error()


cdef raise_os_error():
    raise OSError(errno, os.strerror(errno))


def crash_at(int point, int after=1, int signal=9):
    """For tests: this process gets `signal` when it passes the instrumented point for the `after`-th time."""
    global shoal_crash_point, shoal_crash_after, shoal_crash_signal
    shoal_crash_after = after
    shoal_crash_signal = signal
    shoal_crash_point = point


def points_passed():
    """For tests: how often each instrumented point was passed in this process."""
    return [shoal_crash_passed[i] for i in range(SHOAL_POINTS)]
