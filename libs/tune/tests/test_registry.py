"""Trainables and environments by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import shoal
from shoal import tune
from shoal.tune.registry import env_creator, get_trainable, register_env, register_trainable, registered_envs
from shoal.tune.sweep_file import load_sweep
from shoal.util.yaml_config import YamlConfigError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A distribution with two entry points, of which one leads nowhere."""
    (tmp_path / "borrowed_trainables.py").write_text("from shoal import tune\n\n\nclass Borrowed(tune.Trainable):\n    pass\n")
    info = tmp_path / "borrowed-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: borrowed\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[shoal.trainables]\nBORROWED = borrowed_trainables:Borrowed\nBROKEN = borrowed_trainables:Nothing\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "borrowed_trainables", raising=False)
    return tmp_path


def test_the_name_of_an_installed_trainable_imports_it_when_it_is_asked_for(installed: Path) -> None:
    with pytest.raises(ValueError, match=r"no trainable 'borrowed' was registered; there are: .*BORROWED"):
        get_trainable("borrowed")
    assert "borrowed_trainables" not in sys.modules
    assert get_trainable("BORROWED").__name__ == "Borrowed"
    assert tune.Tuner("BORROWED")._trainable is sys.modules["borrowed_trainables"].Borrowed


def test_what_this_process_registers_goes_before_what_is_installed(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def own(config):
        return {}

    monkeypatch.setattr("shoal.tune.registry._trainables", {})
    register_trainable("BORROWED", own)
    assert get_trainable("BORROWED") is own
    assert "borrowed_trainables" not in sys.modules


def test_an_installed_trainable_that_cannot_be_imported_says_which_it_is(installed: Path) -> None:
    with pytest.raises(ImportError, match="'BROKEN' is borrowed_trainables:Nothing of an installed package, which cannot be imported"):
        get_trainable("BROKEN")


def test_a_sweep_may_name_a_trainable(installed: Path) -> None:
    sweep = installed / "sweep.yaml"
    sweep.write_text("trainable: BORROWED\nspace:\n  x: 1\n")
    assert load_sweep(sweep).trainable.__name__ == "Borrowed"
    sweep.write_text("name: one\ntrainable: NOBODY\n")
    with pytest.raises(YamlConfigError, match=r"sweep.yaml:2: trainable: 'NOBODY': .* no trainable 'NOBODY' was registered; there are: .*BORROWED"):
        load_sweep(sweep)


def test_names_and_what_they_stand_for_are_checked() -> None:
    with pytest.raises(TypeError, match=r"register_trainable\(\): the name must be a text, not 3"):
        register_trainable(3, lambda config: {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"register_env\(\): the name must be a text, not ''"):
        register_env("", lambda config: None)
    with pytest.raises(TypeError, match=r"register_env\('pole'\): 'CartPole-v1' is not callable"):
        tune.register_env("pole", "CartPole-v1")  # type: ignore[arg-type]
    assert "pole" not in registered_envs()


def test_an_environment_is_known_in_other_processes_of_the_job(cluster) -> None:
    tune.register_env("twice", lambda config: config["n"] * 2)

    @shoal.remote
    def made(name: str) -> object:
        creator = env_creator(name)
        return creator({"n": 21}) if creator is not None else registered_envs()

    assert shoal.get(made.remote("twice"), timeout=60) == 42
    assert shoal.get(made.remote("thrice"), timeout=60) == []
