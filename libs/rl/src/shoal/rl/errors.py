"""Everything that `shoal.rl` raises.

::

    RLError
    ├── ConfigError                also a ValueError: a setting has a value that cannot be
    │   ├── UnknownSettingError    also a TypeError: there is no such setting; the nearest is named
    │   └── SpaceError             two spaces, or a space and what should lie in it, do not fit; both are named
    ├── EnvError                   an environment cannot be made, or raised in reset() or step()
    ├── EnvRunnersLostError        env runners ended and may not be replaced, or did not answer in time
    ├── LearnerLostError           a learner actor ended or did not answer in time
    └── CheckpointError            a checkpoint is missing, incomplete, damaged or of another kind
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError", "ConfigError", "EnvError", "EnvRunnersLostError", "LearnerLostError", "RLError", "SpaceError", "UnknownSettingError", "nearest",
]  # fmt: skip


class RLError(Exception):
    """Base of all errors of `shoal.rl`."""


class ConfigError(RLError, ValueError):
    """A setting has a value that cannot be, or two settings contradict each other."""


class UnknownSettingError(ConfigError, TypeError):
    """There is no such setting."""


class SpaceError(ConfigError):
    """Two spaces, or a space and what should lie in it, do not fit."""


class EnvError(RLError):
    """An environment cannot be made, or raised in `reset()` or `step()`."""


class EnvRunnersLostError(RLError):
    """Env runners ended and may not be replaced, or did not answer in time."""


class LearnerLostError(RLError):
    """A learner actor ended or did not answer in time."""


class CheckpointError(RLError):
    """A checkpoint is missing, incomplete, damaged or of another kind."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'lr'?`, or, when nothing is near, the list of what is known."""
    names = sorted(known, key=lambda known_name: (len(known_name), known_name))
    # A name that goes on where the given one ends is nearer than any that is spelt alike.
    close = [known for known in names if len(name) > 3 and known.startswith(name)] or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are: {', '.join(sorted(names))}"
