"""A command line as it is understood and refused, before any process or run."""

from __future__ import annotations

import pytest
from hydra._internal.utils import get_args_parser

from bert_infer.cli.request import Request
from bert_infer.errors import RefusedError


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=tiny", "--info"],
        ["model=tiny", "--info", "all"],
        ["--info", "all", "model=tiny"],
    ],
)
def test_a_flag_with_an_optional_value_stands_before_or_after_overrides(arguments):
    """Seen to fail: --info took the override for its value, and Hydra refused that by its usage."""
    request = Request.of(arguments)
    request.check_view()
    seen = get_args_parser().parse_args(request.for_hydra())
    assert (seen.overrides, seen.info) == (["model=tiny"], "all")


def test_an_override_in_the_place_of_a_flags_value_is_refused_in_short():
    with pytest.raises(RefusedError, match="invalid choice: 'model=tiny'") as refused:
        Request.of(["--info", "model=tiny"])
    assert len(str(refused.value).splitlines()) == 2
