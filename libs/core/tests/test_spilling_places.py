"""Where the object store spills to, as users say it."""

from __future__ import annotations

import json
import os

import pytest
from shoal import _spilling
from shoal._bootstrap import private_config
from shoal._cli.start import _settings
from shoal._init import _check_init, init


def store_settings(**given):
    options = _check_init({"kwargs": given} | {name: None for name in init.__annotations__ if name not in ("return", "kwargs")} | {"logging_level": "info"})
    return options.system_config.get("objectstore", {})


def test_directories_become_absolute_and_uris_stay():
    assert store_settings(object_spilling_directory="spilled") == {"spill_dirs": [os.path.abspath("spilled")]}
    assert store_settings(_object_spilling_directory="s3://bucket/spilled") == {"spill_dirs": ["s3://bucket/spilled"]}
    assert store_settings(_system_config={"object_spilling_directory": "/a", "objectstore": {"spill_threshold": 0.5}}) == {
        "spill_dirs": ["/a"], "spill_threshold": 0.5,
    }  # fmt: skip
    assert store_settings() == {}


@pytest.mark.parametrize(("config", "places"), [
    ({"type": "filesystem", "params": {"directory_path": "/a", "buffer_size": 1_000_000}}, ["/a"]),
    ({"type": "filesystem", "params": {"directory_path": ["/a", "/b"]}}, ["/a", "/b"]),
    ({"type": "smart_open", "params": {"uri": "s3://bucket/folder"}}, ["s3://bucket/folder"]),
    ({"type": "smart_open", "params": {"uri": ["s3://a/x", "s3://b/y"]}}, ["s3://a/x", "s3://b/y"]),
])  # fmt: skip
def test_rays_spilling_config_names_places(config, places):
    for given in (config, json.dumps(config)):
        assert store_settings(_system_config={"object_spilling_config": given}) == {"spill_dirs": places}


@pytest.mark.parametrize("config", ["{", "7", '{"type": "tape", "params": {}}', '{"type": "smart_open", "params": {"directory_path": "/a"}}'])
def test_a_config_that_names_no_place_is_refused(config):
    with pytest.raises(ValueError, match="object_spilling_config="):
        _spilling.of_ray(config)


def test_what_is_named_by_an_argument_counts_first():
    assert _spilling.with_places({"object_spilling_directory": "/a"}, ["/b"]) == {"objectstore": {"spill_dirs": ["/b"]}}


def test_the_command_line_takes_directories_and_uris():
    given = {"system_config": None, "spill_dirs": ("rel", "s3://bucket/x"), "preload": ""}
    assert _settings(given) == {"objectstore": {"spill_dirs": [os.path.abspath("rel"), "s3://bucket/x"]}}


def test_a_private_cluster_takes_rays_setting(tmp_path):
    options = _check_init(
        {"kwargs": {"_system_config": {"object_spilling_config": '{"type": "smart_open", "params": {"uri": "s3://b/c"}}'}}}
        | {name: None for name in init.__annotations__ if name not in ("return", "kwargs")} | {"logging_level": "info"}
    )  # fmt: skip
    assert private_config(options, tmp_path).settings["objectstore"]["spill_dirs"] == ["s3://b/c"]
