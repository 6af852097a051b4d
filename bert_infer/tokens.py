"""Texts to tokens: by the tokenizers library, as transformers sets it up, into one ragged array."""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_infer.errors import InputError, WeightsError
from bert_infer.files import read_json_object
from bert_infer.records import Tokens

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    import tokenizers
    from transformers import PreTrainedTokenizerFast

    from bert_infer.records import ModelFiles

BUNDLED_VOCABULARY = Path(__file__).parent / "data" / "vocab.txt"
FILES = (
    *("tokenizer.json", "vocab.txt", "tokenizer_config.json"),
    *("added_tokens.json", "special_tokens_map.json"),
)
"""What transformers reads a BERT tokenizer from, as far as a model has it."""
_BERT = "BertTokenizer"
_ANY = {"PreTrainedTokenizer", "PythonBackend"}  # names that say no more than tokenizer.json
_LEAST = 3  # two tokens are special ones
_CHUNK = 1024  # texts tokenised at once: enough for the library's threads, little memory
_CHUNK_CHARACTERS = 1_000_000  # and characters, of which each takes 130 bytes meanwhile


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that truncates at ``max_length`` tokens, special tokens included.

    Attributes:
        max_length: to begin with, what the tokenizer says of itself.
        vocab_size: ids are below it.
        truncation_side: the side that tokens are taken from, "left" or "right".
        provenance: where it came from.
    """

    backend: tokenizers.Tokenizer
    max_length: int
    vocab_size: int
    truncation_side: str
    provenance: Mapping[str, Any]

    def at_most(self, max_length: int) -> Tokenizer:
        """Return the same tokenizer with another limit."""
        return replace(self, max_length=max_length)

    def encode(self, texts: Iterable[str]) -> Tokens:
        """Tokenise ``texts``, leaving out those without a token besides the special ones.

        Raises:
            InputError: there is no text at all, or one has a token that the model does not.
        """
        self.backend.enable_truncation(self.max_length, direction=self.truncation_side)
        special = self.backend.num_special_tokens_to_add(is_pair=False)
        ids, lengths, positions = array("i"), array("q"), array("q")
        truncated = skipped = 0
        encodings = chain.from_iterable(map(self.backend.encode_batch, _chunks(texts)))
        for position, encoding in enumerate(encodings):
            if len(encoding.ids) <= special:
                skipped += 1
                continue
            ids.extend(encoding.ids)
            lengths.append(len(encoding.ids))
            positions.append(position)
            truncated += bool(encoding.overflowing)
        if not positions:
            raise InputError(
                f"There is no text to process (empty ones: {skipped}).",
                "Give at least one text that is not empty.",
            )
        if (largest := int(np.frombuffer(ids, np.int32).max())) >= self.vocab_size:
            raise InputError(
                f"A text has {self.backend.id_to_token(largest)}, token {largest}, and the model "
                f"only {self.vocab_size} tokens.",
                "Leave it out, or put the model's own tokenizer files beside its weights.",
            )
        return Tokens.of(
            np.frombuffer(ids, np.int32),
            np.frombuffer(lengths, np.int64),
            np.frombuffer(positions, np.int64),
            truncated,
            skipped,
        )


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield ``texts`` in lists that are tokenised at once."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == _CHUNK or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    yield chunk


def version(files: ModelFiles | None) -> Hashable:
    """Return a value that changes whenever the tokenizer among ``files`` does."""
    found = [files.find(name) for name in (*FILES, "config.json")] if files else []
    return tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in found if path)


def load(files: ModelFiles | None, vocab_size: int) -> Tokenizer:
    """Load the tokenizer among ``files``, or the bundled uncased vocabulary.

    Raises:
        WeightsError: there is none, and the model's vocabulary is not the bundled one's size; or
            it cannot be read, or has more entries than the model.
    """
    if files and files.find("tokenizer.json", "vocab.txt"):
        own = _as_transformers(files)
        never_met = {own.pad_token, own.mask_token}
        backend, max_length, side = own.backend_tokenizer, own.model_max_length, own.truncation_side
        provenance: Mapping[str, Any] = files.provenance
    elif vocab_size == len(vocabulary := _lines(BUNDLED_VOCABULARY)):
        backend, max_length, side, never_met = _wordpiece(vocabulary), sys.maxsize, "right", set()
        provenance = {"source": "bundled uncased vocabulary"}
    else:
        raise WeightsError(
            f"The model has no tokenizer.json or vocab.txt, and its {vocab_size} vocabulary "
            "entries are not the bundled vocabulary's.",
            "Put the model's tokenizer files beside its weights.",
        )
    entries = backend.get_vocab()
    if unknown := {e for e, index in entries.items() if index >= vocab_size} - never_met:
        raise WeightsError(
            f"The tokenizer has {len(entries)} entries, the model only {vocab_size}: "
            f"{min(unknown)} is one that it lacks.",
            "Put the model's own tokenizer files beside its weights.",
        )
    backend.no_padding()
    ids = 1 + max(entries.values(), default=0)  # a vocabulary may have a line twice
    return Tokenizer(backend, max_length, min(vocab_size, ids), side, provenance)


def _as_transformers(files: ModelFiles) -> PreTrainedTokenizerFast:
    """Load the tokenizer among ``files`` as transformers' AutoTokenizer does.

    AutoTokenizer itself would import torch, before a device could set what torch reads.
    """
    kind = _kind(files)
    try:
        own = kind.from_pretrained(files.directory, local_files_only=True)
    except Exception as error:  # noqa: BLE001  the library raises no narrower class
        raise WeightsError(
            f"{files.directory} has a tokenizer that cannot be loaded: {error}.",
            "Correct or replace its tokenizer files.",
        ) from None
    if type(own.model_max_length) is not int or own.model_max_length < _LEAST:
        raise WeightsError(
            f"{files.directory} says model_max_length={own.model_max_length}: it takes a whole "
            f"number from {_LEAST}.",
            "Correct its tokenizer_config.json.",
        )
    if not files.find("tokenizer.json"):
        # transformers gives these ids of their own, which the model has never met.
        needed = {own.unk_token, own.cls_token, own.sep_token} - {None}
        if missing := needed - own.backend_tokenizer.get_vocab(with_added_tokens=False).keys():
            raise WeightsError(
                f"{files.find('vocab.txt')} lacks {', '.join(sorted(missing))}.",
                "Correct or replace it.",
            )
    return own


def _kind(files: ModelFiles) -> type[PreTrainedTokenizerFast]:
    """Return the class that reads the tokenizer among ``files``.

    Raises:
        WeightsError: it is one that is written in Python.
    """
    import transformers

    configs = map(files.find, ("tokenizer_config.json", "config.json"))
    names = (read_json_object(path).get("tokenizer_class") for path in configs if path)
    name = str(next(filter(None, names), _BERT)).removesuffix("Fast")
    path = files.find("tokenizer.json")
    model = read_json_object(path).get("model") if path else None
    # BertTokenizer would take the entries of any other kind for WordPiece's; old files name none.
    is_other = isinstance(model, dict) and model.get("type", "WordPiece") != "WordPiece"
    of_any: type[PreTrainedTokenizerFast] = transformers.PreTrainedTokenizerFast
    if name in _ANY or (name == _BERT and is_other):
        return of_any
    kind: Any = getattr(transformers, name, of_any)
    if isinstance(kind, type) and issubclass(kind, of_any):
        return kind
    raise WeightsError(
        f"{files.directory} says tokenizer_class={name}, which is not among those that the "
        "tokenizers library runs.",
        "Take a model whose tokenizer is saved as tokenizer.json.",
    )


def _wordpiece(vocabulary: list[str]) -> tokenizers.Tokenizer:
    """Build uncased BERT's tokenizer, without the second that transformers takes to import."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    numbered = {entry: index for index, entry in enumerate(vocabulary)}
    wordpiece = Tokenizer(models.WordPiece(numbered, unk_token="[UNK]"))  # noqa: S106
    wordpiece.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    wordpiece.normalizer = normalizers.BertNormalizer(lowercase=True)
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.post_processor = processors.BertProcessing(
        ("[SEP]", numbered["[SEP]"]), ("[CLS]", numbered["[CLS]"])
    )
    wordpiece.decoder = decoders.WordPiece()
    return wordpiece


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").rstrip("\n").split("\n")
