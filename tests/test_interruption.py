"""Interruptions that wait for what they would break."""

from __future__ import annotations

import os
import signal
import time
from threading import Thread

import pytest

from bert_infer.running.interruption import held_back


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def interrupting(request):
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_an_interruption_waits_for_the_end_and_comes_once(interrupting):
    steps = []

    def work():
        with held_back():
            os.kill(os.getpid(), interrupting)
            os.kill(os.getpid(), interrupting)
            steps.append("done")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["done"]
    assert signal.getsignal(interrupting) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), interrupting)


def test_a_second_one_after_a_while_does_not_wait(interrupting, monkeypatch):
    """Seen to fail: while an import hung, only SIGKILL ended it."""
    monkeypatch.setattr("bert_infer.running.interruption._PATIENCE_S", 0.05)
    steps = []

    def work():
        with held_back():
            os.kill(os.getpid(), interrupting)
            time.sleep(0.1)
            steps.append("imported")
            os.kill(os.getpid(), interrupting)
            steps.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["imported"]
    assert signal.getsignal(interrupting) is signal.default_int_handler


def test_an_error_inside_is_what_is_raised(interrupting):
    def work():
        with held_back():
            os.kill(os.getpid(), interrupting)
            raise ImportError

    with pytest.raises(ImportError):
        work()


def test_what_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with held_back():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    signal.signal(signal.SIGHUP, before)


def test_other_threads_are_left_alone():
    failed = []

    def work():
        try:
            with held_back():
                pass
        except ValueError as error:  # handlers are the main thread's
            failed.append(error)

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
