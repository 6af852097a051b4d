import json
import shutil
from dataclasses import replace

import pytest

from bert_infer import compose, tokens
from bert_infer.errors import InputError, RefusedError, WeightsError
from bert_infer.inputs.prompt import Prompt
from bert_infer.records import ModelFiles

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
    encoded = tokens.load(None, 30522).at_most(512).encode(texts)
    for index, text in enumerate(texts):
        assert list(encoded[index]) == reference(text, truncation=True, max_length=512)["input_ids"]


def test_a_text_of_no_token_is_left_out(tmp_path):
    """Seen to fail: a division by its tokens; only a tokenizer without special ones has such."""
    tokenizer = tokens.load(None, 30522).backend
    written = json.loads(tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(written | {"post_processor": None}))
    named = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    without = tokens.load(ModelFiles(tmp_path, {"source": "directory"}), 30522).at_most(512)
    encoded = without.encode(["one", "\u200b", "two"])
    assert encoded.lengths.tolist() == [1, 1]
    assert encoded.positions.tolist() == [0, 2]
    assert encoded.skipped == 1
    with pytest.raises(InputError, match="no text"):
        without.encode(["\u200b"])


@pytest.mark.parametrize("nothing", ["\u200b", "\x00", "\ufeff", "\xad\x07", "\ue000"])
def test_a_text_of_special_tokens_alone_is_left_out(nothing):
    """Seen to fail: [CLS][SEP] was taken for an embedding, and counted."""
    tokenizer = tokens.load(None, 30522).at_most(512)
    encoded = tokenizer.encode(["one", nothing, "[CLS]"])
    assert encoded.positions.tolist() == [0, 2]
    assert encoded.skipped == 1


def test_few_long_texts_are_tokenised_at_once(prose):
    """Seen to fail: 1,024 of them, whatever their length, which took 130 bytes a character."""
    tokenizer = tokens.load(None, 30522).at_most(512)
    at_once = []

    class Spy:
        def __getattr__(self, name):
            return getattr(tokenizer.backend, name)

        def encode_batch(self, texts):
            at_once.append(sum(map(len, texts)))
            return tokenizer.backend.encode_batch(texts)

    long = " ".join(prose) * 60
    spied = replace(tokenizer, backend=Spy())
    encoded = spied.encode([long] * 7)
    assert len(encoded) == 7
    assert len({encoded[i].tobytes() for i in range(7)}) == 1
    assert sum(at_once) == 7 * len(long)
    assert max(at_once) < 1_000_000 + len(long)


def test_a_models_own_tokenizer_is_used_without_its_truncation_and_padding(minilm, prose):
    files = ModelFiles(minilm, {"source": "directory"})
    own = tokens.load(files, 30522).at_most(512).encode(prose)
    bundled = tokens.load(None, 30522).at_most(512).encode(prose)
    assert own.sha256 == bundled.sha256  # the same vocabulary; its file says 128 tokens, padded
    assert own.lengths.max() == 512


def test_truncation_is_counted_and_keeps_the_special_tokens(prose):
    encoded = tokens.load(None, 30522).at_most(16).encode(prose)
    whole = tokens.load(None, 30522).at_most(512).encode(prose)
    assert encoded.truncated == (whole.lengths > 16).sum()
    assert encoded.lengths.max() == 16
    assert all((encoded[i][0], encoded[i][-1]) == (101, 102) for i in range(len(encoded)))


def test_another_vocabulary_needs_its_own_files():
    with pytest.raises(WeightsError, match="28996"):
        tokens.load(None, 28996).at_most(512)


