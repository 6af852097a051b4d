"""A BERT encoder's sizes and parameters, from its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import TYPE_CHECKING, Any

from bert_infer.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Architecture:
    """A BERT encoder's sizes, from its config.json.

    Raises:
        WeightsError: a value is missing, or is not supported.
    """

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        for key, (is_right, allowed) in _CHECKS.items():
            value = self.config.get(key, _DEFAULTS.get(key))
            if not is_right(value):
                raise WeightsError(
                    f"The model's config.json says {key}={value}: it takes {allowed} here.",
                    "Correct it, or use another model.",
                )
        if self.hidden % self.heads:
            raise WeightsError(
                f"hidden_size={self.hidden} does not divide into num_attention_heads={self.heads}.",
                "Correct config.json.",
            )
        if self.pad_token_id >= self.vocab_size:
            raise WeightsError(
                f"pad_token_id={self.pad_token_id} is outside the vocabulary of {self.vocab_size}.",
                "Correct config.json.",
            )

    @property
    def encoder_config(self) -> dict[str, Any]:
        """What an engine needs of the config; the rest of it, such as task heads, is ignored."""
        return {key: self.config[key] for key in _CHECKS if key in self.config}

    @property
    def heads(self) -> int:
        """Attention heads in a layer."""
        return int(self.config["num_attention_heads"])

    @property
    def activation(self) -> str:
        """The feed-forward network's activation, by its name in config.json."""
        return str(self.config.get("hidden_act", _DEFAULTS["hidden_act"]))

    @property
    def layer_norm_eps(self) -> float:
        """What LayerNorm adds to the variance."""
        return float(self.config.get("layer_norm_eps", _DEFAULTS["layer_norm_eps"]))

    @property
    def initializer_range(self) -> float:
        """Standard deviation of random weights."""
        return float(self.config.get("initializer_range", _DEFAULTS["initializer_range"]))

    @property
    def layers(self) -> int:
        """Encoder layers."""
        return int(self.config["num_hidden_layers"])

    @property
    def hidden(self) -> int:
        """Width of a token's state."""
        return int(self.config["hidden_size"])

    @property
    def intermediate(self) -> int:
        """Width inside the feed-forward network."""
        return int(self.config["intermediate_size"])

    @property
    def vocab_size(self) -> int:
        """Entries of the word embedding."""
        return int(self.config["vocab_size"])

    @property
    def max_length(self) -> int:
        """Longest sequence, in tokens."""
        return int(self.config["max_position_embeddings"])

    @property
    def pad_token_id(self) -> int:
        """The id that fills padding."""
        return int(self.config.get("pad_token_id") or 0)

    @cached_property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's name in transformers' BertModel, and its shape."""
        hidden, intermediate = self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, hidden),
            "embeddings.position_embeddings.weight": (self.max_length, hidden),
            "embeddings.token_type_embeddings.weight": (
                int(self.config["type_vocab_size"]),
                hidden,
            ),
            **_layer_norm("embeddings", hidden),
        }
        for layer in range(self.layers):
            prefix = f"encoder.layer.{layer}"
            for name in ("query", "key", "value"):
                shapes |= _linear(f"{prefix}.attention.self.{name}", hidden, hidden)
            shapes |= _linear(f"{prefix}.attention.output.dense", hidden, hidden)
            shapes |= _layer_norm(f"{prefix}.attention.output", hidden)
            shapes |= _linear(f"{prefix}.intermediate.dense", hidden, intermediate)
            shapes |= _linear(f"{prefix}.output.dense", intermediate, hidden)
            shapes |= _layer_norm(f"{prefix}.output", hidden)
        return shapes | _linear("pooler.dense", hidden, hidden)

    @property
    def parts(self) -> list[list[str]]:
        """The parameters' names in groups read at once: embeddings, each layer, the pooler."""
        return [list(names) for _, names in groupby(self.parameters, _part)]

    def useful_flop(self, lengths: NDArray[np.int64]) -> int:
        """Return the matrix-multiply work on real tokens, in FLOP.

        For each sequence of n tokens and each layer: ``2n(4H^2 + 2HI)`` in the projections and the
        feed-forward network, ``4n^2 H`` in attention. A multiplication and an addition are two.

        Args:
            lengths: ``int64 [sequences]``, real tokens of each.
        """
        hidden, intermediate = self.hidden, self.intermediate
        tokens, squares = int(lengths.sum()), int((lengths**2).sum())
        per_layer = 2 * tokens * (4 * hidden**2 + 2 * hidden * intermediate) + 4 * squares * hidden
        return self.layers * per_layer


def _part(name: str) -> str:
    """Return the group of a parameter: "encoder.layer.7" or the first word of its name."""
    words = name.split(".")
    return ".".join(words[: 3 if words[0] == "encoder" else 1])


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0  # a bool is an int to isinstance


def _is_number(value: object) -> bool:
    return type(value) in {int, float} and 0 <= value < float("inf")  # type: ignore[operator]


_A_SIZE = (_is_size, "a whole number from 1")
_OFF = (lambda value: not value, "false: only encoders run")
_ACTIVATIONS = (
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python"),
    *("gelu_pytorch_tanh", "quick_gelu", "relu", "leaky_relu", "silu", "swish", "mish"),
    *("tanh", "sigmoid", "linear"),
)
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model_type": (lambda value: value == "bert", "bert"),
    "hidden_size": _A_SIZE,
    "num_hidden_layers": _A_SIZE,
    "num_attention_heads": _A_SIZE,
    "intermediate_size": _A_SIZE,
    "max_position_embeddings": _A_SIZE,
    "vocab_size": _A_SIZE,
    "type_vocab_size": _A_SIZE,
    "hidden_act": (lambda value: value in _ACTIVATIONS, ", ".join(_ACTIVATIONS)),
    "layer_norm_eps": (_is_number, "a number from 0"),
    "initializer_range": (_is_number, "a number from 0"),
    "pad_token_id": (
        lambda value: value is None or (type(value) is int and value >= 0),
        "null or a whole number from 0",
    ),
    "is_decoder": _OFF,
    "add_cross_attention": _OFF,
    "position_embedding_type": (lambda value: value == "absolute", "absolute"),
}
"""For each key of an encoder's config: a check of its value, and the allowed values in words."""

_DEFAULTS: dict[str, Any] = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "position_embedding_type": "absolute",
}
"""The values of absent keys, as in transformers."""


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _layer_norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.LayerNorm.weight": (size,), f"{name}.LayerNorm.bias": (size,)}
