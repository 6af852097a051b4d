import functools

import torch
from card import CARD, HpuTensor
from torch.utils._pytree import tree_flatten, tree_leaves


class HPUGraph:
    made = []

    def __init__(self):
        self._recording, self.replays = None, 0
        HPUGraph.made.append(self)

    def capture_begin(self, dry_run=False):
        CARD.begin_recording()

    def capture_end(self):
        self._recording = CARD.end_recording()

    def replay(self, asynchronous=False):
        CARD.flush()
        CARD.ask(None, (), of_graph=True)
        self._recording.replay()
        self.replays += 1
        if not asynchronous:
            CARD.flush()

    def reset(self):
        self._recording = None


def _key(args, kwargs):
    """Shapes, views, autocast, and what is no tensor; neither dtype nor grad mode."""
    leaves, structure = tree_flatten((args, kwargs))
    return (
        str(structure),
        tuple(
            (tuple(x.shape), x.stride(), x.storage_offset()) if isinstance(x, torch.Tensor) else x
            for x in leaves
        ),
        torch.is_autocast_enabled("hpu"),
    )


def wrap_in_hpu_graph(
    module, asynchronous=False, disable_tensor_cache=False, dry_run=False, max_graphs=None
):
    if not isinstance(module, torch.nn.Module):
        raise TypeError("a module is wrapped")
    original, cache = module.forward, {}

    @functools.wraps(original)
    def forward(*args, **kwargs):
        kwargs.pop("cache_tensors_list", None)
        warmup_mode = kwargs.pop("warmup_mode", False)
        if kwargs.pop("bypass_hpu_graphs", False):
            return original(*args, **kwargs)
        key = _key(args, kwargs)
        if key not in cache:
            if max_graphs is not None and len(cache) == max_graphs:
                return original(*args, **kwargs)
            graph = HPUGraph()
            try:
                graph.capture_begin(dry_run=dry_run or disable_tensor_cache)
                outputs = original(*args, **kwargs)
                graph.capture_end()
            finally:
                CARD.recording = None
            cache[key] = (args, kwargs), outputs, graph
            return outputs
        inputs, outputs, graph = cache[key]
        if warmup_mode:
            return outputs
        for kept, given in zip(tree_leaves(inputs), tree_leaves((args, kwargs)), strict=True):
            if isinstance(kept, HpuTensor):
                kept.copy_(given, non_blocking=True)
        graph.replay(asynchronous)
        return outputs

    module.forward = forward
    module.clear_cache = cache.clear
    module.clear_inputs = lambda: None
    return module
