"""The user's cache holds what can be made again: it may be lost, full or not writable."""

from __future__ import annotations

import os
import time

import pytest

from bert_infer.files import caches
from bert_infer.report.charts import plot


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_latest_files_of_a_kind_are_kept(monkeypatch):
    monkeypatch.setattr(caches, "KEPT", 2)
    for age, name in enumerate(["new", "older", "oldest"]):
        path = caches.path_of("kind", name)
        caches.keep(path, lambda beside, name=name: beside.write_text(name))
        os.utime(path, (time.time(), 1000 - age))
    newest = caches.path_of("kind", "newest")
    caches.keep(newest, lambda beside: beside.write_text("newest"))
    assert {path.name for path in newest.parent.iterdir()} == {"new", "newest"}
    assert newest.read_text() == "newest"


def test_what_cannot_be_kept_is_logged_and_no_error(cache_home, caplog):
    def no_room(beside):
        beside.write_text("half")
        raise OSError(28, "No space left on device")

    path = caches.path_of("kind", "name")
    caches.keep(path, no_room)
    assert "name is not cached" in caplog.text
    assert not list(path.parent.iterdir())
    (cache_home / "file").touch()
    caches.keep(cache_home / "file" / "name", lambda beside: beside.write_text(""))
    assert caplog.text.count("name is not cached") == 2


def test_the_reports_script_is_bundled_once_and_again_where_it_is_damaged(monkeypatch):
    bundled = []
    monkeypatch.setattr(plot, "_bundled", lambda: bundled.append(1) or "a script of Vega's ®")
    assert [plot.javascript() for _ in range(3)] == ["a script of Vega's ®"] * 3
    assert len(bundled) == 1
    (path,) = caches.path_of("scripts", "any").parent.iterdir()
    assert "vega-lite-6" in path.name
    path.write_bytes(b"\xff\xfe")
    assert plot.javascript() == "a script of Vega's ®"
    assert len(bundled) == 2
