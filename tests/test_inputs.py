import csv
import shutil
from datetime import UTC, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from bert_infer import compose, tokens
from bert_infer.errors import InputError, OptionError, RefusedError
from bert_infer.inputs.lines import Lines
from bert_infer.inputs.prompt import Prompt
from bert_infer.inputs.synthetic import Lengths, Synthetic
from bert_infer.inputs.table import Table


@pytest.fixture
def tokenizer():
    return tokens.load(None, 30522).at_most(512)


def strings(source):
    return list(source.texts())


def test_lines_keep_their_place_when_empty_ones_are_skipped(tmp_path, tokenizer):
    path = tmp_path / "texts.txt"
    path.write_bytes("\ufefffirst\r\n\n  \nfourth, naïve ☕\n".encode())
    source = Lines(str(path))
    assert strings(source) == ["first", "", "  ", "fourth, naïve ☕"]
    read = source.tokens(tokenizer)
    assert list(read.positions) == [0, 3]
    assert read.skipped == 2


def test_bytes_that_are_no_utf8_are_named_by_their_line(tmp_path, tokenizer):
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"plain\ncaf\xe9\n")
    with pytest.raises(InputError, match="line 2"):
        Lines(str(path)).tokens(tokenizer)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_tables_give_their_column_as_text(tmp_path, ending):
    path = tmp_path / f"table.{ending}"
    rows = ["007", 'with "quotes", commas', "two\nlines", "", "☕"]
    table = pa.table({"id": list(range(5)), "body": rows})
    if ending == "parquet":
        pa.parquet.write_table(table, path)
    elif ending == "csv":
        pa.csv.write_csv(table, path)
    else:
        path.write_text("\n".join(f'{{"id": 1, "body": {_json(row)}}}' for row in rows))
    source = Table(str(path), "body")
    source.check()
    assert strings(source) == rows
    with pytest.raises(OptionError, match=r"input.column=text .*id, body"):
        Table(str(path), "text").check()


def test_json_lines_are_read_as_they_are_written(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text('{"id": 1}\n\n{"body": "2020-01-01"}\n{"body": 7}\n{"body": null}\n')
    source = Table(str(path), "body")
    source.check()
    assert strings(source) == ["", "2020-01-01", "7", ""]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"body": "\\ud800"}', "line 2: body holds"),
        ("{half", "line 2: no JSON object"),
        ("[1]", "line 2: no JSON"),
        ('{"body": [1]}', "no text"),
    ],
)
def test_json_lines_that_hold_no_text_are_named(tmp_path, line, says):
    path = tmp_path / "table.jsonl"
    path.write_text('{"body": "good"}\n' + line)
    with pytest.raises(InputError, match=says):
        strings(Table(str(path), "body"))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_file_that_is_no_table_is_refused(tmp_path, ending):
    path = tmp_path / f"broken.{ending}"
    path.write_bytes(b"\xff\xfe\x00{]\n,,\n\x00")
    with pytest.raises(RefusedError):
        Table(str(path), "text").check()


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_the_line_that_is_no_utf8_is_named(tmp_path, ending):
    path = tmp_path / f"latin1.{ending}"
    rows = {"jsonl": b'{"text": "a"}\n{"text": "caf\xe9"}\n', "csv": b"text\ncaf\xe9\n"}
    path.write_bytes(rows[ending])
    with pytest.raises(InputError, match="line 2: not UTF-8"):
        strings(Table(str(path)))


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_an_empty_table_has_no_text(tmp_path, tokenizer, ending):
    path = tmp_path / f"empty.{ending}"
    path.touch()
    Table(str(path)).check()
    with pytest.raises(InputError, match="no text to process"):
        Table(str(path)).tokens(tokenizer)


def test_empty_lines_of_a_csv_are_no_rows(tmp_path):
    path = tmp_path / "spaced.csv"
    path.write_text("\n\ntext\n\none\n\n")
    assert strings(Table(str(path))) == ["one"]


@pytest.mark.parametrize("row", ['"never closed\ntwo\nthree\n', '"closed" too soon\n'])
def test_quotes_that_swallow_other_rows_are_refused(tmp_path, row):
    path = tmp_path / "quotes.csv"
    path.write_text(f"text\nfine\n{row}")
    with pytest.raises(InputError, match=r"quotes\.csv, line \d.*") as error:
        strings(Table(str(path)))
    assert error.value.remedy == "Correct the quoting."


