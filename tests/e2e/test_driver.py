"""Programs as a whole: what they print, how they are interrupted, how they connect by themselves."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest


def start(code: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env})


def run(code: str, bound_s: float = 90, **env: str) -> tuple[str, str]:
    process = start(code, **env)
    try:
        out, err = process.communicate(timeout=bound_s)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"the program did not end in {bound_s} s; it printed {out!r} and {err!r}")
    assert process.returncode == 0, err
    return out, err


def test_what_tasks_and_actors_print_appears_with_their_name_and_pid():
    out, err = run("""
import shoal, os, sys, time
shoal.init("local", num_cpus=2)
@shoal.remote
def greets():
    print("hello from", os.getpid())
    print("to stderr", file=sys.stderr)
    return os.getpid()
@shoal.remote
class Speaker:
    def speak(self):
        print("an actor speaks")
pid = shoal.get(greets.remote())
shoal.get(Speaker.remote().speak.remote())
print("pid", pid)
deadline = time.monotonic() + 20
import io
time.sleep(1)
shoal.shutdown()
""")
    pid = out.split("pid ")[-1].split()[0]
    assert f"pid={pid}) hello from {pid}" in out and "an actor speaks" in out and "to stderr" in err
    assert "the raylet is gone" not in out + err


def test_nothing_is_printed_when_nobody_wants_it():
    out, err = run("""
import shoal
shoal.init("local", num_cpus=1, log_to_driver=False)
shoal.get(shoal.remote(lambda: print("hidden")).remote())
shoal.shutdown()
""")
    assert "hidden" not in out + err


def test_remote_and_put_connect_by_themselves_and_nodes_does_not():
    # A folder of its own: a running cluster of this user must not be met. A short name: Unix sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="e2e-") as directory:
        out, _ = run("""
import shoal
try:
    shoal.nodes()
except shoal.exceptions.NotConnectedError as error:
    print("asked", "init()" in str(error))
print(shoal.get(shoal.put(3)), shoal.is_initialized())
shoal.shutdown()
print(shoal.is_initialized())
print(shoal.get(shoal.remote(lambda: 4).remote()))
""", SHOAL_TMPDIR=directory)
    assert out.split() == ["asked", "True", "3", "True", "False", "4"]


def test_init_is_a_context_manager_and_can_be_called_again():
    out, _ = run("""
import shoal
@shoal.remote
def f(x):
    return x + 1
for i in range(3):
    with shoal.init("local", num_cpus=1, log_to_driver=False) as context:
        print(shoal.get(f.remote(i)), context["node_id"] == shoal.nodes()[0]["NodeID"])
""")
    assert out.split() == ["1", "True", "2", "True", "3", "True"]


def test_an_interrupt_in_get_leaves_a_usable_cluster():
    process = start("""
import shoal, time
shoal.init("local", num_cpus=2, log_to_driver=False)
slow = shoal.remote(lambda: time.sleep(60)).remote()
try:
    print("READY", flush=True)
    shoal.get(slow)
except KeyboardInterrupt:
    print("interrupted", shoal.get(shoal.remote(lambda: 5).remote(), timeout=30), flush=True)
shoal.shutdown()
""")
    assert process.stdout.readline().strip() == "READY"
    time.sleep(0.3)  # the interrupt should find get() waiting; earlier it would only test less
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.split() == ["interrupted", "5"], err


def test_a_program_without_shutdown_ends():
    out, _ = run("import shoal\nshoal.init('local', num_cpus=1)\nr = shoal.remote(lambda: 1).remote()\nprint(shoal.get(r))\na = shoal.put(2)")
    assert out.strip() == "1"


def test_the_namespace_separates_names():
    out, _ = run("""
import shoal
shoal.init("local", num_cpus=1, namespace="mine", log_to_driver=False)
@shoal.remote(num_cpus=0)
class A:
    def f(self):
        return shoal.get_runtime_context().namespace
a = A.options(name="x").remote()
b = A.options(name="x", namespace="other").remote()
print(shoal.get(a.f.remote()), shoal.get_actor("x") == a, shoal.get_actor("x", "other") == b)
print(sorted((d["name"], d["namespace"]) for d in shoal.util.list_named_actors(all_namespaces=True)))
""")
    assert out.splitlines() == ["mine True True", "[('x', 'mine'), ('x', 'other')]"]


def test_modules_beside_the_program_are_importable_in_tasks(tmp_path):
    (tmp_path / "beside.py").write_text("def value():\n    return 'beside'\n")
    program = tmp_path / "program.py"
    program.write_text("""
import shoal, beside
shoal.init("local", num_cpus=1, log_to_driver=False)
class Thing:
    def __init__(self, x): self.x = x
@shoal.remote
def f(thing):
    return beside.value(), thing.x, Thing(2)
print(*shoal.get(f.remote(Thing(1)))[:2])
""")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in map(os.path.abspath, sys.path) if p != os.getcwd())}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=90, cwd="/", check=False, env=env)
    assert done.stdout.split() == ["beside", "1"], done.stderr


def test_the_environment_of_init_reaches_every_task():
    out, _ = run("""
