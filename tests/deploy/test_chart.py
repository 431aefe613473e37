"""The Helm chart: rendered by Helm's own engine, and each object checked against Kubernetes' schemas."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

helm = pytest.importorskip("helm_python", reason="Helm's engine as a wheel (helm-python-sdk) is not to be had for this machine")
kubernetes_validate = pytest.importorskip("kubernetes_validate")

GPU = {"replicas": 3, "gpus": 2, "resources": {"limits": {"memory": "8Gi"}}, "labels": {"zone": "a b"}, "customResources": {"license": 1.5}}
EVERYTHING: dict[str, Any] = {
    "image": {"repository": "registry.example/shoal", "tag": "x", "pullPolicy": "Always"},
    "imagePullSecrets": [{"name": "pull"}],
    "head": {
        "labels": {"role": "head"}, "extraArgs": ["--num-cpus", "0"], "extraEnv": [{"name": "A", "value": "b"}], "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "k", "operator": "Exists"}], "podLabels": {"team": "x"}, "podAnnotations": {"a/b": "c"},
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}},
        "persistence": {"storageClass": "fast"}, "service": {"annotations": {"x": "y"}},
    },
    "workers": {"default": None, "gpu": GPU},
    "networkPolicy": {"httpFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def chart(root: Path) -> Iterator[Any]:
    with helm.Chart.load(root / "deploy/helm/shoal") as loaded:
        yield loaded


def render(chart: Any, values: dict[str, Any] | None = None, name: str = "demo") -> dict[tuple[str, str], dict[str, Any]]:
    """Every object, by kind and name; each is valid, also strictly."""
    found = {}
    for path, text in chart.render(values=values or {}, name=name, namespace="ns").items():
        for document in yaml.safe_load_all(text) if path.endswith(".yaml") else ():
            if document:
                for version in ("1.25", "1.32"):
                    kubernetes_validate.validate(document, version, strict=True)
                found[document["kind"], document["metadata"]["name"]] = document
    return found


def pod(document: dict[str, Any]) -> dict[str, Any]:
    return document["spec"]["template"]["spec"]


def container(document: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(document)["containers"]
    return only


def pods(found: dict[tuple[str, str], dict[str, Any]]) -> list[dict[str, Any]]:
    return [document for (kind, _), document in found.items() if kind in ("StatefulSet", "Deployment")]


def test_helm_lint_has_nothing_to_say_but_that_there_is_no_icon(root):
    report = helm.lint(root / "deploy/helm/shoal", strict=True)
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"] and not report["errors"]


def test_the_default_values_render_valid_objects(chart):
    assert set(render(chart)) == {
        ("Service", "demo-shoal-head"), ("StatefulSet", "demo-shoal-head"), ("NetworkPolicy", "demo-shoal"), ("Secret", "demo-shoal-token"),
        ("ServiceAccount", "demo-shoal"), ("Deployment", "demo-shoal-worker-default"),
    }  # fmt: skip


def test_every_value_renders_valid_objects(chart):
    found = render(chart, EVERYTHING)
    assert ("Deployment", "demo-shoal-worker-gpu") in found and ("Deployment", "demo-shoal-worker-default") not in found
    head, worker = container(found["StatefulSet", "demo-shoal-head"]), container(found["Deployment", "demo-shoal-worker-gpu"])
    assert head["image"] == "registry.example/shoal:x"
    assert head["args"][-4:] == ["--labels", '{"role":"head"}', "--num-cpus", "0"]
    assert worker["args"] == ["worker", "--num-gpus", "2", "--labels", '{"zone":"a b"}', "--resources", '{"license":1.5}']
    assert worker["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": 2}


def test_the_arguments_are_options_of_shoal_start_with_values_that_it_takes(chart, root, start_options):
    from shoal._cli.start import make_config, start_command

    node = load_node(root)
    for document in pods(render(chart, EVERYTHING)):
        arguments = container(document)["args"]
        line = node.command_line(arguments, {"SHOAL_HEAD": "head:6380"}, "/tmp/token", "127.0.0.1")
        assert line[:2] == ["shoal", "start"]
        context = start_command.make_context("start", line[2:])
        if arguments[0] == "head":
            config = make_config(context.params)
            assert (config.port, config.http_port, config.node_port, config.labels["role"]) == (6380, 8265, 6381, "head")
        assert context.params["node_port"] == container_port(document, "node")


def load_node(root: Path) -> Any:
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("shoal_container_node", root / "deploy/docker/node.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def container_port(document: dict[str, Any], name: str) -> int:
    return next(port["containerPort"] for port in container(document)["ports"] if port["name"] == name)


def test_workers_find_the_head_by_its_service(chart):
    found = render(chart)
    service = found["Service", "demo-shoal-head"]
    head, worker = found["StatefulSet", "demo-shoal-head"], found["Deployment", "demo-shoal-worker-default"]
    address = next(variable["value"] for variable in container(worker)["env"] if variable["name"] == "SHOAL_HEAD")
    ports = {port["name"]: port for port in service["spec"]["ports"]}
    assert address == f"{service['metadata']['name']}:{ports['gcs']['port']}"
    assert container_port(head, ports["gcs"]["targetPort"]) == 6380
    assert service["spec"]["selector"].items() <= head["spec"]["template"]["metadata"]["labels"].items()
    assert not service["spec"]["selector"].items() <= worker["spec"]["template"]["metadata"]["labels"].items()


def test_selectors_fit_their_own_pods_and_no_others(chart):
    documents = pods(render(chart, {"workers": {"gpu": GPU}}))
    for document in documents:
        chosen = document["spec"]["selector"]["matchLabels"].items()
        assert [other is document for other in documents if chosen <= other["spec"]["template"]["metadata"]["labels"].items()] == [True]


def test_every_mount_has_a_volume_and_the_token_is_for_the_pods_group_alone(chart):
    for document in pods(render(chart, EVERYTHING)) + pods(render(chart, {"head": {"persistence": {"enabled": False}}})):
        volumes = {volume["name"]: volume for volume in pod(document)["volumes"]}
        claims = {claim["metadata"]["name"] for claim in document["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in container(document)["volumeMounts"]} == set(volumes) | claims
        assert volumes["token"]["secret"]["defaultMode"] == 0o440
        source = next(variable["value"] for variable in container(document)["env"] if variable["name"] == "SHOAL_TOKEN_SOURCE")
        assert source.startswith(next(mount["mountPath"] for mount in container(document)["volumeMounts"] if mount["name"] == "token"))


def test_pods_have_no_rights_they_do_not_need(chart):
    for document in pods(render(chart, EVERYTHING)):
        assert pod(document)["automountServiceAccountToken"] is False
        assert pod(document)["securityContext"]["runAsNonRoot"] is True
        assert container(document)["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip


def test_the_policy_names_the_ports_of_the_pods_and_lets_no_others_in(chart):
    found = render(chart, EVERYTHING)
    own, http = found["NetworkPolicy", "demo-shoal"]["spec"]["ingress"]
    assert {port["port"] for port in own["ports"]} == {port["containerPort"] for document in pods(found) for port in container(document)["ports"]}
    assert [port["port"] for port in http["ports"]] == [8265]
    assert ("NetworkPolicy", "demo-shoal") not in render(chart, {"networkPolicy": {"enabled": False}})


def test_a_token_is_made_and_one_that_exists_is_used(chart):
    secret = render(chart)["Secret", "demo-shoal-token"]
    assert len(base64.b64decode(secret["data"]["token"])) == 64
    found = render(chart, {"token": {"existingSecret": "mine"}})
    assert not any(kind == "Secret" for kind, _ in found)
    assert {volume["secret"]["secretName"] for document in pods(found) for volume in pod(document)["volumes"] if "secret" in volume} == {"mine"}


def test_probes_ask_what_the_node_serves(chart):
    from shoal._cli import _COMMANDS
    from shoal._http.server import OPEN_PATHS

    found = render(chart)
    head, worker = container(found["StatefulSet", "demo-shoal-head"]), container(found["Deployment", "demo-shoal-worker-default"])
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert head[probe]["httpGet"]["path"] in OPEN_PATHS and head[probe]["httpGet"]["port"] == "http"
    assert worker["readinessProbe"]["exec"]["command"][0] == "shoal" and worker["readinessProbe"]["exec"]["command"][1] in _COMMANDS


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"head": {"persistance": {}}}, "persistance"),
        ({"workers": {"Bad_Name": {"replicas": 1}}}, "Bad_Name"),
        ({"workers": {"a": {"replicas": -1}}}, "replicas"),
        ({"workers": {"a": {"replicas": 1, "gpus": "two"}}}, "gpus"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"workers": {"a": {"replicas": 1, "labels": {"n": 1}}}}, "labels"),
    ],
)
def test_a_mistake_in_the_values_is_refused_and_named(chart, values, told):
    with pytest.raises(helm.HelmError, match=told):
        chart.validate_schema(values)


def test_the_schema_knows_every_default(chart, root):
    schema = json.loads((root / "deploy/helm/shoal/values.schema.json").read_text())
    values = yaml.safe_load((root / "deploy/helm/shoal/values.yaml").read_text())
    assert set(values) <= set(schema["properties"])
    assert set(values["workers"]["default"]) == set(schema["definitions"]["worker"]["properties"])


@pytest.mark.parametrize("name", ["shoal", "a" * 53, "my-shoal-2"])
def test_names_stay_within_what_dns_allows(chart, name):
    for _kind, found in render(chart, {"workers": {"w23456789012345": {"replicas": 1}}}, name):
        assert len(found) <= 63 and found == found.strip("-")


def test_the_notes_name_what_there_is(chart):
    notes = chart.render(values={}, name="demo", namespace="ns")["shoal/templates/NOTES.txt"]
    assert "exec demo-shoal-head-0 -- shoal status" in notes and "NetworkPolicy" not in notes
    warned = chart.render(values={"networkPolicy": {"enabled": False}, "head": {"persistence": {"enabled": False}}}, name="demo", namespace="ns")
    assert "no NetworkPolicy" in warned["shoal/templates/NOTES.txt"] and "no volume" in warned["shoal/templates/NOTES.txt"]
