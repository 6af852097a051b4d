"""Copies and forwards at once: in what order streams may do them, and what is timed.

No card is needed. ``Streams`` has the interface of torch.cuda's streams, does everything at once on
the processor, and keeps a vector clock of each stream and of the host (Mattern, 1989). An operator
that touches memory which another stream used, with no event between them, is a race: on a card it
might come too early.
"""

from __future__ import annotations

import inspect
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, count, pairwise
from weakref import WeakSet

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bert_infer import compose
from bert_infer.batching.layouts import PaddedBatch
from bert_infer.devices.cpu import Cpu
from bert_infer.devices.overlap import Overlap
from bert_infer.inputs.prompt import Prompt
from bert_infer.measuring import measure
from bert_infer.measuring.measure import measured_pass
from bert_infer.records import Computed, Outputs
from bert_infer.running.execution import execute

HOST = "host"


class Streams(TorchDispatchMode):
    """What torch.cuda offers, with an operator a millisecond on every stream."""

    def __init__(self):
        super().__init__()
        self.known = Counter()  # what the host has waited for
        self.current = self.Stream()
        self.written, self.read, self.kept, self.races = {}, {}, [], []

    def Stream(self):  # noqa: N802  torch.cuda's name
        return Stream(self)

    def Event(self, *, enable_timing):  # noqa: N802  likewise
        return Event(self, enable_timing)

    def current_stream(self):
        return self.current

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        stream = self.current
        stream.known |= self.known  # it is asked after all that the host has seen end
        stream.known[stream] += 1
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        writes = [t for t in given if func._schema.is_mutable and t is given[0]]  # noqa: SLF001
        new = {place(t) for t in made} - {place(t) for t in given}
        for tensor in given:
            self.check(tensor, stream.known, str(func), is_write=any(tensor is t for t in writes))
            self.read.setdefault(place(tensor), Counter())[stream] = stream.known[stream]
        for tensor in chain(writes, (t for t in made if place(t) in new)):
            self.written[place(tensor)] = stream, stream.known[stream]
        self.kept += made  # an address is not given away twice
        return result

    def check(self, tensor, known, what, *, is_write):
        last = [self.written.get(place(tensor))]
        if is_write:
            last += self.read.get(place(tensor), Counter()).items()
        self.races += [what for use in last if use and known[use[0]] < use[1]]

    def reads_on_the_host(self, tensor):
        self.check(tensor, self.known, HOST, is_write=False)


class Stream:
    """A stream, and how far it has seen each stream's work end."""

    def __init__(self, streams):
        self.streams, self.known = streams, Counter()

    def wait_event(self, event):
        self.known |= event.known


@dataclass
class Event:
    """A moment of the stream that was current when it was recorded."""

    streams: Streams
    enable_timing: bool
    known: Counter | None = None

    def record(self):
        self.stream = self.streams.current
        self.known = self.stream.known | self.streams.known

    def synchronize(self):
        self.streams.known |= self.known

    def elapsed_time(self, end):
        assert self.enable_timing
        assert self.stream is end.stream
        assert not end.known - self.streams.known, "not waited for"
        return end.known[self.stream] - self.known[self.stream]


def place(tensor):
    return tensor.untyped_storage().data_ptr()


class Overlapping(Cpu):
    """Two forwards in flight on fake streams, and outputs that a replay writes over."""

    in_flight = 2

    def __init__(self, streams):
        super().__init__()
        object.__setattr__(self, "overlap", Overlap(streams))
        object.__setattr__(self, "static", torch.zeros(2, 3))

    def encode(self, ids):
        self.static.copy_(ids)
        self.static.mul_(2)
        return self.static.clone(), self.static[:, 0].clone()

    def submit(self, encode, inputs, _clock):
        def copy_in():
            return tuple(torch.from_numpy(array).clone() for array in inputs)

        def copy_out(outputs):
            return Outputs(outputs.hidden_states.clone(), outputs.pooled.clone())

        return self.overlap.submit(encode, copy_in, copy_out)


def batches(so_many):
    for number in range(so_many):
        ids = np.full((2, 3), number, np.int32)
        yield PaddedBatch(np.array([0, 1]), np.array([3, 3]), ids), (ids,)


@pytest.fixture
def streams():
    with Streams() as streams:
        yield streams


def test_no_stream_reads_or_writes_too_early(streams):
    """Seen to fail: either ``wait_event`` left out; ``encode`` returning ``static`` itself."""
    device = Overlapping(streams)
    for number, (_, _, outputs) in enumerate(measured_pass(0, batches(6), device.encode, device)):
        streams.reads_on_the_host(outputs.hidden_states)
        streams.reads_on_the_host(outputs.pooled)
        assert outputs.hidden_states.tolist() == [[2 * number] * 3] * 2
        assert outputs.pooled.tolist() == [2 * number] * 2
    assert streams.races == []
    assert number == 5


def test_outputs_are_complete_only_when_waited_for(streams):
    device = Overlapping(streams)
    ((_, inputs),) = batches(1)
    wait = device.submit(device.encode, inputs, None)
    assert streams.known == Counter(), "nothing is waited for yet"
    streams.reads_on_the_host(wait().outputs.pooled)
    assert streams.races == []


