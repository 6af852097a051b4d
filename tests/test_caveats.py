"""Each warning appears when it should, with its remedy, and not when it should not."""

from __future__ import annotations

import pytest

from bert_infer import compose

RAGGED = ["word " * n for n in (1, 2, 3, 400)]


def codes(overrides, texts):
    record = compose(["model=minilm", *overrides]).run(texts).record
    assert all(w["message"] and w["remedy"] for w in record["warnings"])
    return {warning["code"] for warning in record["warnings"]}


def test_nothing_to_warn_of():
    assert codes(["iterations=100"], ["one text"]) == set()


@pytest.mark.parametrize(
    ("code", "overrides", "texts"),
    [
        ("random_weights", ["model=tiny"], ["a"]),
        ("one_iteration", [], ["a"]),
        ("few_samples", ["iterations=2"], ["a"]),
        ("no_warmup", ["warmup=0"], ["a"]),
        ("padding_waste", ["batch=4"], RAGGED),
        ("padding_waste", ["batching=token_budget"], RAGGED),
        ("truncated_texts", ["max_length=16"], RAGGED),
        ("empty_texts", [], ["a", " "]),
        ("batch_not_filled", ["batch=8"], RAGGED),
        ("batch_ignored", ["batch=8", "batching=token_budget"], RAGGED),
        ("slow_fp16", ["dtype=fp16", "device=cpu"], ["a"]),
    ],
)
def test_what_deserves_a_warning_gets_one(code, overrides, texts):
    assert code in codes(overrides, texts)


def test_a_single_prompt_fills_whatever_batch_is_asked():
    found = codes(["batch=3", "batching=token_budget"], ["a"])
    assert not found & {"batch_not_filled", "batch_ignored", "padding_waste"}
