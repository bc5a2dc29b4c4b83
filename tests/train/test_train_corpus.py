"""Which text is trained on and which is held out; and every kind of unusable data."""

import io
import sys

import pytest

from longcat.train.corpus import Document, default_corpus, split
from longcat.train.errors import DataError
from longcat.train.sources import read_corpus


def make_documents(count):
    return [Document(name=f"pkg/file_{i}.py", text=f"x = {i}\n" * 30) for i in range(count)]


def test_the_default_corpus_is_the_standard_library_without_tests():
    corpus = default_corpus()
    names = {d.name for d in corpus.train} | {d.name for d in corpus.held_out}
    assert "json/decoder.py" in names
    assert not [n for n in names if n.split("/")[0] in ("test", "site-packages")]
    assert not [n for n in names if "tests" in n.split("/")]
    assert all(n.endswith(".py") for n in names)
    assert "PSF" in corpus.licence
    share = corpus.held_out_bytes / (corpus.held_out_bytes + corpus.train_bytes)
    assert 0.02 < share < 0.1


def test_no_document_is_on_both_sides():
    train, held_out = split(make_documents(300))
    assert len(train) + len(held_out) == 300
    assert not {d.name for d in train} & {d.name for d in held_out}
    assert len(held_out) == 15


def test_the_split_rests_on_the_names_alone():
    documents = make_documents(300)
    other = [Document(name=d.name, text=f"other {d.text}") for d in reversed(documents)]
    names = {d.name for d in split(documents)[1]}
    assert {d.name for d in split(other)[1]} == names


def test_every_large_folder_is_represented():
    documents = [
        Document(name=f"{folder}/file{i}.py", text=f"{folder} {i}\n" * 9)
        for folder, count in (("a", 100), ("b", 40), ("c/d", 21))
        for i in range(count)
    ]
    held_out = [d.name.rpartition("/")[0] for d in split(documents)[1]]
    assert {f: held_out.count(f) for f in ("a", "b", "c/d")} == {"a": 5, "b": 2, "c/d": 1}


def test_of_a_single_document_the_end_is_held_out_from_a_line_on():
    text = "".join(f"line {i}\n" for i in range(200))
    train, held_out = split([Document(name="one", text=text)])
    assert train[0].text + held_out[0].text == text
    assert held_out[0].text.startswith("line")
    assert 0.02 < len(held_out[0].text) / len(text) < 0.06


def test_text_that_is_also_trained_on_is_not_held_out():
    documents = [Document(name=f"f{i}", text="the same\n") for i in range(200)]
    train, held_out = split(documents)
    assert train
    assert not held_out


def test_files_folders_globs_and_jsonl_are_read(tmp_path):
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "a.txt").write_text("alpha\n" * 40)
    (tmp_path / "folder" / "deep" / "b.md").write_text("beta\n" * 40)
    (tmp_path / "folder" / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "folder" / ".hidden").write_text("secret\n" * 40)
    (tmp_path / "c1.py").write_text("gamma\n" * 40)
    (tmp_path / "d.jsonl").write_text('{"text": "delta"}\n\n{"text": "epsilon", "id": 3}\n')
    corpus = read_corpus(
        [str(tmp_path / "folder"), str(tmp_path / "c*.py"), str(tmp_path / "d.jsonl")]
    )
    text = "".join(d.text for d in (*corpus.train, *corpus.held_out))
    for word in ("alpha", "beta", "gamma", "delta", "epsilon"):
        assert word in text
    assert "secret" not in text
    assert corpus.skipped == 1


def test_standard_input_is_read(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(b"from a pipe\n" * 50))
    monkeypatch.setattr(sys, "stdin", stream)
    corpus = read_corpus(["-"])
    assert "from a pipe" in corpus.train[0].text
    assert corpus.source == "standard input"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "it is empty"),
        ("blank.txt", b" \n\t\n", "it is empty"),
        ("nul.txt", b"abc\0def", "binary data"),
        ("latin.txt", b"caf\xe9 au lait", "binary data"),
        ("list.jsonl", b"[1, 2]\n", "object with a string field 'text'; got list"),
        ("field.jsonl", b'{"body": "x"}\n', r"got \['body'\]"),
        ("number.jsonl", b'{"text": 3}\n', "string field 'text'"),
        ("half.jsonl", b'{"text": "a\\ud800b"}\n', "lone surrogate"),
        ("broken.jsonl", b'{"text": "x"}\n{"text": \n', "line 2: expected one JSON object"),
        ("hollow.jsonl", b'{"text": ""}\n', "every 'text' field is empty"),
    ],
)
def test_unusable_files_are_refused_in_one_sentence(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_corpus([str(path)])
    assert name in str(caught.value)


@pytest.mark.parametrize("missing", ["nowhere.txt", "nowhere/*.txt"])
def test_a_missing_path_is_named(tmp_path, missing):
    with pytest.raises(DataError, match="found nothing"):
        read_corpus([str(tmp_path / missing)])


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"\0\1")
    with pytest.raises(DataError, match=r"found none \(1 files"):
        read_corpus([str(tmp_path)])


def test_of_a_large_corpus_a_bounded_part_is_scored(monkeypatch):
    monkeypatch.setattr("longcat.train.corpus.MOST_HELD_OUT_BYTES", 1001)
    _, held_out = split([Document(name=f"file{i}", text=f"{i} é\n" * 200) for i in range(200)])
    assert 1000 <= sum(len(d.text.encode()) for d in held_out) <= 1001
