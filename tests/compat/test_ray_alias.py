"""Programs that say `import ray` run unchanged."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(90)

PROGRAM = '''
import importlib.metadata, sys
import ray
import ray.exceptions
from ray.util.actor_pool import ActorPool
from ray.util.queue import Queue
from words import longest

@ray.remote
def add(x):
    import ray.util.queue
    assert ray.util.queue.Queue is Queue
    return x + 1

@ray.remote
class Sum:
    def __init__(self):
        self.total = 0
    def add(self, x):
        if x < 0:
            raise KeyError(x)
        self.total += x
        return self.total

print("version", ray.__version__, importlib.metadata.version("ray"), sys.argv[1:])
ray.init(num_cpus=2)
print("tasks", ray.get([add.remote(i) for i in range(3)]))
total = Sum.remote()
ray.get(total.add.remote(3))
try:
    ray.get(total.add.remote(-1))
except ray.exceptions.RayTaskError as error:
    print("error", isinstance(error, KeyError), type(error).__name__)
print("pool", list(ActorPool([total]).map(lambda a, v: a.add.remote(v), [1, 2])))
queue = Queue()
queue.put("item")
print("queue", queue.get())
print("module", ray.get(longest.remote("to be or not")))
for missing in ("import ray.nonsense", "ray.nonsense"):
    try:
        exec(missing)
    except (ModuleNotFoundError, AttributeError) as error:
        print("missing", error)
'''
MODULE = "import ray\n\n@ray.remote\ndef longest(text):\n    return max(text.split(), key=len)\n"


def run(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "SHOAL_TMPDIR": "", "RAY_ADDRESS": ""}
    if path is not None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(path), env.get("PYTHONPATH"))))
    return subprocess.run([sys.executable, "-m", "shoal.compat.ray", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=80)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "words.py").write_text(MODULE)
    return tmp_path


@pytest.mark.parametrize("how", [["program.py"], ["-m", "program"]])
def test_a_program_for_ray_runs_unchanged_in_its_workers_too(program: Path, how: list[str]):
    done = run(*how, "one", cwd=program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "version 2.60.0 2.60.0 ['one']",
        "tasks [1, 2, 3]",
        "error True RayTaskError(KeyError)",
        "pool [4, 6]",
        "queue item",
        "module not",
        "missing No module named 'ray.nonsense': it would be Shoal's shoal.nonsense, which is not installed or does not exist",
        "missing module 'ray' has no attribute 'nonsense': Shoal, which stands in for it, has none either",
    ]


def test_an_installed_ray_is_never_shadowed_unless_asked_for(program: Path, tmp_path: Path):
    real = tmp_path / "elsewhere"
    (real / "ray").mkdir(parents=True)
    (real / "ray/__init__.py").write_text("__version__ = 'the real one'\n")
    refused = run("program.py", cwd=program, path=real)
    assert refused.returncode == 1
    assert "Ray itself is installed" in refused.stderr
    assert "--shadow" in refused.stderr
    shadowed = run("--shadow", "program.py", cwd=program, path=real)
    assert shadowed.returncode == 0, shadowed.stderr
    assert "version 2.60.0" in shadowed.stdout


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    done = run("nothing.py", cwd=tmp_path)
    assert done.returncode == 1
    assert "nothing.py: no such file" in done.stderr


NAMES = '''
import ray, shoal.data
from ray.util.annotations import Deprecated, DeveloperAPI, PublicAPI
from ray._private.services import get_node_ip_address
from ray._private.worker import BaseContext
from ray.data.datasource.datasink import Datasink
from ray.data.datasource.datasource import Datasource
import ray.util.client

@PublicAPI(stability="beta")
class Stable:
    pass

@Deprecated(message="use another", warning=True)
def old():
    return 7

@DeveloperAPI
def own():
    return 8

import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    print(Stable()._annotated_stability, old(), own(), said[0].message)
print(ray.util.client.ray.is_connected(), get_node_ip_address() == ray.util.get_node_ip_address(), ray.logger.name)
print(ray.data is shoal.data, ray._private.services.__name__)
print(Datasink is shoal.data.Datasink, Datasource is shoal.data.Datasource, isinstance(ray.init(local_mode=True), BaseContext))
try:
    import ray._private.nonsense
except ModuleNotFoundError as error:
    print(error)
'''


def test_names_that_packages_ask_for_are_there_and_do_what_they_say(tmp_path: Path):
    (tmp_path / "names.py").write_text(NAMES)
    done = run("names.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "beta 7 8 old is deprecated. use another",
        "False True shoal",
        "True shoal.compat.ray.names._private.services",
        "True True True",
        "No module named 'ray._private.nonsense': it would be Shoal's shoal._private.nonsense, which is not installed or does not exist",
    ]
