"""Texts from files, and as the inputs of a language model."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch

from conescope.errors import DataError
from conescope.measuring.texts import read_texts, tokenise
from tiny_language import tokenizer

ROWS = [("a cat", "no"), ("a dog, a cat", "yes"), ("dog", "no")]
TEXTS = tuple(text for text, _ in ROWS)


def write(path, rows=ROWS, names=("text", "label")):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, r, strict=True))) + "\n" for r in rows))
    elif path.suffix == ".csv":
        lines = [",".join(names), *(",".join(f'"{cell}"' for cell in row) for row in rows)]
        path.write_text("\n".join(lines))
    elif path.suffix == ".txt":
        path.write_text("\n".join(row[0] for row in rows))
    else:
        columns = {n: [row[place] for row in rows] for place, n in enumerate(names)}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".txt"])
def test_every_kind_of_file_holds_the_same_texts(tmp_path, suffix):
    texts = read_texts(write(tmp_path / f"texts{suffix}"))
    assert (texts.texts, texts.labels, texts.classes) == (TEXTS, None, None)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_classes_are_numbered_in_the_order_of_the_alphabet(tmp_path, suffix):
    texts = read_texts(write(tmp_path / f"texts{suffix}"), labels="label")
    assert texts.labels is not None
    assert texts.labels.tolist() == [0, 1, 0]
    assert texts.classes == ("no", "yes")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_classes_that_are_numbers_stay(tmp_path, suffix):
    path = write(tmp_path / f"texts{suffix}", [("a", 2), ("b", 0)])
    texts = read_texts(path, "text", "label")
    assert texts.labels is not None
    assert texts.labels.tolist() == [2, 0]
    assert texts.classes == ("0", "1", "2")


def test_the_names_of_a_parquet_files_classes_are_read(tmp_path):
    noted = {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"text": ["a", "b"], "label": [1, 1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps(noted)})
    pyarrow.parquet.write_table(table, tmp_path / "texts.parquet")
    assert read_texts(tmp_path / "texts.parquet", labels="label").classes == ("bad", "good")


def test_the_only_other_column_holds_the_texts(tmp_path):
    path = write(tmp_path / "texts.csv", names=("sentence", "label"))
    assert read_texts(path, labels="label").texts == TEXTS
    with pytest.raises(DataError, match="which one holds the texts: sentence, label"):
        read_texts(path)
    rows = [row[:1] for row in ROWS]
    alone = write(tmp_path / "alone.csv", rows, ("sentence",))
    assert read_texts(alone, "sentence").texts == TEXTS
    assert read_texts(write(tmp_path / "a.parquet", rows, ("sentence",))).texts == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("texts.md", "a", "known kind; give .jsonl, .txt"),
        ("texts.txt", "", "hold nothing"),
        ("texts.jsonl", "", "hold nothing"),
        ("texts.csv", "", "hold nothing"),
        ("texts.csv", "text,label\n", "hold nothing"),
        ("texts.txt", "a\n\nb\n \n", r"text 2 of .* is empty \(and 1 more\)"),
        ("texts.jsonl", '{"text": "a"}\n\n{"text": "b"}\n', "line 2 of .* is empty"),
        ("texts.jsonl", '{"text": "a"}\n[1]\n', "line 2 of .* is no JSON object"),
        ("texts.jsonl", '{"text": 3}\n', "text 1 of .* is a int, not a text"),
        ("texts.jsonl", '{"text": "a"}\n{"other": "b"}\n', "text 2 of .* is missing"),
        ("texts.csv", "text,label\na,b,c\n", "row 1 of .* has more or fewer fields"),
        ("texts.csv", 'text\n"a\n', "is no CSV"),
        ("texts.csv", "a cat runs\nthe dog\n", "names no column 'text', and may be a text itself"),
        ("texts.CSV", "sentence\nthe dog\n", "may be a text itself: 'sentence'; .* by --column"),
        ("texts.parquet", "PAR1", "texts.parquet is no parquet file, or a damaged one: "),
        ("texts.txt", b"\xff\xfe", "not in UTF-8"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, named):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=named):
        read_texts(path)


def test_a_bad_column_or_class_is_named(tmp_path):
    path = write(tmp_path / "texts.jsonl", [("a", 1), ("b", -1)])
    with pytest.raises(DataError, match="have no column 'body'; they have text, label"):
        read_texts(path, "body")
    with pytest.raises(DataError, match=r"the class of text 2 of .* is -1"):
        read_texts(path, labels="label")
    with pytest.raises(DataError, match="have no columns, and so no label"):
        read_texts(write(tmp_path / "texts.txt"), labels="label")
    with pytest.raises(DataError, match="do not exist"):
        read_texts(tmp_path / "other.txt")


@pytest.mark.parametrize("has_padding", [True, False])
def test_texts_are_padded_on_the_right_to_the_longest(has_padding):
    tokens = tokenise(TEXTS, tokenizer(has_padding=has_padding))
    ids, mask = tokens.inputs["input_ids"], tokens.inputs["attention_mask"]
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert (tokens.length, tokens.padding, tokens.truncated) == (4, 5, 0)
    assert tokens.padded_with == ("[PAD]" if has_padding else "[END]")
    assert len(set(ids[mask == 0].tolist())) == 1
    assert ids[0, 0] == ids[1, 0]  # "a"
    assert ids.dtype == torch.int64


def test_texts_are_cut_at_the_length_or_the_context():
    one = tokenise(TEXTS, tokenizer(), 2)
    assert (one.length, one.truncated, one.padding) == (2, 1, 1)
    other = tokenise(TEXTS, tokenizer(), context=3)
    assert (other.length, other.truncated) == (3, 1)
    longer = tokenise(TEXTS, tokenizer(), 6)
    assert longer.inputs["input_ids"].shape == (3, 6)


def test_special_tokens_stay_where_a_text_is_cut():
    with_ends = tokenizer(has_ends=True)
    tokens = tokenise(TEXTS, with_ends, 3)
    ends = tokens.inputs["input_ids"][1]
    assert ends.tolist()[::2] == [with_ends.cls_token_id, with_ends.sep_token_id]
    with pytest.raises(DataError, match="leaves no room beside the 2 special tokens"):
        tokenise(TEXTS, with_ends, 2)


def test_a_length_over_the_context_and_texts_without_tokens_are_refused():
    with pytest.raises(DataError, match="length of 9 tokens is over the 8"):
        tokenise(TEXTS, tokenizer(), 9, context=8)
    with pytest.raises(DataError, match="text 2, '  ', gives no token"):
        tokenise(["a", "  "], tokenizer())


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("a.jsonl", b'{"text": ' + b"[" * 100_000 + b"}", "line 1 of a.jsonl is no JSON object"),
        ("a.csv", b"text,text\na,b\n", "names one column twice"),
        ("a.csv", b"text;label\na;1\n", "columns that no comma separates"),
        ("a.csv", b"text,label\na,\nb,x\n", "the class of text 1 of a.csv is ''"),
        ("a.jsonl", b'{"text": "a", "label": "' + b"9" * 5000 + b'"}\n{"text": "b", "label": 1}\n',
         "the class of text 1"),
    ],
    ids=["nested", "doubled", "semicolons", "no class", "digits"],
)  # fmt: skip
def test_a_file_that_means_harm_is_named(tmp_path, monkeypatch, name, content, named):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=named):
        read_texts(name, labels="label" if "class" in named else None)


@pytest.mark.parametrize(
    "note", [b"no JSON", b"[]", b'{"info": null}', b'{"info": {"features": {"label": [1]}}}',
             b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 5}}}}'],
)  # fmt: skip
def test_a_note_of_classes_that_cannot_be_read_names_none(tmp_path, note):
    table = pyarrow.table({"text": ["a"], "label": [0]})
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({b"huggingface": note}), tmp_path / "a.parquet"
    )
    assert read_texts(tmp_path / "a.parquet", labels="label").classes == ("0",)


def test_a_surrogate_is_no_letter():
    with pytest.raises(DataError, match="text 2 holds a code point of UTF-16"):
        tokenise(["a cat", "a \ud800 cat"], tokenizer())


def test_the_end_of_a_name_may_be_in_capitals(tmp_path):
    (tmp_path / "A.TXT").write_text("a cat\n")
    assert read_texts(tmp_path / "A.TXT").texts == ("a cat",)
