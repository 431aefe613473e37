from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from shoal_base import logs


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in [h for h in root.handlers if h not in handlers]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(level)


def test_text_has_one_line_with_fields_and_the_traceback(tmp_path: Path) -> None:
    logs.setup("gcs", tmp_path)
    logger = logging.getLogger("shoal_gcs.server")
    logger.debug("below the level")
    logger.info("a node came: %s", "abc", extra={"nodes": 3})
    try:
        raise KeyError("x")
    except KeyError:
        logger.exception("failed")
    lines = (tmp_path / "gcs.log").read_text().splitlines()
    assert " INFO gcs[" in lines[0]
    assert lines[0].endswith("shoal_gcs.server: a node came: abc nodes=3")
    assert lines[-1] == "KeyError: 'x'"


def test_json_has_one_object_a_line(tmp_path: Path) -> None:
    logs.setup("raylet", tmp_path, "DEBUG", "JSON")
    logging.getLogger("x").debug("line\nbreak", extra={"lease": 7, "path": tmp_path})
    record = json.loads((tmp_path / "raylet.log").read_text())
    assert (record["message"], record["lease"], record["component"], record["level"]) == ("line\nbreak", 7, "raylet", "DEBUG")


def test_files_rotate_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 1000)
    monkeypatch.setattr(logs, "BACKUPS", 2)
    logs.setup("store", tmp_path)
    for n in range(100):
        logging.getLogger("x").info("%05d %s", n, "y" * 100)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store.log", "store.log.1", "store.log.2"]
    assert all(p.stat().st_size <= 1000 for p in tmp_path.iterdir())


def test_setting_up_again_replaces_the_handler(tmp_path: Path) -> None:
    logs.setup("a", tmp_path)
    logs.setup("b", tmp_path)
    logging.getLogger("x").info("once")
    assert (tmp_path / "a.log").read_text() == ""
    assert "once" in (tmp_path / "b.log").read_text()


@pytest.mark.parametrize(("level", "encoding"), [("LOUD", "TEXT"), ("INFO", "XML")])
def test_unknown_settings_are_named(level: str, encoding: str) -> None:
    with pytest.raises(ValueError, match=f"{level}|{encoding}"):
        logs.setup("a", None, level, encoding)  # type: ignore[arg-type]