def test_durations_are_the_devices_own(streams):
    """Two operators copy two arrays out, one copies in; the forward is three and two clones."""
    device = Overlapping(streams)
    forwards = [forward for forward, _, _ in measured_pass(0, batches(3), device.encode, device)]
    assert {f.copy_out_s for f in forwards} == {0.002}
    assert len({(f.copy_in_s, f.duration_s) for f in forwards}) == 1


def ticking(seconds):
    """A clock that goes on by so many seconds whenever it is looked at."""
    return count(0, seconds).__next__


def test_shares_of_wall_time_add_up_to_all_of_it(streams):
    device = Overlapping(streams)
    measured = measured_pass(0, batches(5), device.encode, device, ticking(1 / 1024))
    forwards = [forward for forward, _, _ in measured]
    assert [f.batch_index for f in forwards] == list(range(5))
    assert forwards[0].start_s == 0
    for before, after in pairwise(forwards):
        assert after.start_s == before.start_s + before.wall_s


def test_a_forward_is_submitted_before_the_one_before_it_is_back(streams):
    """Seen to fail: ``in_flight`` 1."""
    device, order = Overlapping(streams), []

    def encode(ids):
        order.append("submitted")
        return device.encode(ids)

    submit = device.submit

    def watched(*args):
        wait = submit(*args)

        def waited():
            order.append("back")
            return wait()

        return waited

    object.__setattr__(device, "submit", watched)
    list(measured_pass(0, batches(3), encode, device))
    assert order == ["submitted", "submitted", "back", "submitted", "back", "back"]


def test_what_was_measured_before_a_failure_is_kept(streams):
    device, seen = Overlapping(streams), []

    def encode(ids):
        if ids[0, 0] == 3:
            raise torch.OutOfMemoryError
        return device.encode(ids)

    with pytest.raises(torch.OutOfMemoryError):
        seen.extend(f.batch_index for f, _, _ in measured_pass(0, batches(5), encode, device))
    assert seen == [0, 1]


@pytest.mark.parametrize(("size", "allocated"), [(1, 1), (64, 64), (66, 128), (129, 256)])
def test_pinned_memory_is_counted_as_it_is_allocated(size, allocated):
    """Seen to fail: 66 MiB of each 128, so that two and a half times the bound was held."""
    assert measure.allocated_pinned(size << 20) == allocated << 20


def test_host_memory_bounds_what_is_held(streams, monkeypatch):
    """The device is idle whenever outputs are handed over, and goes on afterwards."""
    monkeypatch.setattr("bert_infer.measuring.measure._HELD_BYTES", 1)
    device = Overlapping(streams)
    measured = measured_pass(0, batches(5), device.encode, device)
    assert [forward.batch_index for forward, _, _ in measured] == list(range(5))


def test_forwards_that_take_long_are_handed_over_as_they_come(streams):
    """Seen to fail: all of a pass' outputs were held, and lost with the process."""
    device, asked = Overlapping(streams), []

    def encode(ids):
        asked.append(len(asked))
        return device.encode(ids)

    measured = measured_pass(0, batches(5), encode, device, ticking(2.0))
    handed = [(forward.batch_index, len(asked)) for forward, _, _ in measured]
    assert handed == [(0, 2), (1, 2), (2, 4), (3, 4), (4, 5)]


class Counting(Cpu):
    """Two forwards in flight, and how many outputs lie in host memory at once, by phase."""

    in_flight = 2

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "phase", None)
        object.__setattr__(self, "most", Counter())
        object.__setattr__(self, "alive", WeakSet())

    def enter(self, phase):
        object.__setattr__(self, "phase", phase)

    def submit(self, encode, inputs, clock):
        del clock
        done = Computed(Outputs(*encode(*self.copy_in(inputs))), 0.0, 0.0, 0.0)
        self.alive.add(done.outputs.hidden_states)
        self.most[self.phase] = max(self.most[self.phase], len(self.alive))
        return lambda: done


@pytest.mark.parametrize("limit_s", [10.0, 0.0], ids=["all_shapes", "time_is_up"])
def test_a_single_pass_gets_no_memory_that_the_warm_up_did_not(limit_s, monkeypatch):
    """Pages that the system does not move take long to get, and those of a card are kept.

    Seen to fail: one forward at a time, as is enough for a processor.
    """
    monkeypatch.setattr("bert_infer.measuring.warmup.LIMIT_S", limit_s)
    texts = ["word " * length for length in range(1, 40, 5)]
    chosen = ["model=tiny", "batching=by_length", "drift.texts=0"]
    device = Counting()
    runner = replace(compose(chosen), device=device, input=Prompt(texts))
    record = runner.new_record()
    record.phases.entered = device.enter
    execute(runner.prepare(), record)
    assert device.most["warmup"] >= device.most["measure"] > 2


def test_torch_cuda_has_what_is_asked_of_it():
    """The names and arguments, on any build of PyTorch; what they do needs a card."""
    cuda = torch.cuda
    assert {"enable_timing"} <= set(inspect.signature(cuda.Event.__new__).parameters)
    inspect.signature(cuda.Event.record).bind(None)
    inspect.signature(cuda.Event.synchronize).bind(None)
    inspect.signature(cuda.Event.elapsed_time).bind(None, None)
    inspect.signature(cuda.Stream.wait_event).bind(None, None)
    inspect.signature(cuda.Stream.__new__).bind(None)
    inspect.signature(cuda.stream).bind(None)
    inspect.signature(cuda.current_stream).bind()
