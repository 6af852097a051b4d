"""A Gaudi card in plain Python: what it computes is right, and it is as strict as a real one.

PyTorch's spare backend, PrivateUse1, is renamed to "hpu" (once a process, so this belongs into one
of its own), and its tensors hold a CPU tensor that every operator is run on. What the card adds:

- a tensor of the CPU among an operator's operands is an error;
- in lazy mode operators are gathered; what a synchronisation sends off is compiled unless the same
  operators with the same shapes have been before;
- while a graph is recorded, a value that is read and an operator that is missing are errors;
- a gather of 64-bit integers does not compile;
- a replay computes on the tensors that the recording saw, and leaves its results in the same ones;
- a copy to the host that does not block holds nothing until the card is waited for;
- work takes time only when somebody waits for it: the card has a clock of its own;
- in lazy mode what nobody holds any more when it is sent off is not computed, and takes no time.
"""

from __future__ import annotations

import weakref
from itertools import count

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten

OPERATOR_S = 1e-4
COMPILATION_US = 1500
MEMORY_BYTES = 96 << 30

_READS = {aten._local_scalar_dense.default, aten.equal.default}
_SHAPED_BY_VALUES = {
    aten.nonzero.default,
    aten.masked_select.default,
    aten.unique_consecutive.default,
}


class Recording:
    """What a graph holds: operators, and the tensors that they saw."""

    def __init__(self):
        self.calls = []

    def replay(self):
        for func, args, kwargs, results in self.calls:
            computed = func(*on_host(args), **on_host(kwargs))
            if not func._schema.is_mutable:
                pairs = zip(tree_leaves(results), tree_leaves(computed), strict=True)
                for tensor, value in pairs:
                    if isinstance(tensor, HpuTensor):
                        tensor.host = value


class Card:
    """The one card there is."""

    def __init__(self):
        self.lazy = True
        self.acquired = False
        self.taken = False  # by another process
        self.missing = set()  # operators that fall back to the CPU, by name
        self.lets_read = False  # values while a graph is recorded
        self.seconds = 0.0
        self._asked_s = 0.0
        self._gathered = []
        self._known = set()
        self.compilations = 0
        self.hits = 0
        self.fallbacks = {}
        self.recording = None
        self._copies = []
        self.copies_asked = 0
        self.in_use = self.max_in_use = 0

    def acquire(self):
        if self.taken:
            raise RuntimeError("synStatus=8 [Device not found] Device acquire failed.")
        self.acquired = True

    def clock(self):
        """Seconds, which pass only while somebody waits."""
        return self.seconds

    def ask(self, func, shapes, results=(), operands=(), *, of_graph=False):
        name = func.name() if func else "replay"
        if name in self.missing:
            if self.recording is not None:
                raise RuntimeError(f"CPU fallback of {name} while a graph is recorded")
            self.fallbacks[name] = self.fallbacks.get(name, 0) + 1
        if self.recording is not None:
            return
        if not self.lazy or of_graph:
            self._asked_s += OPERATOR_S
            return
        made, used = tensors_of(results), tensors_of(operands)
        holders = [weakref.ref(tensor.host) for tensor in made]
        self._gathered.append(
            ((name, shapes), holders, {t.serial for t in made}, {t.serial for t in used})
        )

    def compile(self, key):
        if key in self._known:
            self.hits += 1
        else:
            self._known.add(key)
            self.compilations += 1

    def flush(self):
        """Compile and run what was gathered, but for what nobody will see."""
        wanted, operators = set(), []
        for operator, holders, made, used in reversed(self._gathered):
            if any(holder() is not None for holder in holders) or made & wanted:
                operators.append(operator)
                wanted |= used
        self._gathered.clear()
        if operators:
            self.compile(tuple(operators))
            self._asked_s += OPERATOR_S * len(operators)

    def synchronize(self):
        if self.recording is not None:
            raise RuntimeError("synchronize while a graph is recorded")
        self.flush()
        self.work_until(self.asked_until, self.copies_asked)

    @property
    def asked_until(self):
        """When all that was sent off will be done."""
        return self.seconds + self._asked_s

    def work_until(self, moment, copies):
        """Let time pass, and the first of all copies arrive."""
        passes = max(0.0, moment - self.seconds)
        self.seconds += passes
        self._asked_s -= passes
        while self._copies and self._copies[0][0] < copies:
            _, destination, values = self._copies.pop(0)
            destination.copy_(values)

    def copy_later(self, values):
        """Return a tensor on the host that will hold ``values``."""
        self._asked_s += OPERATOR_S
        empty = torch.full_like(values, float("nan") if values.is_floating_point() else 77)
        self._copies.append((self.copies_asked, empty, values.clone()))
        self.copies_asked += 1
        return empty

    def begin_recording(self):
        self.flush()
        self.recording = Recording()

    def end_recording(self):
        done, self.recording = self.recording, None
        self.compile(tuple((f.name(), str(shapes_of((a, k)))) for f, a, k, _ in done.calls))
        return done

    def holds(self, tensor):
        size = tensor.host.numel() * tensor.host.element_size()
        self.in_use += size
        self.max_in_use = max(self.max_in_use, self.in_use)
        weakref.finalize(tensor.host, self._frees, size)

    def _frees(self, size):
        self.in_use -= size


CARD = Card()
_SERIALS = count()


