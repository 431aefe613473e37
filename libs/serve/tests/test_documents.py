"""The README's example and the programs in examples/ run."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import shoal
from shoal import serve

HERE = Path(__file__).resolve()
README = HERE.parents[1] / "README.md"
EXAMPLES = HERE.parents[3] / "examples"


def test_the_example_of_the_readme(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "shoal.init()" in code
    try:
        exec(compile(code.replace("shoal.init()", 'shoal.init("local", num_cpus=4, include_dashboard=False)'), str(README), "exec"), {"__name__": "readme"})
    finally:
        shoal.shutdown()


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are not here")
def test_serve_iris():
    import httpx

    spec = importlib.util.spec_from_file_location("serve_iris_example", EXAMPLES / "serve_iris.py")
    example = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = example
    spec.loader.exec_module(example)
    shoal.init("local", num_cpus=4, include_dashboard=False)
    try:
        serve.start(http_options={"port": 0})
        serve.run(example.app)
        with httpx.Client(base_url=serve.http_address(), timeout=30) as client:
            answer = client.get("/predict?sepal_length=5.1&sepal_width=3.5&petal_length=1.4&petal_width=0.2").json()
            assert answer["species"] == "setosa"
            assert answer["probability"] > 0.9
            answers = client.post("/batch", json=[[6.7, 3.0, 5.2, 2.3], [5.1, 3.5, 1.4, 0.2]] * 20).json()
            assert [one["species"] for one in answers] == ["virginica", "setosa"] * 20
            assert client.post("/batch", json=[[1.0]]).status_code == 422
            assert client.get("/predict?sepal_length=long").status_code == 422
        serve.shutdown()
    finally:
        shoal.shutdown()
        sys.modules.pop(spec.name, None)
