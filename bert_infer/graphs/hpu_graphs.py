"""HPU graphs: each bucket's forward is recorded once on a Gaudi card, and replayed after that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from bert_infer.graphs.recorded import Recorded

if TYPE_CHECKING:
    from collections.abc import Collection

    from bert_infer.batching.groups import Shape
    from bert_infer.devices import Device
    from bert_infer.engines import Encode


@dataclass(frozen=True)
class HpuGraphs(Recorded):
    """Forwards recorded by Gaudi's plugin.

    Attributes:
        asynchronous: a replay returns before the card has finished.
    """

    asynchronous: bool = False

    name = "hpu_graphs"
    home: ClassVar[tuple[str, str]] = ("Gaudi cards have HPU graphs", "device=hpu")

    @property
    def first_forwards(self) -> int:
        """One records; another replays, which costs more the first time than later."""
        return 2

    def wrap(self, encode: Encode, shapes: Collection[Shape], device: Device) -> Encode:
        """Record each shape when it first comes."""
        return device.capture(encode, asynchronous=self.asynchronous, most=self.most(shapes))
