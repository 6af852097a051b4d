import torch
from card import CARD, MEMORY_BYTES
from habana_frameworks.torch.utils import is_lazy

from . import random

NAME = ["GAUDI2"]


def is_available():
    return True


def is_initialized():
    return True


def _is_in_bad_fork():
    return False


def manual_seed_all(seed):
    random.manual_seed(seed)


def device_count():
    return 1


def get_device_name(device=None):
    return NAME[0]


def current_device():
    CARD.acquire()
    return 0


def synchronize():
    CARD.synchronize()


class Stream:
    def __init__(self, device=None, priority=0):
        pass

    def wait_event(self, event):
        assert event.is_recorded


def default_stream(device=None):
    return Stream()


def current_stream(device=None):
    return Stream()


class stream:  # noqa: N801
    def __init__(self, stream):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return False


class Event:
    def __init__(self, enable_timing=False):
        self._timing, self._at, self._copies = enable_timing, None, 0

    @property
    def is_recorded(self):
        return self._at is not None

    def record(self, stream=None):  # of what was sent off, not of what lazy mode has gathered
        self._at, self._copies = CARD.asked_until, CARD.copies_asked

    def synchronize(self):
        CARD.work_until(self._at, self._copies)

    def elapsed_time(self, end):
        assert self._timing
        assert self._at <= end._at <= CARD.seconds, "not waited for"
        return (end._at - self._at) * 1e3


def memory_stats(device=None):
    return {
        "Limit": MEMORY_BYTES,
        "InUse": CARD.in_use,
        "MaxInUse": CARD.max_in_use,
        "NumAllocs": 1,
        "NumFrees": 0,
        "ActiveAllocs": 1,
        "MaxAllocSize": 1,
        "TotalSystemAllocs": 1,
        "TotalSystemFrees": 0,
        "TotalActiveAllocs": 1,
    }


def max_memory_allocated(device=None):
    return memory_stats(device)["MaxInUse"]


def reset_peak_memory_stats(device=None):
    CARD.max_in_use = CARD.in_use


def get_amp_supported_dtype():
    return [torch.bfloat16, torch.float16]


def recompute_sdp_enabled():
    torch._dynamo.graph_break()  # its C++ is not for dynamo
    return True


if is_lazy():  # eager mode has no such names
    from .graphs import HPUGraph, wrap_in_hpu_graph
