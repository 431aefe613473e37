"""Notebooks: `init` where an event loop runs already, an interrupt of `get`, and what a kernel's restart leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# In a process of its own: Jupyter's libraries warn of themselves, and bring threads and sockets that nobody ends.
NOTEBOOK = '''
import asyncio, os, sys, time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from shoal import testing

flag = Path(sys.argv[1])
SETUP = """
import os, time
import shoal
context = shoal.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False)

@shoal.remote
def double(x):
    return 2 * x

@shoal.remote
def count(n):
    yield from range(n)

@shoal.remote
class Adder:
    def __init__(self):
        self.sum = 0
    async def add(self, x):
        self.sum += x
        return self.sum

print(shoal.get([double.remote(n) for n in range(3)]), os.getpid())
"""
AWAIT = """
adder = Adder.options(num_cpus=0).remote()
print(await double.remote(4), [await ref async for ref in count.remote(3)], await adder.add.remote(5), shoal.get(adder.add.remote(1)))
"""
BLOCKED = f"""
slow = shoal.remote(time.sleep).remote(600)
open({str(flag)!r}, "w").close()
shoal.get(slow)
"""
AFTER = """
shoal.cancel(slow, force=True)
print(shoal.get(double.remote(21), timeout=60), await double.remote(1))
"""


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout").strip()


async def main(left):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (SETUP, AWAIT, BLOCKED, AFTER, SETUP)])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3")
    run = lambda index: client.async_execute_cell(notebook.cells[index], index)
    async with client.async_setup_kernel():
        await run(0)
        results, kernel = printed(notebook.cells[0]).rsplit(" ", 1)
        assert results == "[0, 2, 4]", results
        await run(1)
        assert printed(notebook.cells[1]) == "8 [0, 1, 2] 5 6", notebook.cells[1].outputs

        blocked = asyncio.ensure_future(run(2))
        while not flag.exists():
            assert not blocked.done(), blocked
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)  # the interrupt should find get() waiting; earlier it would only test less
        await client.km.interrupt_kernel()
        try:
            await blocked
        except CellExecutionError as error:
            assert error.ename == "KeyboardInterrupt", error
        else:
            raise AssertionError("the cell went on")
        await run(3)
        assert printed(notebook.cells[3]) == "42 2", notebook.cells[3].outputs

        for now in (False, True):  # in good order, and by a kill
            assert set(left.processes().values()) > {"shoal-raylet"}, left.all()
            await client.km.restart_kernel(now=now)
            await client.kc.wait_for_ready(timeout=60)
            kernels = {client.km.provisioner.pid}
            def gone():
                return set(left.processes()) <= kernels and not left.sockets() and not os.listdir(left.home)
            deadline = time.monotonic() + 30
            while not gone():
                assert time.monotonic() < deadline, left.all()
                await asyncio.sleep(0.05)
            await run(4)
            again = printed(notebook.cells[4]).rsplit(" ", 1)
            assert again[0] == "[0, 2, 4]" and again[1] != kernel, again
    print("DONE")


with testing.no_leaks() as left:
    asyncio.run(main(left))
'''


def test_a_notebook_runs_is_interrupted_and_leaves_nothing_when_its_kernel_restarts(tmp_path: Path) -> None:
    folders = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    command = [sys.executable, "-c", NOTEBOOK, str(tmp_path / "flag")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env={**os.environ, **folders}, check=False)
    assert done.returncode == 0 and "DONE" in done.stdout, done.stdout + done.stderr
