"""Texts to tokens: WordPiece by the tokenizers library, into one ragged array."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bert_infer.errors import InputError, WeightsError
from bert_infer.files import read_json_object
from bert_infer.records import Tokens

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator, Mapping

    import tokenizers

    from bert_infer.records import ModelFiles, Text

BUNDLED_VOCABULARY = Path(__file__).parent / "data" / "vocab.txt"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")
_CHUNK = 1024  # texts tokenised at once: enough for the library's threads, little memory
_CHUNK_CHARACTERS = 1_000_000  # and characters, of which each takes 130 bytes meanwhile


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer that truncates at ``max_length`` tokens, special tokens included."""

    wordpiece: tokenizers.Tokenizer
    max_length: int
    provenance: Mapping[str, Any]

    @property
    def vocab_size(self) -> int:
        """Entries in the vocabulary."""
        return self.wordpiece.get_vocab_size()

    def encode(self, texts: Iterable[Text]) -> Tokens:
        """Tokenise ``texts``, leaving out those without a token besides the special ones.

        Raises:
            InputError: there is no text at all.
        """
        special = self.wordpiece.num_special_tokens_to_add(is_pair=False)
        ids, lengths, positions = array("i"), array("q"), array("q")
        truncated = skipped = 0
        for chunk in _chunks(texts):
            for text, encoding in zip(
                chunk, self.wordpiece.encode_batch([t.string for t in chunk]), strict=True
            ):
                if len(encoding.ids) <= special:
                    skipped += 1
                    continue
                ids.extend(encoding.ids)
                lengths.append(len(encoding.ids))
                positions.append(text.position)
                truncated += bool(encoding.overflowing)
        if not positions:
            raise InputError(
                f"There is no text to process (empty ones: {skipped}).",
                "Give at least one text that is not empty.",
            )
        return Tokens.of(
            np.frombuffer(ids, np.int32),
            np.frombuffer(lengths, np.int64),
            np.frombuffer(positions, np.int64),
            truncated,
            skipped,
        )


def _chunks(texts: Iterable[Text]) -> Iterator[list[Text]]:
    """Yield ``texts`` in lists that are tokenised at once."""
    chunk: list[Text] = []
    characters = 0
    for text in texts:
        chunk.append(text)
        characters += len(text.string)
        if len(chunk) == _CHUNK or characters >= _CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    yield chunk


def version(files: ModelFiles | None) -> Hashable:
    """Return a value that changes whenever the tokenizer among ``files`` does."""
    found = [files.find(name) for name in _TOKENIZER_FILES] if files else []
    return tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in found if path)


def load(files: ModelFiles | None, vocab_size: int, max_length: int) -> Tokenizer:
    """Load the tokenizer among ``files``, or the bundled uncased vocabulary.

    Raises:
        WeightsError: there is none, and the model's vocabulary is not the bundled one's size; or
            it cannot be read, or has more entries than the model.
    """
    path = files.find("tokenizer.json", "vocab.txt") if files else None
    if files and path and path.name == "tokenizer.json":
        wordpiece = _from_file(path)
        provenance: Mapping[str, Any] = files.provenance
    elif files and path:
        wordpiece = _wordpiece(path, _tokenizer_config(files))
        provenance = files.provenance
    elif vocab_size == len(_lines(BUNDLED_VOCABULARY)):
        wordpiece = _wordpiece(BUNDLED_VOCABULARY, {})
        provenance = {"source": "bundled uncased vocabulary"}
    else:
        raise WeightsError(
            f"The model has no tokenizer.json or vocab.txt, and its {vocab_size} vocabulary "
            "entries are not the bundled vocabulary's.",
            "Put the model's tokenizer files beside its weights.",
        )
    if wordpiece.get_vocab_size() > vocab_size:
        raise WeightsError(
            f"The tokenizer has {wordpiece.get_vocab_size()} entries, the model only {vocab_size}.",
            "Put the model's own tokenizer files beside its weights.",
        )
    wordpiece.no_padding()
    wordpiece.enable_truncation(max_length)
    return Tokenizer(wordpiece, max_length, provenance)


def _from_file(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001  the library raises no narrower class
        raise WeightsError(f"{path} is no tokenizer: {error}.", "Correct or replace it.") from None


def _wordpiece(path: Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Build BERT's tokenizer from a vocabulary, one entry a line, and its tokenizer_config.json."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = {entry: index for index, entry in enumerate(_lines(path))}
    if missing := {"[UNK]", "[CLS]", "[SEP]"} - vocabulary.keys():
        raise WeightsError(f"{path} lacks {', '.join(sorted(missing))}.", "Correct or replace it.")
    wordpiece = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    wordpiece.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    wordpiece.normalizer = normalizers.BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
    )
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece.post_processor = processors.BertProcessing(
        ("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"])
    )
    wordpiece.decoder = decoders.WordPiece()
    return wordpiece


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read: {error}.", "Correct or replace it.") from None


def _tokenizer_config(files: ModelFiles) -> dict[str, Any]:
    """Return the content of tokenizer_config.json, for a tokenizer that is only a vocabulary.

    Raises:
        WeightsError: it names another kind of tokenizer than BERT's.
    """
    path = files.find("tokenizer_config.json")
    config = read_json_object(path) if path else {}
    kind = config.get("tokenizer_class")
    if kind not in {None, "BertTokenizer", "BertTokenizerFast"}:
        raise WeightsError(
            f"{path} says tokenizer_class={kind}, which vocab.txt alone does not describe.",
            "Save it as tokenizer.json: AutoTokenizer.from_pretrained(MODEL).save_pretrained(DIR).",
        )
    return config
