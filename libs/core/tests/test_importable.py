"""Which modules travel by their name, and which by value."""

import importlib
import sys

import pytest
from shoal._functions import _importable

EXTENDED = '__path__ = __import__("pkgutil").extend_path(__path__, __name__)\n'


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    """A package over two folders, as `shoal` is over several distributions."""
    one, two = tmp_path / "one" / "twofold", tmp_path / "two" / "twofold"
    (two / "part").mkdir(parents=True)
    one.mkdir(parents=True)
    (one / "__init__.py").write_text(EXTENDED)
    (two / "part" / "__init__.py").write_text("")
    (two / "part" / "module.py").write_text("class Thing: pass\n")
    monkeypatch.syspath_prepend(str(two.parent))
    monkeypatch.syspath_prepend(str(one.parent))
    yield importlib.import_module("twofold.part.module")
    for name in [name for name in sys.modules if name.partition(".")[0] == "twofold"]:
        del sys.modules[name]


def test_a_module_in_the_second_folder_of_a_package_travels_by_its_name(namespace):
    assert _importable("twofold.part.module", namespace)


def test_a_file_that_no_path_leads_to_travels_by_value(tmp_path):
    path = tmp_path / "found_nowhere.py"
    path.write_text("")
    spec = importlib.util.spec_from_file_location("found_nowhere", path)
    module = importlib.util.module_from_spec(spec)
    assert not _importable("found_nowhere", module)
