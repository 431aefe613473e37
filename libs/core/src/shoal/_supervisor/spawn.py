"""The supervisor's process, before anybody knows what it is to do: its interpreter starts while that is found out.

Imports little: whatever is imported here, whoever calls `init()` waits for.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys

# In the environment of all that a supervisor starts, and in its own from the start: its janitor finds by it what it has to end.
MARKER = "SHOAL_CLUSTER_MARK"
_KILL_TIMEOUT_S = 8.0


class Spawned:
    """A supervisor that waits for its configuration on `told`, and answers on `answer`. What it writes is in the memory file `output`."""

    def __init__(self, own: bool) -> None:
        self.taken = False  # whoever sets it sees to its end
        self.output = os.memfd_create("shoal-output")
        self.answer, writing = os.pipe2(os.O_CLOEXEC)
        settings, self.told = os.pipe2(os.O_CLOEXEC)
        owner = os.pidfd_open(os.getpid()) if own else -1
        inherited = [fd for fd in (settings, writing, owner) if fd >= 0]
        command = [sys.executable, "-P", "-m", "shoal._supervisor", str(settings), str(writing), str(owner)]
        try:
            # A session of its own: Ctrl-C in the terminal is for the program, which then ends the node.
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=self.output, stderr=self.output, pass_fds=inherited, start_new_session=True,
                env={**os.environ, MARKER: os.urandom(6).hex()},
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        finally:
            for fd in inherited:
                os.close(fd)

    def tell(self, config: bytes) -> None:
        told, self.told = self.told, -1
        with contextlib.suppress(BrokenPipeError), open(told, "wb") as file:  # one that is gone already says why by its answer
            file.write(config)

    def give_up(self) -> None:
        """Kills it, when nobody wants it any more. Nothing is left."""
        self.process.kill()
        wait_exit(self.process, _KILL_TIMEOUT_S)
        self.close()

    def close(self) -> None:
        """The descriptors; the process lives on. Idempotent."""
        for fd in (self.output, self.answer, self.told):
            if fd >= 0:
                os.close(fd)
        self.output = self.answer = self.told = -1


def wait_exit(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Popen.wait sleeps in steps of up to 50 ms; a pidfd wakes at once."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        process.poll()
        return True
    try:
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        ended = bool(waiting.poll(timeout_s * 1000))
    finally:
        os.close(fd)
    if ended:
        process.wait()
    return ended
