"""The YAML of deployments, and import paths."""

import sys
import textwrap

import pytest
from shoal.serve import schema
from shoal.serve.config import HTTPOptions, ProxyLocation
from shoal.serve.exceptions import ServeConfigError
from shoal.util.yaml_config import YamlConfigError, parse

GOOD = """
proxy_location: HeadOnly
http_options:
  port: 8001
applications:
  - name: iris
    route_prefix: /iris
    import_path: iris_app:build
    args: {model: small}
    runtime_env: {env_vars: {A: b}}
    deployments:
      - name: Classifier
        num_replicas: 2
        user_config: {threshold: 0.5}
      - name: Scaler
        num_replicas: auto
        autoscaling_config: {min_replicas: 1, max_replicas: 4}
  - name: text
    route_prefix: /text
    versions:
      - {name: stable, import_path: "text_app:app", weight: 9}
      - {name: v2, import_path: "text_app:app2", weight: 1}
"""


def read(text):
    return schema.parse(parse(textwrap.dedent(text), "serve.yaml"))


def test_a_whole_file():
    config = read(GOOD)
    assert [app.name for app in config.applications] == ["iris", "text", "text@v2"]
    assert config.http_options.port == 8001
    assert config.http_options.host == "0.0.0.0"
    assert config.proxy_location is ProxyLocation.HeadOnly
    assert config.applications[0].overrides["Classifier"] == {"num_replicas": 2, "user_config": {"threshold": 0.5}}
    assert config.traffic == {"text": {"stable": 9.0, "v2": 1.0}}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("http_options:", "http_option:", r"serve.yaml:3: http_option: unknown key; did you mean 'http_options'\?"),
        ("port: 8001", "prot: 8001", r"serve.yaml:4: http_options.prot: unknown key; did you mean 'port'\?"),
        ("port: 8001", "port: 99999", r"serve.yaml:4: http_options.port: .*must be at most 65535"),
        ("num_replicas: 2", "num_replica: 2", r"serve.yaml:13: applications\[0\].deployments\[0\].num_replica: unknown key; did you mean 'num_replicas'\?"),
        ("num_replicas: 2", "num_replicas: -2", r"serve.yaml:13: applications\[0\].deployments\[0\].num_replicas: num_replicas must be at least 0"),
        ("max_replicas: 4", "max_replica: 4", r"serve.yaml:17: .*autoscaling_config.max_replica: unknown key; did you mean 'max_replicas'\?"),
        ("import_path: iris_app:build", "import_path: iris_app", r"serve.yaml:8: applications\[0\].import_path: 'iris_app' is no import path"),
        ("route_prefix: /iris", "route_prefix: iris", r"serve.yaml:7: applications\[0\].route_prefix: route_prefix must start with '/'"),
        ("route_prefix: /text", "route_prefix: /iris", r"'iris' and 'text' have the same route_prefix '/iris'"),
        ("name: text", "name: iris", r"application 'iris'|same route_prefix|stands twice"),
        ("proxy_location: HeadOnly", "proxy_location: Head", r"serve.yaml:2: proxy_location: must be one of"),
        ("weight: 1}", "weight: -1}", r"versions\[1\].weight: -1 is less than 0"),
        ("weight: 1}", "wieght: 1}", r"versions\[1\].wieght: unknown key; did you mean 'weight'\?"),
    ],
)
def test_mistakes_are_told_with_line_and_key(before, after, message):
    assert before in GOOD
    with pytest.raises(YamlConfigError, match=message):
        read(GOOD.replace(before, after))


def test_nothing_to_deploy():
    with pytest.raises(YamlConfigError, match="applications: is missing"):
        read("http_options: {}")
    with pytest.raises(YamlConfigError, match="names no application"):
        read("applications: []")


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "iris_test_app.py").write_text(textwrap.dedent("""
        from pydantic import BaseModel
        from shoal import serve

        @serve.deployment
        def echo(request):
            return "echo"

        app = echo.bind()
        number = 3

        class Settings(BaseModel):
            size: int

        def build(args: dict):
            return echo.options(name=args["name"]).bind()

        def build_typed(args: Settings):
            return echo.options(num_replicas=args.size).bind()

        def build_nothing():
            return 4
    """))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "iris_test_app"
    sys.modules.pop("iris_test_app", None)


def test_applications_and_builders_are_imported(module):
    assert schema.import_application(f"{module}:app", {}).deployment.name == "echo"
    assert schema.import_application(f"{module}.app", {}).deployment.name == "echo"
    assert schema.import_application(f"{module}:build", {"name": "other"}).deployment.name == "other"
    assert schema.import_application(f"{module}:build_typed", {"size": "4"}).deployment.num_replicas == 4
    for path, args, message in (
        (":app", {}, "is no import path"),
        (f"{module}:ap", {}, "has no 'ap'; it has .*app"),
        (f"{module}:number", {}, "is int, and an application"),
        (f"{module}:app", {"a": 1}, "takes no arguments"),
        (f"{module}:build_nothing", {}, "returned int"),
        (f"{module}:build_nothing", {"a": 1}, "takes no arguments"),
    ):
        with pytest.raises(ServeConfigError, match=message):
            schema.import_application(path, args)
    with pytest.raises(ModuleNotFoundError):
        schema.import_application("there_is_no_such_module:app", {})


def test_overrides_of_unknown_deployments_are_refused(module):
    config = schema.ApplicationConfig("a", f"{module}:app", overrides={"ecco": {"num_replicas": 2}})
    with pytest.raises(ServeConfigError, match="has no deployment 'ecco'; did you mean 'echo'"):
        schema.build_application(config)
    config = schema.ApplicationConfig("a", f"{module}:app", runtime_env={"env_vars": {"A": "b"}}, overrides={"echo": {"num_replicas": 2}})
    (spec,) = schema.build_application(config).deployments
    assert spec.config.num_replicas == 2
    assert spec.config.ray_actor_options == {"runtime_env": {"env_vars": {"A": "b"}}}


def test_no_proxy_has_two_names():
    assert HTTPOptions.of({"location": "NoServer"}).location is HTTPOptions.of({"location": "Disabled"}).location is ProxyLocation.Disabled
