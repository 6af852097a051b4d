import json
from pathlib import Path

import torch

_UNSET = object()


class FP8Config:
    def __init__(
        self,
        dump_stats_path="./hqt_output/measure",
        fp8_config="E4M3",
        hp_dtype="bf16",
        blocklist={"names": [], "types": ()},  # noqa: B006
        allowlist={"names": [], "types": _UNSET},  # noqa: B006
        mode="AUTO",
        scale_method="maxabs_hw",
        scale_params={},  # noqa: B006
        observer="maxabs",
        mod_dict={},  # noqa: B006
        measure_exclude="OUTPUT",
        fake_quant=False,
        use_qdq=False,
        scale_format="scalar",
        measure_on_hpu=True,
        **kwargs,
    ):
        assert not kwargs, kwargs  # the real one takes any word, and a misspelt one has no effect
        assert mode in {"AUTO", "MEASURE", "QUANTIZE"}
        assert {*blocklist} == {"names", "types"}
        self.path, self.mode, self.blocked = dump_stats_path, mode, blocklist["names"]


def _linears(model, config):
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not any(b in name for b in config.blocked)
    }


def prepare(model, quant_config, inplace=True, example_inputs=None):
    assert quant_config.mode in {"AUTO", "MEASURE"}
    model.measured, model.dump_path = {}, quant_config.path
    for name, module in _linears(model, quant_config).items():

        def look(module, args, name=name):
            largest = args[0].abs().amax()
            before = model.measured.get(name)
            model.measured[name] = largest if before is None else torch.maximum(before, largest)

        module.register_forward_pre_hook(look)
    return model


def finalize_calibration(model):
    found = {name: float(largest) for name, largest in model.measured.items()}
    Path(f"{model.dump_path}_hooks_maxabs.json").write_text(json.dumps(found))


class _Fp8Linear(torch.nn.Module):
    def __init__(self, linear, largest):
        super().__init__()
        self.bias, self.dtype = linear.bias, linear.weight.dtype
        top = torch.finfo(torch.float8_e4m3fn).max
        weight = linear.weight.detach().cpu().float()
        self.scale_weight = float(weight.abs().max()) / top
        self.scale_input = largest / top
        codes = (weight / self.scale_weight).to(torch.float8_e4m3fn).float() * self.scale_weight
        self.weight = torch.nn.Parameter(codes.to(self.dtype).to("hpu"), requires_grad=False)

    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight, self.bias)


def convert(model, quant_config=None, inplace=True, **kwargs):
    assert quant_config.mode == "QUANTIZE"
    found = json.loads(Path(f"{quant_config.path}_hooks_maxabs.json").read_text())
    for name, module in _linears(model, quant_config).items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _Fp8Linear(module, found[name]))
    return model
