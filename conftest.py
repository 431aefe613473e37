"""For all tests: Ctrl-C means what it means in a terminal."""

from __future__ import annotations

import signal

# A shell that starts a command in the background has it ignore SIGINT, Python then installs no handler, and what is started here would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
