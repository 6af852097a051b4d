"""Gaudi's PyTorch plugin, ``habana_frameworks.torch``: every call of it that this package makes."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from bert_infer.devices.counters import Counters
from bert_infer.devices.overlap import Overlap

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from bert_infer.engines import Encode

NAME = "habana_frameworks.torch"
IMPORTS = (f"{NAME}.core",)  # which imports torch

_FUSED_SDPA = "hpu_fused_sdpa"


@contextmanager
def inference() -> Iterator[None]:
    """Acquire the card, and prepare it for inference inside.

    Raises:
        RuntimeError: the card cannot be acquired.
    """
    import habana_frameworks.torch.core as htcore
    import habana_frameworks.torch.hpu as hthpu

    prepare = _either(htcore, "hpu_set_inference_env", "hpu_inference_set_env")
    put_back = _either(htcore, "hpu_teardown_inference_env", "hpu_inference_teardown_env")
    prepare()
    hthpu.current_device()  # the first call that needs the card
    try:
        yield
    finally:
        put_back()


def mark_constant(module: torch.nn.Module, *, scales_only: bool) -> None:
    """Tell lazy mode's compiler that ``module``'s weights, or their scales, never change."""
    import habana_frameworks.torch.core as htcore

    htcore.hpu_inference_initialize(module, mark_only_scales_as_const=scales_only)


@cache
def overlap() -> Overlap:
    """Return streams for copies beside the one that computes."""
    import habana_frameworks.torch.core as htcore
    import habana_frameworks.torch.hpu as hthpu

    # An event does not cover work that lazy mode has gathered but not sent off. In eager mode there
    # is none, and mark_step does nothing.
    return Overlap(hthpu, htcore.mark_step)


def synchronize() -> None:
    """Send off what lazy mode has gathered, and wait for the card."""
    import habana_frameworks.torch.hpu as hthpu

    hthpu.synchronize()


def device_name() -> str:
    """Return the card's name."""
    import habana_frameworks.torch.hpu as hthpu

    return str(hthpu.get_device_name())


def memory(key: str) -> int | None:
    """Return a figure of ``memory_stats`` in bytes; unknown is None."""
    import habana_frameworks.torch.hpu as hthpu

    value = hthpu.memory_stats().get(key)
    return None if value is None else int(value)


def reset_peak_memory() -> None:
    """Count ``MaxInUse`` anew."""
    import habana_frameworks.torch.hpu as hthpu

    hthpu.reset_peak_memory_stats()


def counters(energy_j: float | None) -> Counters:
    """Return the plugin's metrics, and the card's energy, which it does not count."""
    compilations = _metric("graph_compilation")
    cache, fallbacks = _metric("recipe_cache"), _metric("cpu_fallback")
    microseconds = compilations.get("TotalTime")
    return Counters(
        compilations=compilations.get("TotalNumber"),
        compilation_s=None if microseconds is None else microseconds / 1e6,
        recipe_cache_hits=cache.get("TotalHit"),
        recipe_cache_misses=cache.get("TotalMiss"),
        cpu_fallbacks=fallbacks.get("FallbackOps"),
        energy_j=energy_j,
    )


def _metric(name: str) -> dict[str, Any]:
    """Return a copy of a metric's statistics; none where the plugin does not keep it."""
    from habana_frameworks.torch.hpu.metrics import metric_global

    kept = metric_global(name)
    statistics = dict(kept.stats()) if kept else {}
    return {key: dict(v) if isinstance(v, dict) else v for key, v in statistics.items()}


def compiled(encode: Encode, shapes: int) -> Encode:
    """Return ``encode`` compiled for each of ``shapes`` shapes separately."""
    import torch

    config = torch._dynamo.config  # noqa: SLF001
    config.recompile_limit = max(config.recompile_limit, shapes)  # past it runs uncompiled
    made: Encode = torch.compile(encode, backend="hpu_backend", dynamic=False)
    return made


def recorded(encode: Encode, *, asynchronous: bool, most: int) -> Encode:
    """Return ``encode`` wrapped in HPU graphs, ``most`` at most.

    A replay returns the recording's own tensors: copy them out before the next replay. Inputs other
    than tensors are part of what tells graphs apart.
    """
    import torch
    from habana_frameworks.torch.hpu import wrap_in_hpu_graph

    class Recorded(torch.nn.Module):
        def forward(self, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ANN401
            return encode(*inputs)

    module = Recorded().eval()
    wrapped: Encode = wrap_in_hpu_graph(module, asynchronous=asynchronous, max_graphs=most)
    return wrapped


def fused_sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Return Gaudi's attention of ``[batch, heads, length, head_dim]``, with a mask to be added."""
    from habana_frameworks.torch.hpex.kernels import FusedSDPA

    # By position, as autograd functions take them. recompute=True, the plugin's default, keeps no
    # probabilities; it is given because dynamo breaks the graph where the plugin looks it up.
    dropout, is_causal, softmax_mode, recompute = 0.0, False, "None", True
    attended: torch.Tensor = FusedSDPA.apply(
        q, k, v, mask, dropout, is_causal, scale, softmax_mode, recompute
    )
    return attended


def sdpa(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return PyTorch's attention of the same."""
    from torch.nn import functional

    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def name_for_transformers() -> str:
    """Register ``fused_sdpa`` with transformers, and return its name there."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_FUSED_SDPA, _of_rows)
    # Without a mask function of the same name, transformers would pass no mask.
    AttentionMaskInterface.register(_FUSED_SDPA, sdpa_mask)
    return _FUSED_SDPA


def _of_rows(  # noqa: PLR0913, PLR0917  transformers' interface
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,  # noqa: ANN401  dropout and the like: there is none in inference
) -> tuple[torch.Tensor, None]:
    """Return ``[batch, length, heads, head_dim]`` for ``[batch, heads, length, head_dim]``."""
    del module
    attended = fused_sdpa(query, key, value, attention_mask, scaling)
    return attended.transpose(1, 2).contiguous(), None


def _either(module: Any, *names: str) -> Any:  # noqa: ANN401  an untyped module
    """Return the function that has one of ``names`` in this release, or one that does nothing."""
    found = (getattr(module, name, None) for name in names)
    return next((function for function in found if function), lambda: None)
