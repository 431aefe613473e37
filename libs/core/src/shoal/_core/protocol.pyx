# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The core worker's protocol: ownership, leases, actors and execution, without a socket, a clock or the GIL.

Frames come in by `on_frame`, time by `now`; frames go out into each peer's `out`, and everything else that the world must do is left in lists
for the shell (`engine.pyx`): connections to open, waiters to wake, events for Python, arena slots to free. The shell holds one lock around every call.

One object, told in chapters (`decisions/`): each class adds a noun to those before it and knows nothing of those behind it, but for the few calls that say
so by `(<Protocol> self)`. They are one extension, so that a call from chapter to chapter costs what a call within one does.
"""
from cython.operator cimport dereference as deref, preincrement as inc
from libc.math cimport fabs
from libc.string cimport memcpy
from shoal._core.state cimport *
from shoal._core.std cimport deque, shared_ptr, string, unordered_map, vector

# Limits and times, each with its reason.
cdef enum:
    IDLE_LEASE_NS = 50_000_000          # an idle worker is worth more to somebody else
    HAND_BACK_NS = 10_000_000           # what waited this long behind a running task is better off elsewhere
    PIPELINE_US = 2_000                 # work to keep ahead at a worker: hides the round trip, little enough to rebalance
    PIPELINE_MOST = 256
    APART_NS = 500_000_000              # how long a class that is to spread waits for a node that should have room
    OOM_PAUSE_NS = 1_000_000_000        # a task that lacked memory is tried again after this, then after twice as long, ...
    OOM_PAUSES_MOST = 6                 # ... up to 64 times as long
    WANT_MOST = 4096                    # more wishes than this tell the raylet nothing
    DEATH_NOTICE_NS = 1_000_000_000     # how long a closed connection waits for the raylet to say why
    DIAL_PAUSE_NS = 250_000_000         # after a dial that nobody answered
    DIALS_APART_NS = 1_000_000_000      # one that begins so long after it was due is the first of others: nobody has waited meanwhile
    REDIALS = 3                         # of a broken connection, after the first: a network that breaks once may break again
    DEAD_REMEMBERED = 10_000            # processes whose death is known by heart
    RETIRED_NS = 100_000_000            # a closed connection's record is freed this late: whoever had it on the stack has long returned

    TELLINGS_MOST = 1_000_000           # frees that the store has not done yet; beyond that they are done when this process ends
    PULL_AGAIN_NS = 500_000_000         # after the store has tried for most of a second: its node is away, or dead and not yet declared so
    LINEAGE_RECORD_BYTES = 512          # a kept task without its arguments
    ALL_CONSUMED = 0x7FFFFFFF           # told to a generator that runs again, when nobody iterates any more

    OF_ACTOR = 0x8000
    OWNS_OBJECTS = 1                    # the flags of OWNS
    OWNS_LEAVING = 2
    LENT_NOTHING_NS = 1_000_000_000     # nobody has held an object of ours for this long
    ADDRESS_PAUSE_NS = 1_000_000_000    # a node whose address is not known is asked for no more often
    PULL_KEY_BYTES = 44                 # object, node, slot, generation: what a pull was for
    ACTOR_HANDLE = 0xFFFFFFFF           # the index of the object that counts an actor's handles
    BYE_IDLE = 0                        # the code of a BYE that both sides agree to

cdef uint64_t MOST_TASKS = 2_000_000             # a process has at most so many tasks that did not end: about 2 GB of its memory
cdef uint64_t MOST_SPEC_BYTES = 2_000_000_000ULL  # and so many bytes of arguments that travel inside their tasks
cdef uint64_t MOST_ADOPTED_BYTES = 1 << 30       # of objects of dead owners that were brought here; the shell knows better, by the arena's size
cdef uint64_t MOST_LINEAGE_BYTES = 1 << 30       # as Ray: what finished tasks were called with, kept to run them again
cdef uint64_t UNREACHED_NS = 30_000_000_000ULL   # a node that nobody declares dead may be silent for this long before its objects cannot be had for now
cdef uint64_t RESUME_NS = 10_000_000_000ULL      # how long a broken network connection may take to go on within its epoch
cdef uint64_t IDLE_PEER_NS = 60_000_000_000ULL   # a connection that nobody has used for this long is closed; the next use opens another
cdef uint64_t IDLE_LOOK_NS = 10_000_000_000ULL   # how often that is looked at

def records():
    """The layout of the records that this extension was built with."""
    return layout()


cdef Id16 NIL
cdef string EMPTY
cdef string BROKE = string(b"the connection to its node broke")

include "decisions/peers.pxi"
include "decisions/calls.pxi"
include "decisions/references.pxi"
include "decisions/objects.pxi"
include "decisions/copies.pxi"
include "decisions/adoption.pxi"
include "decisions/streams.pxi"
include "decisions/tasks.pxi"
include "decisions/leases.pxi"
include "decisions/actors.pxi"
include "decisions/submission.pxi"
include "decisions/lineage.pxi"
include "decisions/losses.pxi"
include "decisions/execution.pxi"
include "decisions/deaths.pxi"
include "decisions/sessions.pxi"


cdef class Protocol(Sessions):
    def __cinit__(self):
        self.raylet = NULL
        self.store = NULL
        self.ordered_runs = True
        self.oom_retries = -1
        self.allowance = &self.unlimited
        self.unlimited.allowed_tasks = self.unlimited.allowed_bytes = WITHOUT_LIMIT
        self.most_tasks = MOST_TASKS
        self.most_spec_bytes = MOST_SPEC_BYTES
        self.most_lineage_bytes = MOST_LINEAGE_BYTES
        self.most_adopted_bytes = MOST_ADOPTED_BYTES

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.all_peers.size()):
            free_peer(self.all_peers[i])
        for i in range(self.classes.size()):
            free_class(self.classes[i])

    cdef int on_frame(self, Peer* peer, const char* header) noexcept nogil:
        """One frame that was admitted, with its payload behind the header. -1 when it is broken: the connection must end."""
        cdef uint8_t type = <uint8_t> header[4]
        cdef Reader r = Reader(header + HEADER_SIZE, load32(header))
        if peer.gone and (type == TASK or type == GET or type == ITEM):
            return 0  # of a process that died: nobody would take the answer
        if type == TASK:
            self.on_task(peer, r, False)
        elif type == REPLY:
            self.on_reply(peer, r)
        elif type == HELLO:
            self.on_hello(peer, header, r)
        elif type == REF_DELTA:
            self.on_ref_delta(peer, r)
        elif type == GET:
            self.on_get(peer, r)
        elif type == GOT:
            self.on_got(peer, r)
        elif type == HANDBACK:
            self.on_handback(peer, r)
        elif type == CANCEL:
            self.on_cancel(peer, r)
        elif type == ITEM:
            self.on_item(peer, r)
        elif type == ITEM_ACK:
            self.on_item_ack(r)
        elif type == LOCATION:
            self.on_location(peer, r)
        elif type == LOST:
            self.on_lost(peer, r)
        elif type == PING:
            self.on_ping(peer, r)
        elif type == PONG:
            self.on_pong(peer, r.u64())
        elif type == BYE:
            self.on_bye(peer, r)
        elif peer == self.raylet:
            self.on_raylet_frame(peer, type, r)
        elif type == EXTENT_GRANT and peer == self.store:
            self.on_extent(r)
        elif type == PULLED and peer == self.store:
            self.on_pulled(r)
        elif type == SETTLED and peer == self.store:
            self.on_settled(r)
        # ACK and what a newer side may add need no answer.
        if peer.leaving and (type == TASK or type == GET):
            self.stay(peer)
        return 0 if r.ok else -1

    cdef void on_raylet_frame(self, Peer* peer, uint8_t type, Reader& r) noexcept nogil:
        """What only this node's raylet may say."""
        cdef Id16 worker, task
        cdef uint64_t number
        cdef uint16_t code
        cdef string text
        if type == LEASE_GRANT:
            self.on_grant(r)
        elif type == LEASE_REFUSED:
            self.on_refused(r)
        elif type == LEASE_RECLAIM:
            self.on_reclaim(r)
        elif type == LEASE_BEGIN:
            self.on_lease_begin(r)
        elif type == ACTOR_CREATE:
            self.on_task(peer, r, True)
        elif type == RESULT:
            self.on_result(r)
        elif type == EVENT:
            text = r.str16()
            self.emit(EVENT_CHANNEL, 0, NIL, text, r.rest())
        elif type == EXIT:
            number = r.u8()
            self.emit(EVENT_EXIT, number, NIL, r.rest(), EMPTY)
        elif type == WORKER_DIED:
            worker = r.id()
            r.id()
            task = r.id()
            code = r.u16()
            text = r.rest()
            self.worker_died(worker, task, True, code, text)
        elif type == NODE_DRAINS:
            self.node_drains(r.id())
        elif type == NODE_DIED:
            worker = r.id()
            text = r.rest()
            self.node_died(worker, text)
