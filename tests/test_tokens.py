import json
import shutil

import pytest

from bert_infer import tokens
from bert_infer.errors import InputError, WeightsError
from bert_infer.records import ModelFiles, Text

ODD = [
    "Déjà vu!",
    "don't",
    "漢字 and kana かな",
    "x" * 300,
    "tab\there",
    "☕🙂",
    "A\u200bB",
    "[SEP] [MASK]",
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_bundled_vocabulary_tokenises_as_transformers_does(prose):
    from transformers import BertTokenizer

    reference = BertTokenizer(str(tokens.BUNDLED_VOCABULARY), do_lower_case=True)
    texts = [*prose, *ODD]
    encoded = tokens.load(None, 30522, 512).encode(Text(i, t) for i, t in enumerate(texts))
    for index, text in enumerate(texts):
        assert list(encoded[index]) == reference(text, truncation=True, max_length=512)["input_ids"]


def test_a_text_of_no_token_is_left_out(tmp_path):
    """Seen to fail: a division by its tokens; only a tokenizer without special ones has such."""
    tokenizer = tokens.load(None, 30522, 512).wordpiece
    written = json.loads(tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(written | {"post_processor": None}))
    without = tokens.load(ModelFiles(tmp_path, {"source": "directory"}), 30522, 512)
    encoded = without.encode(Text(i, t) for i, t in enumerate(["one", "\u200b", "two"]))
    assert encoded.lengths.tolist() == [1, 1]
    assert encoded.positions.tolist() == [0, 2]
    assert encoded.skipped == 1
    with pytest.raises(InputError, match="no text"):
        without.encode([Text(0, "\u200b")])


@pytest.mark.parametrize("nothing", ["\u200b", "\x00", "\ufeff", "\xad\x07", "\ue000"])
def test_a_text_of_special_tokens_alone_is_left_out(nothing):
    """Seen to fail: [CLS][SEP] was taken for an embedding, and counted."""
    tokenizer = tokens.load(None, 30522, 512)
    encoded = tokenizer.encode(Text(i, t) for i, t in enumerate(["one", nothing, "[CLS]"]))
    assert encoded.positions.tolist() == [0, 2]
    assert encoded.skipped == 1


def test_few_long_texts_are_tokenised_at_once(prose):
    """Seen to fail: 1,024 of them, whatever their length, which took 130 bytes a character."""
    tokenizer = tokens.load(None, 30522, 512)
    at_once = []

    class Spy:
        def __getattr__(self, name):
            return getattr(tokenizer.wordpiece, name)

        def encode_batch(self, texts):
            at_once.append(sum(map(len, texts)))
            return tokenizer.wordpiece.encode_batch(texts)

    long = " ".join(prose) * 60
    spied = tokens.Tokenizer(Spy(), 512, {})
    encoded = spied.encode(Text(i, long) for i in range(7))
    assert len(encoded) == 7
    assert len({encoded[i].tobytes() for i in range(7)}) == 1
    assert sum(at_once) == 7 * len(long)
    assert max(at_once) < 1_000_000 + len(long)


def test_a_models_own_tokenizer_is_used_without_its_truncation_and_padding(minilm, prose):
    files = ModelFiles(minilm, {"source": "directory"})
    own = tokens.load(files, 30522, 512).encode(Text(i, t) for i, t in enumerate(prose))
    bundled = tokens.load(None, 30522, 512).encode(Text(i, t) for i, t in enumerate(prose))
    assert own.sha256 == bundled.sha256  # the same vocabulary; its file says 128 tokens, padded
    assert own.lengths.max() == 512


def test_truncation_is_counted_and_keeps_the_special_tokens(prose):
    encoded = tokens.load(None, 30522, 16).encode(Text(i, t) for i, t in enumerate(prose))
    whole = tokens.load(None, 30522, 512).encode(Text(i, t) for i, t in enumerate(prose))
    assert encoded.truncated == (whole.lengths > 16).sum()
    assert encoded.lengths.max() == 16
    assert all((encoded[i][0], encoded[i][-1]) == (101, 102) for i in range(len(encoded)))


def test_another_vocabulary_needs_its_own_files():
    with pytest.raises(WeightsError, match="28996"):
        tokens.load(None, 28996, 512)


def test_a_cased_vocabulary_keeps_case(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris", "paris"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = tokens.load(ModelFiles(tmp_path, {"source": "directory"}), 7, 512)
    assert list(cased.encode([Text(0, "Paris paris")])[0]) == [2, 5, 6, 3]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "config",
    [
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
    ],
)
def test_a_vocabulary_is_read_as_its_configuration_says(tmp_path, config):
    """Seen to fail: accents went wherever letters were lowered."""
    from transformers import BertTokenizer

    shutil.copy(tokens.BUNDLED_VOCABULARY, tmp_path / "vocab.txt")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    reference = BertTokenizer(str(tmp_path / "vocab.txt"), **config)
    files = ModelFiles(tmp_path, {"source": "directory"})
    texts = ["Schön, déjà vu!", *ODD]
    encoded = tokens.load(files, 30522, 512).encode(Text(i, t) for i, t in enumerate(texts))
    for index, text in enumerate(texts):
        assert list(encoded[index]) == reference(text)["input_ids"]


def test_another_tokenizers_vocabulary_is_not_taken_for_berts(tmp_path):
    shutil.copy(tokens.BUNDLED_VOCABULARY, tmp_path / "vocab.txt")
    path = tmp_path / "tokenizer_config.json"
    path.write_text('{"tokenizer_class": "BertJapaneseTokenizer"}')
    with pytest.raises(WeightsError, match="tokenizer_class=BertJapaneseTokenizer"):
        tokens.load(ModelFiles(tmp_path, {"source": "directory"}), 30522, 512)