class HpuTensor(torch.Tensor):
    """A tensor of the card."""

    @staticmethod
    def __new__(cls, host):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=torch.device("hpu", 0),
        )
        made.host, made.serial = host, next(_SERIALS)
        if not host._is_view():
            CARD.holds(made)
        return made

    def __init__(self, host):
        pass

    def __tensor_flatten__(self):
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(inner, _context, _size, _stride):
        return HpuTensor(inner["host"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        del types
        kwargs = kwargs or {}
        if func._can_decompose():  # inference mode lets composite operators through
            decomposed = func.decompose(*args, **kwargs)
            if decomposed is not NotImplemented:
                return decomposed
        return run(func, args, kwargs)


def run(func, args, kwargs):
    """Run an operator of which some operand, or the result, is on the card."""
    if func in {aten.copy_.default, aten._copy_from.default}:
        return copy(func, args, kwargs)
    if func is aten._to_copy.default and "device" in kwargs:
        return to(args[0], **kwargs)
    if func in _READS | _SHAPED_BY_VALUES:
        read()
    if func is aten.gather.default and args[0].dtype is torch.int64:
        raise RuntimeError("Graph compile failed. synStatus=26 [Generic failure]")
    strangers = [
        t for t in tree_leaves((args, kwargs))
        if isinstance(t, torch.Tensor) and not isinstance(t, HpuTensor) and t.dim() > 0
    ]  # fmt: skip
    if strangers:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found hpu:0 and cpu ({func})"
        )
    on_the_host = on_host(kwargs)
    if on_the_host.get("device") is not None:
        on_the_host["device"] = torch.device("cpu")
    computed = func(*on_host(args), **on_the_host)
    if func._schema.is_mutable:
        results = kwargs.get("out", args[0] if args else None)
    else:
        results = tree_map(lambda t: HpuTensor(t) if isinstance(t, torch.Tensor) else t, computed)
    CARD.ask(func, shapes_of((args, kwargs)), results, (args, kwargs))
    if CARD.recording is not None:
        on_replay = on_the_host if "device" in kwargs else kwargs
        CARD.recording.calls.append((func, args, on_replay, results))
    return results


def copy(func, args, kwargs):
    source, target = args[:2] if func is aten._copy_from.default else (args[1], args[0])
    non_blocking = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
    if not isinstance(target, HpuTensor):
        if not non_blocking:
            read()
            CARD.seconds += OPERATOR_S
        target.copy_(CARD.copy_later(source.host) if non_blocking else source.host)
        return target
    from_host = not isinstance(source, HpuTensor)  # which no graph is compiled for
    shape = (tuple(target.shape), str(target.dtype))
    CARD.ask(aten.copy_.default, shape, target, (source, target), of_graph=from_host)
    target.host.copy_(on_host(source))
    if CARD.recording is not None:
        CARD.recording.calls.append((aten.copy_.default, (target, source), {}, target))
    return target


def to(source, *, device, non_blocking=False, **kwargs):
    if not isinstance(source, HpuTensor):
        raise TypeError("copies to the card come by way of copy_")
    if torch.device(device).type == "hpu":
        return run(aten._to_copy.default, (source,), kwargs)
    if CARD.recording is not None:
        read()
    if non_blocking:
        return CARD.copy_later(aten._to_copy.default(source.host, **kwargs))
    read()
    CARD.seconds += OPERATOR_S
    return aten._to_copy.default(source.host, **kwargs).clone()


def read():
    if CARD.recording is None:
        CARD.synchronize()
    elif not CARD.lets_read:
        raise RuntimeError("a value is read while a graph is recorded")


def tensors_of(tree):
    return [t for t in tree_leaves(tree) if isinstance(t, HpuTensor)]


def on_host(tree):
    return tree_map(lambda t: t.host if isinstance(t, HpuTensor) else t, tree)


def shapes_of(tree):
    return tuple(
        (tuple(t.shape), str(t.dtype)) if isinstance(t, torch.Tensor) else str(t)
        for t in tree_leaves(tree)
    )


_LIBRARIES = []


def plug_in(backend_module):
    """Make the card known to PyTorch as "hpu"; once a process."""
    _setup_privateuseone_for_python_backend("hpu", backend_module=backend_module)
    library = torch.library.Library("aten", "IMPL")

    def empty(size, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
        return HpuTensor(torch.empty(size, dtype=dtype))

    def empty_strided(size, stride, dtype=None, layout=None, device=None, pin_memory=None):
        return HpuTensor(torch.empty_strided(size, stride, dtype=dtype))

    def copy_from(source, target, non_blocking=False):
        return copy(aten._copy_from.default, (source, target, non_blocking), {})

    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("empty_strided", empty_strided, "PrivateUse1")
    library.impl("_copy_from", copy_from, "PrivateUse1")

    def lowered(operator):
        def call(*args, **kwargs):
            off = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)
            low = torch.get_autocast_dtype("hpu")
            with torch._C._ExcludeDispatchKeyGuard(off):
                cast = tree_map(
                    lambda t: (
                        t.to(low) if isinstance(t, torch.Tensor) and t.dtype is torch.float32 else t
                    ),
                    (args, kwargs),
                )
                return operator(*cast[0], **cast[1])

        return call

    # As the plugin's default list: these and layer_norm low, embedding in float32.
    for name in ("linear", "matmul", "scaled_dot_product_attention", "layer_norm"):
        library.impl(name, lowered(getattr(aten, name).default), "AutocastPrivateUse1")
    others = torch.library.Library("_", "IMPL")
    others.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    _LIBRARIES.extend([library, others])
