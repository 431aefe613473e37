"""The decisions of the control store, without I/O: events in (past tense), effects out (imperative).

No socket, no clock, no randomness here: the instant, and what is random, come with the event. `Cluster.handle` is the one door.
"""

from .cluster import Cluster
from .history import History
from .turn import Instant, Refusal, Refused

__all__ = ["Cluster", "History", "Instant", "Refusal", "Refused"]
