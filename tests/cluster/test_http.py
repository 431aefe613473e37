"""The head's HTTP server."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def ask(head):
    token = Path(head["secrets"], "user.token").read_text().strip()

    def get(path, header=f"Bearer {token}"):
        request = urllib.request.Request(f"http://{head['http']}{path}", headers={"Authorization": header} if header else {})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return get


def test_health_and_version_need_no_token(ask):
    assert ask("/healthz", header="") == (200, "success\n")
    assert json.loads(ask("/api/version", header="")[1])["version"]


@pytest.mark.parametrize("header", ["", "Bearer wrong", "Basic abc", "Bearer "])
def test_everything_else_does(ask, header):
    for path in ("/api/v0/nodes", "/api/cluster_status", "/metrics", "/no/such/path", "/api/v0/logs"):
        status, body = ask(path, header=header)
        assert status == 401
        assert "token" in json.loads(body)["error"]


def test_lists_single_records_and_status(ask, head):
    for resource in ("nodes", "actors", "tasks", "jobs", "placement_groups", "workers", "objects"):
        status, body = ask(f"/api/v0/{resource}")
        assert status == 200, body
        assert set(json.loads(body)) == {"result", "total", "num_filtered", "truncated", "warnings"}
    assert json.loads(ask(f"/api/v0/nodes/{head['node_id'][:10]}")[1])["result"]["node_id"] == head["node_id"]
    assert json.loads(ask("/api/cluster_status")[1])["resources_total"]["CPU"] == 2
    assert json.loads(ask("/api/v0/memory")[1])["stores"][0]["capacity_bytes"] == 128 << 20


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/api/v0/spoons", 400, "cannot be listed"),
        ("/api/v0/nodes?limit=0", 400, "limit"),
        ("/api/v0/nodes?limit=x", 400, "no number"),
        ("/api/v0/nodes?filter=state", 400, "field=value"),
        ("/api/v0/nodes?filter=colour=red", 400, "colour"),
        ("/api/v0/nodes/zz", 404, "no nodes"),
        ("/no/such/path", 404, "Not Found"),
        ("/api/v0/logs/file?name=raylet.log&node_id=zz", 400, "node_id"),
        ("/api/v0/logs/file?name=../../etc/passwd&node_id=", 404, "no log"),
    ],
)
def test_a_wrong_question_is_told_why(ask, path, status, message):
    got, body = ask(path)
    assert got == status, body
    assert message in json.loads(body)["error"]


def test_metrics_are_prometheus_text_with_each_sample_once(ask):
    status, text = ask("/metrics")
    assert status == 200
    sample = re.compile(r'[a-zA-Z_:][\w:]*(\{([a-zA-Z_]\w*="(\\.|[^"\\])*",?)*\})? [-+.\deInfNa]+')
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert lines
    assert [line for line in lines if not sample.fullmatch(line)] == []
    series = [line.rpartition(" ")[0] for line in lines]
    assert len(series) == len(set(series))
    types = [line for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    for service in ("shoal_gcs_", "shoal_raylet_", "shoal_objectstore_"):
        assert service in text


def test_log_files_are_listed_and_read(ask, head):
    files = {file["name"] for file in json.loads(ask("/api/v0/logs?glob=*.log")[1])["files"]}
    assert {"gcs.log", "raylet.log"} <= files
    status, text = ask(f"/api/v0/logs/file?name=raylet.log&tail=1&node_id={head['node_id']}")
    assert status == 200
    assert text.count("\n") == 1
