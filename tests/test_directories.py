"""Directories of runs: one process at a time."""

from __future__ import annotations

import errno
import fcntl

import pytest

from bert_infer.errors import RunDirectoryError
from bert_infer.files.directories import alone_in


def test_a_directory_is_free_again_when_its_run_is_done(tmp_path):
    with alone_in(tmp_path / "run"):
        with (
            pytest.raises(RunDirectoryError, match="being written by another run"),
            alone_in(tmp_path / "run"),
        ):
            pass
        assert list((tmp_path / "run").iterdir()) == [], "nothing else lies there for that"
    with alone_in(tmp_path / "run"):
        (tmp_path / "run" / "metrics.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="holds a run"), alone_in(tmp_path / "run"):
        pass


def test_where_directories_cannot_be_locked_runs_are_made_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EBADF, "as NFS answers")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone_in(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()