@pytest.mark.parametrize("content", ["text\nHello, world\n", "id,text\n1,Good morning, BERT!\n"])
def test_a_text_that_is_cut_at_its_comma_is_refused(tmp_path, content):
    """Seen to fail: the text ended at the comma."""
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=r"line 2: . cells under . names.*\n.*Quote"):
        strings(Table(str(path)))


def test_what_pandas_writes_for_nothing_is_no_text(tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text('{"text": "one"}\n{"text": NaN}\n{"text": null}\n')
    assert strings(Table(str(path))) == ["one", "", ""]


@pytest.mark.parametrize(
    ("ending", "sign", "delimiter"),
    [
        ("csv", ";", ";"),
        ("csv", "\t", "\\t"),
        ("csv", "|", "|"),
        ("tsv", "\t", None),
        ("tsv", ",", ","),
    ],
)
def test_cells_may_have_another_sign_between_them(tmp_path, ending, sign, delimiter):
    """Seen to fail: the whole header was offered as the one column."""
    path = tmp_path / f"table.{ending}"
    cell = "Hello, world; and | you" if ending == "csv" else "Hello; world"
    rows = [["id", "text"], ["1", cell], ["2", "b"]]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=sign).writerows(rows)
    assert strings(Table(str(path), delimiter=delimiter)) == [row[1] for row in rows[1:]]
    if delimiter:
        with pytest.raises(OptionError, match=r"column of .*table") as error:
            Table(str(path)).check()
        assert f'input.delimiter="{delimiter}"' in error.value.remedy


def test_in_a_tsv_nothing_is_quoted(tmp_path):
    """Seen to fail: two rows became one text, and `"Hello," he said.` was refused."""
    path = tmp_path / "plain.tsv"
    path.write_text('id\ttext\n1\t"Hello there\n2\tgood bye"\n3\t"Hello," he said.\n')
    assert strings(Table(str(path))) == ['"Hello there', 'good bye"', '"Hello," he said.']


@pytest.mark.parametrize(
    ("path", "delimiter"), [("a.csv", ""), ("a.csv", "::"), ("a.csv", "t"), ("a.jsonl", ";")]
)
def test_delimiters_that_cannot_be_are_refused(path, delimiter):
    with pytest.raises(OptionError, match=r"delimiter=.* is refused"):
        Table(path, delimiter=delimiter)


def test_a_cell_may_be_a_book(tmp_path):
    path = tmp_path / "book.csv"
    path.write_text('text,id\n"' + "word, " * 500_000 + '",1\nshort\n')
    assert [len(text) for text in strings(Table(str(path)))] == [3_000_000, 5]


def cells(tmp_path, values):
    pa.parquet.write_table(pa.table({"text": values}), tmp_path / "cells.parquet")
    return list(Table(str(tmp_path / "cells.parquet")).texts())


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (["a", None], ["a", ""]),
        ([1, 2], ["1", "2"]),
        ([1.5, float("nan")], ["1.5", ""]),
        ([Decimal("1.50"), None], ["1.50", ""]),
        ([None, None], ["", ""]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["a", None]).cast(pa.string_view()), ["a", ""]),
    ],
    ids=["strings", "integers", "floats", "decimals", "nulls", "dictionary", "view"],
)
def test_cells_of_parquet_are_texts_as_those_of_json_lines(tmp_path, values, texts):
    """Seen to fail: NaN was the text "nan"."""
    assert cells(tmp_path, values) == texts


@pytest.mark.parametrize("values", [[True], [datetime(2020, 1, 1, tzinfo=UTC)], [["a"]]])
def test_cells_of_parquet_that_are_no_text_are_refused(tmp_path, values):
    """Seen to fail: "true", and a moment in nanoseconds."""
    with pytest.raises(OptionError, match="a column of text; this one holds"):
        cells(tmp_path, values)


@pytest.mark.parametrize("name", ["macs.txt", "macs.csv", "macs.jsonl"])
def test_line_ends_of_old_macs_are_named(tmp_path, name):
    """Seen to fail: the whole file was one text; "Correct the quoting."."""
    path = tmp_path / name
    path.write_bytes(b"text\rone\rtwo\r")
    source = Lines(str(path)) if name.endswith("txt") else Table(str(path))
    with pytest.raises(InputError, match="as old Macs did"):
        list(source.texts())
    (tmp_path / "log.txt").write_bytes(b"10 %\r20 %\r\ndone\n")
    assert list(Lines(str(tmp_path / "log.txt")).texts()) == ["10 %\r20 %", "done"]


