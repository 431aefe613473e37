"""`shoal serve`, as a user runs it."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request

import pytest
import yaml

APP = """
import os
from shoal import serve

@serve.deployment(graceful_shutdown_wait_loop_s=0.05, ray_actor_options={"num_cpus": 0.1})
class Greeter:
    def __init__(self, greeting):
        self.greeting = greeting

    async def __call__(self, request):
        return f"{self.greeting} {os.environ.get('WHO', '')}".strip()

app = Greeter.bind("hello")

def build(args):
    return Greeter.bind(args.get("greeting", "none"))
"""


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def shoal(folder, *arguments, address=None, check=0, timeout=90):
    environment = {**os.environ, **({"SHOAL_ADDRESS": address} if address else {})}
    done = subprocess.run(
        [sys.executable, "-m", "shoal._cli", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == check, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def get(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


def eventually(url, bound_s=60):
    deadline = time.monotonic() + bound_s
    while True:
        try:
            return get(url)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "greet_app.py").write_text(APP)
    return tmp_path


def write(folder, name, text):
    (folder / name).write_text(textwrap.dedent(text))
    return name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_serves_until_it_is_told_to_end(folder, number):
    port = free_port()
    config = write(folder, "serve.yaml", f"""
        http_options: {{host: 127.0.0.1, port: {port}}}
        applications:
          - {{name: a, route_prefix: /a, import_path: "greet_app:app", deployments: [{{name: Greeter, num_replicas: 2}}]}}
          - {{name: b, route_prefix: /b, import_path: "greet_app:build", args: {{greeting: hi}}, runtime_env: {{env_vars: {{WHO: Ann}}}}}}
    """)
    with subprocess.Popen([sys.executable, "-m", "shoal._cli", "serve", "run", config], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True) as running:  # fmt: skip
        try:
            assert eventually(f"http://127.0.0.1:{port}/b") == "hi Ann"
            assert eventually(f"http://127.0.0.1:{port}/a") == "hello"
            line = next(line for line in running.stdout if "Running at" in line)
            assert f"http://127.0.0.1:{port}" in line
            seen = yaml.safe_load(shoal(folder, "serve", "status"))["applications"]
            assert {name: app["status"] for name, app in seen.items()} == {"a": "RUNNING", "b": "RUNNING"}, "other commands find the cluster that was started"
            running.send_signal(number)
            rest, _ = running.communicate(timeout=60)
            assert running.returncode == 0, rest
            assert "Traceback" not in rest
        finally:
            running.kill()


def test_mistakes_cost_one_line(folder):
    bad = write(folder, "bad.yaml", """
        applications:
          - name: a
            import_pth: greet_app:app
    """)
    told = shoal(folder, "serve", "run", bad, check=1)
    assert "bad.yaml:4: applications[0].import_pth: unknown key; did you mean 'import_path'?" in told
    assert "Traceback" not in told
    assert "No module named 'nothing_here'" in shoal(folder, "serve", "run", "nothing_here:app", check=1)
    assert "KEY=VALUE" in shoal(folder, "serve", "run", "greet_app:build", "greeting", check=2)


@pytest.fixture
def cluster(folder):
    port = free_port()
    shoal(folder, "start", "--head", "--port", str(port), "--num-cpus", "8")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        shoal(folder, "stop")


def test_deploy_status_config_and_shutdown(folder, cluster):
    port = free_port()
    text = f"""
        http_options: {{host: 127.0.0.1, port: {port}}}
        applications:
          - name: a
            import_path: greet_app:build
            args: {{greeting: one}}
          - name: gone
            route_prefix: /gone
            import_path: greet_app:app
    """
    config = write(folder, "serve.yaml", text)
    assert "Deployed: a, gone." in shoal(folder, "serve", "deploy", config, address=cluster)
    assert get(f"http://127.0.0.1:{port}/") == "one"
    status = yaml.safe_load(shoal(folder, "serve", "status", address=cluster))
    assert status["applications"]["a"]["status"] == "RUNNING"
    assert status["applications"]["a"]["deployments"]["Greeter"]["replica_states"] == {"RUNNING": 1}
    assert yaml.safe_load(shoal(folder, "serve", "config", address=cluster)) == yaml.safe_load(textwrap.dedent(text))

    versions = write(folder, "versions.yaml", f"""
        http_options: {{host: 127.0.0.1, port: {port}}}
        applications:
          - name: a
            versions:
              - {{name: stable, import_path: "greet_app:build", args: {{greeting: two}}, weight: 0}}
              - {{name: next, import_path: "greet_app:build", args: {{greeting: three}}}}
    """)
    shoal(folder, "serve", "deploy", versions, address=cluster)
    assert get(f"http://127.0.0.1:{port}/") == "three"
    assert set(yaml.safe_load(shoal(folder, "serve", "status", address=cluster))["applications"]) == {"a", "a@next"}

    (folder / "broken_app.py").write_text("import does_not_exist\n")
    broken = write(folder, "broken.yaml", f"""
        http_options: {{host: 127.0.0.1, port: {port}}}
        applications:
          - {{name: a, import_path: "broken_app:app"}}
    """)
    told = shoal(folder, "serve", "deploy", broken, address=cluster, check=1)
    assert "application 'a' could not be imported from 'broken_app:app': ModuleNotFoundError: No module named 'does_not_exist'" in told
    assert get(f"http://127.0.0.1:{port}/") == "three"
    status = yaml.safe_load(shoal(folder, "serve", "status", "-n", "a", address=cluster))
    assert status["status"] == "DEPLOY_FAILED"
    assert "does_not_exist" in status["message"]

    assert "Serve has ended." in shoal(folder, "serve", "shutdown", "-y", address=cluster)
    assert yaml.safe_load(shoal(folder, "serve", "status", address=cluster))["applications"] == {}
