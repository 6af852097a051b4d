"""The ceiling: the best dense matmul rate of this device, in this dtype, on the model's shapes.

Every way of multiplying that the device has is tried on the matrices of an encoder layer, with few
rows first and more of them as far as time and memory allow. What the search finds is kept in the
user's cache, unless something disturbed it; then each run repeats only the winner, before and after
its measured passes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from bert_infer import memory
from bert_infer.files import caches
from bert_infer.measuring import conditions, environment
from bert_infer.measuring.measure import fastest_s, timed

if TYPE_CHECKING:
    import torch

    from bert_infer.devices import Device
    from bert_infer.dtypes import Dtype
    from bert_infer.models.architecture import Architecture
    from bert_infer.operators.linears import MakeLinear

ROWS = (64, 256, 1024, 4096, 16384)
"""Numbers of rows tried, in this order, then the device's own: more rows take less time each."""
_SEARCH_S = 1.0
_FINALISTS, _FINAL_S = 3, 0.1
_REPEAT_S = 0.3
_DRAWN = 32_749  # a prime, so that as many rows differ; PyTorch takes threads from 32,768 on


class Matmul(NamedTuple):
    """``[rows, inputs] @ [inputs, outputs]``, and how it is done."""

    rows: int
    inputs: int
    outputs: int
    make: MakeLinear

    @property
    def flop(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inputs * self.outputs


@dataclass(frozen=True)
class Ceiling:
    """The rates found, in FLOP/s; ``after_flop_per_s`` is None until the passes are measured."""

    matmul: Matmul
    before_flop_per_s: float
    after_flop_per_s: float | None = None

    @property
    def flop_per_s(self) -> float:
        """The better of the two."""
        return max(self.before_flop_per_s, self.after_flop_per_s or 0.0)

    @property
    def change(self) -> float | None:
        """How far the rate after the passes lies above the one before, relative to it."""
        if self.after_flop_per_s is None:
            return None
        return self.after_flop_per_s / self.before_flop_per_s - 1


def before(device: Device, dtype: Dtype, architecture: Architecture) -> Ceiling | None:
    """Return the present rate of the matmul that a search finds best.

    None where the dtype has no ceiling, or the model leaves no memory for it. A matmul that was
    found when there was more memory gets fewer rows.
    """
    if not dtype.has_ceiling:
        return None
    matmul = search(device, dtype, architecture.hidden, architecture.intermediate)
    while (found := _rate_if_it_fits(matmul, device, dtype, _REPEAT_S)) is None:
        matmul = matmul._replace(rows=matmul.rows // 2)
        if not matmul.rows:
            return None
    return Ceiling(matmul, found)


def after(ceiling: Ceiling | None, device: Device, dtype: Dtype) -> Ceiling | None:
    """Return ``ceiling``, if there is one, with the rate that the same matmul reaches now."""
    return ceiling and replace(
        ceiling, after_flop_per_s=_rate_if_it_fits(ceiling.matmul, device, dtype, _REPEAT_S)
    )


@cache
def search(device: Device, dtype: Dtype, hidden: int, intermediate: int) -> Matmul:
    """Return the fastest matmul, from the cache if a run with the same environment sought it.

    Results are kept by the whole dtype: fp32 and tf32 multiply the same tensors at different rates.
    """
    depends_on = [environment.describe(device), repr(dtype), hidden, intermediate]
    path = caches.path_of("ceilings", f"{environment.digest(depends_on)}.json")
    makes = device.linears(dtype.matmuls())
    try:
        rows, inputs, outputs, kernel = json.loads(path.read_text("utf-8"))
        return Matmul(rows, inputs, outputs, {make.__name__: make for make in makes}[kernel])
    except (OSError, ValueError, TypeError, KeyError):
        earlier = conditions.snapshot(device)
        tried = _tried(device, dtype, hidden, intermediate)
    # A single call may have been disturbed: the best few are timed again.
    first = sorted(tried, key=lambda matmul: tried[matmul] or 0.0, reverse=True)[:_FINALISTS]
    found = max(first, key=lambda matmul: _rate_if_it_fits(matmul, device, dtype, _FINAL_S) or 0.0)
    meanwhile = conditions.between(earlier, conditions.snapshot(device))
    # Beside other programs the shortest calls look the fastest, as some are not interrupted; and
    # a smaller model may leave memory for a faster matmul.
    if not meanwhile.is_shared and None not in tried.values():
        kept = json.dumps([*found[:3], found.make.__name__])
        caches.keep(path, lambda beside: beside.write_text(kept, "utf-8"))
    return found


def _tried(
    device: Device, dtype: Dtype, hidden: int, intermediate: int
) -> dict[Matmul, float | None]:
    """Return the rates of as many matmuls as ``_SEARCH_S`` allows; None for what did not fit.

    Those with the fewest rows are tried first, and at least one of them.
    """
    layer = ((hidden, intermediate), (intermediate, hidden), (hidden, 3 * hidden), (hidden, hidden))
    makes = device.linears(dtype.matmuls())
    for make in makes:
        # A device's first multiplication loads libraries, which would use up the search's time.
        _rate_if_it_fits(Matmul(ROWS[0], hidden, hidden, make), device, dtype, 0.0)
    tried: dict[Matmul, float | None] = {}
    left = _SEARCH_S
    for rows in (*ROWS, *device.ceiling_rows):
        for matmul in [Matmul(rows, *shape, make) for make in makes for shape in layer]:
            # It is called twice, at a rate that is hardly above the fastest so far.
            fastest = max(filter(None, tried.values()), default=math.inf)
            if 2 * matmul.flop / fastest > left:
                continue
            tried[matmul], seconds = timed(
                lambda m=matmul: _rate_if_it_fits(m, device, dtype, 0.0)  # type: ignore[misc]
            )
            left -= seconds
    return tried


def _rate_if_it_fits(matmul: Matmul, device: Device, dtype: Dtype, budget_s: float) -> float | None:
    """Return what ``rate`` does; None if the memory that the model leaves is too small."""
    try:
        return rate(matmul, device, dtype, budget_s)
    except (MemoryError, RuntimeError) as error:
        if not memory.ran_out(error):
            raise
        memory.forget(error)
        return None


def rate(matmul: Matmul, device: Device, dtype: Dtype, budget_s: float) -> float:
    """Return the FLOP/s of the fastest call within ``budget_s``; there is at least one."""

    def operand(drawn: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        numbers = dtype.operand(drawn).to(device.torch_device())
        return numbers.repeat(-(-rows * columns // _DRAWN))[: rows * columns].view(rows, columns)

    of_x, of_weight = _drawn()
    x = operand(of_x, matmul.rows, matmul.inputs)
    linear = matmul.make(operand(of_weight, matmul.outputs, matmul.inputs), None)
    return matmul.flop / fastest_s(lambda: linear(x), device, budget_s)


@cache
def _drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """Return random numbers for each operand: a device's power, and so its clock, depends on them.

    They are few, to be repeated: drawing millions would take longer than multiplying them.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randn(_DRAWN, generator=generator), torch.randn(_DRAWN, generator=generator)