def test_a_cased_vocabulary_keeps_case(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Paris", "paris"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = tokens.load(ModelFiles(tmp_path, {"source": "directory"}), 7).at_most(512)
    assert list(cased.encode(["Paris paris"])[0]) == [2, 5, 6, 3]


def described(directory, **files):
    """A tiny model's directory, without its weights; a value of None leaves a file out."""
    config = json.loads((tokens.BUNDLED_VOCABULARY.parent / "tiny.json").read_text())
    files = {"config": {}, "tokenizer_config": {}, **files}
    files["config"] = config | files["config"]
    for name, content in files.items():
        if content is not None:
            (directory / f"{name}.json").write_text(json.dumps(content))
    if "tokenizer" not in files:
        shutil.copy(tokens.BUNDLED_VOCABULARY, directory / "vocab.txt")
    return ModelFiles(directory, {"source": "directory"})


def saved(**changes):
    """The content of tokenizer.json for the bundled vocabulary."""
    return json.loads(tokens.load(None, 30522).backend.to_str()) | changes


CASED = {"type": "BertNormalizer", "lowercase": False}
CASED |= {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None}
ENTITY = {"[ENT]": 30522}


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"do_lower_case": True, "strip_accents": False}},
        {"tokenizer_config": {"do_lower_case": False, "strip_accents": True}},
        {"tokenizer_config": {"tokenize_chinese_chars": False}},
        {"tokenizer_config": {"cls_token": "[unused5]"}},
        {"tokenizer_config": {"truncation_side": "left"}},
        {
            "added_tokens": ENTITY,
            "special_tokens_map": {"additional_special_tokens": ["[ENT]", "[unused1]"]},
        },
        {"tokenizer_config": {"added_tokens_decoder": {"30522": {"content": "[ENT]"}}}},
        {"tokenizer": saved(), "tokenizer_config": {"do_lower_case": False}},
        {"tokenizer": saved(normalizer=CASED), "tokenizer_config": None},
        {
            "tokenizer": saved(normalizer=CASED, post_processor=None),
            "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"},
        },
        {"tokenizer": saved(), "config": {"tokenizer_class": "DistilBertTokenizer"}},
        {"tokenizer": saved(), "tokenizer_config": {"tokenizer_class": "OnesOwnTokenizer"}},
    ],
    ids=str,
)
def test_a_models_files_are_read_as_transformers_reads_them(tmp_path, files):
    """Seen to fail: special tokens, cut and case were others than the model had learnt."""
    from transformers import AutoTokenizer

    own = described(tmp_path, **files)
    reference = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["Schön, déjà vu! [ENT] Paris [ENT] [unused1]", " ".join(map(str, range(99))), *ODD]
    tokenizer = tokens.load(own, 30523).at_most(60)
    encoded = tokenizer.encode(texts)
    for index, text in enumerate(texts):
        theirs = reference(text, truncation=True, max_length=60)["input_ids"]
        assert list(encoded[index]) == theirs, text


def test_a_tokenizer_of_another_kind_stays_one(tmp_path):
    """As transformers 4 read it: the 5th takes its entries for WordPiece's."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    entries = {"[UNK]": 0, "a": 1, "b": 2, "ab": 3}
    pairs = Tokenizer(models.BPE(entries, [("a", "b")], unk_token="[UNK]"))
    pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    own = described(tmp_path, tokenizer=json.loads(pairs.to_str()))
    encoded = tokens.load(own, 30522).at_most(512).encode(["aab ab"])
    assert list(encoded[0]) == [1, 3, 3]


def test_texts_are_cut_where_the_tokenizer_says(tmp_path, prose):
    """Seen to fail: at what the model has positions for."""
    own = described(tmp_path, tokenizer_config={"model_max_length": 20})
    chosen = [f"model.name={tmp_path}", "model.weights=random"]

    def longest(*more):
        runner = compose([*chosen, *more])
        return replace(runner, input=Prompt(prose)).prepare().tokens.lengths.max()

    assert tokens.load(own, 30522).max_length == 20
    assert longest() == longest("max_length=0") == 20
    assert longest("max_length=40") == 40
    with pytest.raises(RefusedError, match="at most 512"):
        longest("max_length=600")


@pytest.mark.parametrize("limit", [0, "many", 1.5])
def test_a_limit_that_is_none_is_refused(tmp_path, limit):
    """Seen to fail: taken, or a TypeError where it was compared."""
    own = described(tmp_path, tokenizer_config={"model_max_length": limit})
    with pytest.raises(WeightsError, match=f"model_max_length={limit}"):
        tokens.load(own, 30522)


def test_a_token_that_the_model_lacks_is_met_in_no_text(tmp_path):
    """Seen to fail: without [MASK], which texts do not have, a vocabulary was refused."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "paris"]
    own = described(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = tokens.load(own, 5).at_most(9)
    assert list(tokenizer.encode(["Paris"])[0]) == [2, 4, 3]
    with pytest.raises(InputError, match=r"has \[MASK\], token 5, and the model only 5"):
        tokenizer.encode(["Paris [MASK]"])
    with pytest.raises(WeightsError, match=r"the model only 4: paris"):
        tokens.load(own, 4)


def test_a_vocabulary_with_a_line_twice_has_more_ids_than_entries(tmp_path):
    """Seen to fail: "A text has None, token 7, and the model only 7 tokens", where it had 8."""
    from transformers import AutoTokenizer

    own = described(tmp_path)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "of", "of", "paris"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    theirs = AutoTokenizer.from_pretrained(tmp_path)("Paris of")["input_ids"]
    assert theirs == [2, 7, 6, 3]
    tokenizer = tokens.load(own, 9).at_most(9)  # some models' embeddings are rounded up
    assert list(tokenizer.encode(["Paris of"])[0]) == theirs
    chosen = compose(["input=synthetic", "input.texts=50", "input.max=9", "input.min=9"])
    assert set(chosen.input.tokens(tokenizer).ids.tolist()) == {1, 2, 3, 4, 5, 6, 7}


@pytest.mark.parametrize("file", ["tokenizer_config", "config"])
def test_a_tokenizer_that_is_written_in_python_is_refused(tmp_path, file):
    """Seen to fail: of config.json, where the published Japanese ones have it."""
    own = described(tmp_path, **{file: {"tokenizer_class": "BertJapaneseTokenizer"}})
    with pytest.raises(WeightsError, match="tokenizer_class=BertJapaneseTokenizer"):
        tokens.load(own, 30522)