def test_a_column_of_lists_is_no_text(tmp_path):
    pa.parquet.write_table(pa.table({"text": [["a"], ["b"]]}), tmp_path / "lists.parquet")
    with pytest.raises(OptionError, match="list<"):
        Table(str(tmp_path / "lists.parquet")).check()


@pytest.mark.parametrize("source", [Lines, Table])
def test_paths_that_are_no_files_are_refused(tmp_path, source):
    with pytest.raises(OptionError, match="existing file"):
        source(str(tmp_path / "missing.csv")).check()
    with pytest.raises(OptionError, match="directory"):
        source(str(tmp_path)).check()
    with pytest.raises(OptionError, match="pipe or device"):
        source("/dev/null").check()


def test_no_text_at_all_is_refused(tmp_path, tokenizer):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match="no text to process"):
        Lines(str(tmp_path / "empty.txt")).tokens(tokenizer)
    with pytest.raises(InputError, match="empty ones: 2"):
        Prompt(["", " "]).tokens(tokenizer)


def test_only_a_single_prompt_is_repeated(tokenizer):
    one = Prompt("Good morning BERT!")
    filled = one.fill(one.tokens(tokenizer), 12)
    assert len(filled) == 12
    assert filled.texts == 1
    assert all((filled[i] == filled[0]).all() for i in range(12))
    two = Prompt(["a", "b"])
    assert len(two.fill(two.tokens(tokenizer), 12)) == 2


def test_prompts_that_are_no_strings_are_refused():
    with pytest.raises(OptionError, match="list of strings"):
        Prompt(["a", 3])


@pytest.mark.parametrize("lengths", Lengths)
def test_synthetic_lengths_follow_what_was_stated(lengths, tokenizer):
    source = Synthetic(4000, lengths, mu=5.0, sigma=0.5, min=16, max=384, seed=3)
    drawn = source.tokens(tokenizer)
    assert len(drawn) == 4000
    assert drawn.lengths.min() >= 16
    assert drawn.lengths.max() <= 384
    assert drawn.ids.min() >= 1
    expected = {
        Lengths.fixed: 384,
        Lengths.uniform: (16 + 384) / 2,
        Lengths.lognormal: np.exp(5.0),  # the median of a lognormal
    }
    assert np.median(drawn.lengths) == pytest.approx(expected[lengths], rel=0.05)
    again = source.tokens(tokenizer)
    assert (again.ids == drawn.ids).all()
    other = Synthetic(4000, lengths, mu=5.0, sigma=0.5, min=16, max=384, seed=4)
    assert other.tokens(tokenizer).sha256 != drawn.sha256


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("texts", 0),
        ("min", 0),
        ("min", 400),
        ("sigma", -1.0),
        ("sigma", float("nan")),
        ("seed", -1),
    ],
)
def test_impossible_distributions_are_refused(key, value):
    good = {"texts": 1, "lengths": Lengths.fixed, "mu": 5.0, "sigma": 0.5, "min": 16, "max": 384}
    good["seed"] = 0
    with pytest.raises(OptionError, match=key):
        Synthetic(**(good | {key: value}))


def _json(text):
    import json

    return json.dumps(text)


def test_one_string_is_one_text_and_what_is_no_text_is_refused():
    runner = compose(["model=tiny"])
    assert runner.run("one text").record["workload"]["texts"] == 1
    assert runner.run(text for text in ("a", "b")).record["workload"]["texts"] == 2
    with pytest.raises(OptionError, match="text=5"):
        runner.run(5)


def test_a_tokenizer_that_has_changed_is_read_again(tmp_path, minilm):
    for name in ("config.json", "vocab.txt"):
        shutil.copy(minilm / name, tmp_path)
    runner = compose([f"model.name={tmp_path}", "model.weights=random"])
    before = runner.prepare().tokens.sha256
    words = (tmp_path / "vocab.txt").read_text("utf-8")
    (tmp_path / "vocab.txt").write_text(words.replace("\nhello\n", "\nhallo\n"), "utf-8")
    assert runner.prepare().tokens.sha256 != before


def test_a_file_that_has_changed_is_read_again(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one\n")
    runner = compose(["model=tiny", "input=lines", f"input.path={path}"])
    assert runner.prepare().tokens.texts == 1
    path.write_text("one\ntwo\n")
    assert runner.prepare().tokens.texts == 2
