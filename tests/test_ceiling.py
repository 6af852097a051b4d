"""The ceiling is what a plain matmul of the model's shapes reaches, found on real arithmetic."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bert_infer import ceiling, compose, linears
from bert_infer.ceiling import Ceiling, Matmul
from bert_infer.devices.cpu import Cpu
from bert_infer.dtypes import Fp32


@pytest.mark.parametrize("make", [linears.Plain, linears.onednn_prepacked])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_way_of_multiplying_multiplies(make, dtype):
    if make is linears.onednn_prepacked and not linears.can_prepack(dtype):
        assert linears.onednn_prepacked not in Cpu().linears(dtype)
        return
    x, weight = torch.randn(7, 16).to(dtype), torch.randn(5, 16).to(dtype)
    torch.testing.assert_close(
        make(weight, 7)(x).float(), x.float() @ weight.float().T, rtol=2e-2, atol=5e-2
    )


def test_where_prepacking_does_not_work_it_is_not_offered(monkeypatch):
    def absent(*_):
        raise NotImplementedError

    monkeypatch.setattr(linears, "onednn_prepacked", absent)
    linears.can_prepack.cache_clear()
    assert Cpu().linears(torch.float32) == (linears.Plain,)
    linears.can_prepack.cache_clear()


class Paced(Cpu):
    """A device on which matmuls of more rows are faster, as a real one, by a rate of its own."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "tried", [])

    def linears(self, dtype):
        del dtype

        def counted(weight, rows):
            self.tried.append((rows, *weight.shape))
            return lambda x: x

        return (counted,)


def test_the_search_tries_the_layers_matrices_and_is_made_once(monkeypatch):
    monkeypatch.setattr(ceiling, "ROWS", (2, 4))
    device = Paced()
    ceiling.search(device, Fp32(), 8, 32)
    assert set(device.tried) == {
        (rows, *shape) for rows in (2, 4) for shape in [(32, 8), (8, 32), (24, 8), (8, 8)]
    }
    tried = len(device.tried)
    found = ceiling.search(device, Fp32(), 8, 32)
    assert len(device.tried) == tried
    assert found.flop == 2 * found.rows * found.inputs * found.outputs


def test_before_and_after_are_the_same_matmul():
    architecture = compose(["model=tiny"]).model.architecture()
    before = ceiling.before(Cpu(), Fp32(), architecture)
    after = ceiling.after(before, Cpu(), Fp32())
    assert before.after_flop_per_s is None
    assert before.change is None
    assert after.matmul == before.matmul
    assert after.flop_per_s >= after.before_flop_per_s > 0
    assert {after.matmul.inputs, after.matmul.outputs} <= {64, 192, 256}


def test_the_ceiling_is_the_better_of_the_two():
    matmul = Matmul(1, 1, 1, linears.Plain)
    slowed = Ceiling(matmul, 100.0, 80.0)
    assert (slowed.flop_per_s, slowed.change) == (100.0, pytest.approx(-0.2))
    assert dataclasses.replace(slowed, after_flop_per_s=150.0).flop_per_s == 150.0


def test_a_run_records_its_ceiling_and_its_part_of_it():
    record = compose(["model=minilm", "iterations=6"]).run(["One text."]).record
    compute = record["compute"]
    assert compute["fraction_of_ceiling"] == pytest.approx(
        compute["useful_flop_per_s"] / compute["ceiling_flop_per_s"]
    )
    assert record["phases_s"]["ceiling"] is not None
    assert record["measurement"]["ceiling_after_flop_per_s"] > 0
