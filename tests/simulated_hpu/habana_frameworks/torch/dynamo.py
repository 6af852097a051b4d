"""torch.compile's backend in eager mode: counts compilations, and runs operator by operator.

Dynamo does not trace the simulated card's tensors; that it traces the same forwards is shown on the
CPU's.
"""

import functools

import torch
from card import CARD, shapes_of

OPTIONS = {
    "use_graph_freezing",
    "force_static_compile",
    "use_eager_fallback",
    "inference",
    "keep_input_mutations",
}
_theirs = torch.compile


@functools.wraps(_theirs)
def compile(  # noqa: A001
    model=None,
    *,
    fullgraph=False,
    dynamic=None,
    backend="inductor",
    mode=None,
    options=None,
    disable=False,
):
    if backend != "hpu_backend":
        assert backend != "inductor", "inductor does not compile for the card"
        return _theirs(model, fullgraph=fullgraph, dynamic=dynamic, backend=backend, mode=mode)
    assert dynamic is False, "each shape is compiled apart"
    assert mode is None, "modes are inductor's"
    assert {*(options or {})} <= OPTIONS, options

    @functools.wraps(model)
    def compiled(*args, **kwargs):
        CARD.compile(("compiled", id(model), shapes_of((args, kwargs))))
        return model(*args, **kwargs)

    return compiled


torch.compile = compile
