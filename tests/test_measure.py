"""The measuring code on a device whose time is scripted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bert_infer.devices.cpu import Cpu
from bert_infer.measure import Phases, measured_pass, timed
from bert_infer.records import Outputs, PaddedBatch


class Time:
    """A clock that only moves when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def tick_and_fail(self):
        self.now += 1
        raise ZeroDivisionError


class AsynchronousDevice(Cpu):
    """Returns at once and works later, as an accelerator does; copying takes 1 s each way."""

    def __init__(self, time):
        super().__init__()
        object.__setattr__(self, "time", time)
        object.__setattr__(self, "queue", [0.0])

    def ask(self, seconds):
        self.queue[0] += seconds

    def copy_in(self, arrays):
        self.ask(1.0)
        return tuple(torch.from_numpy(a) for a in arrays)

    def copy_out(self, outputs):
        self.ask(1.0)
        return outputs

    def synchronize(self):
        self.time.now += self.queue[0]
        self.queue[0] = 0.0


def one_batch():
    ids = np.ones((1, 3), np.int32)
    return PaddedBatch(np.array([0]), np.array([3]), ids), (ids,)


@pytest.fixture
def time():
    return Time()


def test_an_asynchronous_device_is_waited_for(time):
    device = AsynchronousDevice(time)
    durations = iter([5.0, 7.0])

    def encode(ids):
        device.ask(next(durations))
        return ids, ids

    forwards = [f for f, _, _ in measured_pass(0, [one_batch(), one_batch()], encode, device, time)]
    assert [f.duration_s for f in forwards] == [5.0, 7.0]
    assert [f.wall_s for f in forwards] == [7.0, 9.0]
    assert [f.start_s for f in forwards] == [0.0, 7.0]


def test_what_happens_between_forwards_is_not_measured(time):
    device = AsynchronousDevice(time)
    wall = 0.0
    for forward, _, _ in measured_pass(0, [one_batch()] * 3, lambda i: (i, i), device, time):
        wall += forward.wall_s
        time.now += 100  # saving, drawing
    assert wall == 6.0


def test_laying_a_batch_out_is_measured(time):
    def batches():
        time.now += 4  # sorting and padding
        yield one_batch()

    ((forward, batch, outputs),) = measured_pass(
        0, batches(), lambda i: (i, i), AsynchronousDevice(time), time
    )
    assert forward.wall_s == 6.0
    assert forward.duration_s == 0.0
    assert (forward.sequences, forward.real_tokens, forward.padded_tokens) == (1, 3, 3)
    assert isinstance(outputs, Outputs)
    assert batch.real_tokens == 3


def test_phases_add_up_and_remember_where_it_ended(time):
    phases = Phases(time)
    for _ in range(2):
        with phases("load"):
            time.now += 3
    with pytest.raises(ZeroDivisionError), phases("measure"):
        time.tick_and_fail()
    assert phases.seconds["load"] == 6
    assert phases.seconds["measure"] == 1
    assert phases.seconds["drift"] is None
    assert phases.current == "measure"


def test_timed(time):
    def work():
        time.now += 2
        return "done"

    assert timed(work, time) == ("done", 2.0)