import shoal, os
shoal.init("local", num_cpus=2, log_to_driver=False, runtime_env={"env_vars": {"COLOUR": "red", "PLACE": "/mine:${SHOAL_THERE}${NOWHERE}"}})
@shoal.remote
def look():
    assert os.environ["PLACE"] == "/mine:there"
    return os.environ.get("COLOUR"), os.environ.get("SIZE")
@shoal.remote
def nested():
    return shoal.get(look.options(runtime_env={"env_vars": {"SIZE": "big"}}).remote())
print(shoal.get(look.remote()), shoal.get(nested.remote()))
assert shoal.get([look.remote() for _ in range(3)]) == [("red", None)] * 3
""", SHOAL_THERE="there")
    assert out.strip() == "('red', None) ('red', 'big')"


def test_one_cpu_is_enough_for_recursion():
    out, _ = run("""
import shoal
shoal.init("local", num_cpus=1, log_to_driver=False)
@shoal.remote
def fib(n):
    return n if n < 2 else sum(shoal.get([fib.remote(n - 1), fib.remote(n - 2)]))
print(shoal.get(fib.remote(7), timeout=60))
""")
    assert out.strip() == "13"


def test_many_threads_of_a_driver_use_it_at_once():
    out, _ = run("""
import shoal, threading
shoal.init("local", num_cpus=2, log_to_driver=False)
@shoal.remote
def f(x):
    return x
@shoal.remote(num_cpus=0)
class A:
    def f(self, x):
        return x
a = A.remote()
results = []
def work(k):
    for i in range(100):
        results.append(shoal.get([f.remote(i), a.f.remote(i), shoal.put(i)]) == [i] * 3)
threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print(len(results), all(results))
""")
    assert out.split() == ["800", "True"]


def test_the_logging_config_reaches_driver_and_workers():
    _, err = run("""
import shoal, logging
shoal.init("local", num_cpus=1, logging_config=shoal.LoggingConfig(encoding="JSON", log_level="INFO", additional_log_standard_attrs=["name"]))
@shoal.remote
def logs():
    logging.getLogger("mine").info("from the task")
    logging.getLogger("mine").debug("too quiet")
shoal.get(logs.remote())
logging.getLogger("mine").info("from the driver")
import time; time.sleep(1)
shoal.shutdown()
""")
    assert '"message": "from the task"' in err and '"task_name": "logs"' in err and '"name": "mine"' in err
    assert '"message": "from the driver"' in err and "too quiet" not in err


def test_a_detached_actor_outlives_its_job_and_can_restart():
    with tempfile.TemporaryDirectory(prefix="e2e-") as directory:
        env = {"SHOAL_TMPDIR": directory}
        shoal = [sys.executable, "-m", "shoal._cli"]
        command = [*shoal, "start", "--head", "--port", "0", "--http-port", "0", "--num-cpus", "2"]
        subprocess.run(command, env={**os.environ, **env}, check=True, capture_output=True, timeout=60)
        try:
            run("""
import shoal
shoal.init("auto", namespace="n")
@shoal.remote(max_restarts=-1, max_task_retries=-1)
class Lasting:
    def pid(self):
        import os
        return os.getpid()
a = Lasting.options(name="lasting", lifetime="detached").remote()
print(shoal.get(a.pid.remote()))
""", **env)
            out, _ = run("""
import shoal, os, time
shoal.init("auto", namespace="n")
a = shoal.get_actor("lasting")
first = shoal.get(a.pid.remote(), timeout=30)
os.kill(first, 9)
second = shoal.get(a.pid.remote(), timeout=30)
print(first != second)
shoal.kill(a)
""", **env)
            assert out.strip() == "True"
        finally:
            subprocess.run([*shoal, "stop"], env={**os.environ, **env}, check=False, capture_output=True, timeout=60)


def test_commands_find_the_cluster_that_a_program_has_started_for_itself_where_there_is_no_other():
    with tempfile.TemporaryDirectory(prefix="s") as place:
        out, _ = run("""
import shoal, subprocess, sys, time
def ask(*command):
    done = subprocess.run([sys.executable, "-m", "shoal._cli", *command], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr
code, text = ask("why", "f")
assert code and "no head of this user runs on this host" in text, text
with shoal.init("local", num_cpus=1, log_to_driver=False):
    @shoal.remote
    class Holder:
        def ping(self): return 1
    holder = Holder.options(num_cpus=1).remote()
    shoal.get(holder.ping.remote())
    print(*ask("why", "Holder"))
""", SHOAL_TMPDIR=place)
    assert out.startswith("0 ") and "actor Holder" in out and "is ALIVE" in out


def test_a_pool_begins_a_cluster_with_a_cpu_for_each_of_its_workers():
    out, _ = run("""
import shoal
from shoal.util.multiprocessing import Pool
with Pool(3, ray_address="local") as pool:
    print(shoal.cluster_resources()["CPU"], pool.map(abs, [-1, 2]))
""")
    assert out.split(maxsplit=1)[1] == "[1, 2]\n" and float(out.split()[0]) == 3
