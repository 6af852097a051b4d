import logging

from card import CARD
from habana_frameworks.torch.utils import is_lazy

calls = []
"""What was called, in order, for the tests."""


def mark_step(device_str="", sync=False):
    if not is_lazy():
        logging.getLogger(__name__).info("mark_step has no effect in eager mode")
        return
    CARD.flush()
    if sync:
        CARD.synchronize()


def hpu_set_inference_env(model=None):
    calls.append(("hpu_set_inference_env", model))


def hpu_teardown_inference_env():
    calls.append(("hpu_teardown_inference_env", None))


def hpu_inference_initialize(
    model=None, mark_only_scales_as_const=False, optimizer=None, args=None
):
    if model is not None:
        off = {t.device.type for t in model.state_dict().values()} - {"hpu"}
        assert not off, f"initialize comes after .to('hpu'), and found {off}"
    calls.append(("hpu_inference_initialize", mark_only_scales_as_const))
