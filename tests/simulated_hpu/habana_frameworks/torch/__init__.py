import importlib.metadata
import os

import habana_frameworks.autoload

habana_frameworks.autoload.is_loaded = True

from habana_frameworks.torch.utils import is_lazy

_local = importlib.metadata.version("torch").partition("+")[2]
if is_lazy() and not _local.startswith(("hpu", "git")):
    raise AssertionError("Stock PyTorch version is not supported in Lazy mode.")
if int(os.environ.get("PT_HPU_WEIGHT_SHARING", "1")):
    print("WARNING: The experimental weight sharing feature is enabled")  # noqa: T201  it does

import card
from habana_frameworks.torch import hpu

card.CARD.lazy = is_lazy()
card.plug_in(hpu)

import habana_frameworks.torch.activity_profiler
import habana_frameworks.torch.core

if not is_lazy():
    import habana_frameworks.torch.dynamo
