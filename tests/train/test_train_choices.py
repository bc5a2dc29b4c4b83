"""Claims about multiple choice by log-likelihood."""

import json

import pytest
import torch

from longcat.flash import FlashModel
from longcat.flash.tokenizer import Tokenizer
from longcat.train.choices import Question, answer_questions, log_likelihood, read_questions
from longcat.train.errors import DataError


@pytest.fixture(scope="module")
def speaker(kit):
    tokenizer = Tokenizer.train_bpe([kit.text(0, 60)], 300)
    return FlashModel(kit.config(initializer_range=0.5), seed=3).eval(), tokenizer


def test_log_likelihood_is_the_sum_over_the_continuation_alone(speaker):
    model, _ = speaker
    ids = list(range(10, 22))
    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    want = sum(logs[i - 1, ids[i]].item() for i in range(5, 12))
    assert log_likelihood(model, ids[:5], ids[5:]) == pytest.approx(want, rel=1e-6)
    shifted = sum(logs[i, ids[i]].item() for i in range(5, 12))
    assert log_likelihood(model, ids[:5], ids[5:]) != pytest.approx(shifted, rel=1e-3)


def test_the_answer_is_the_likeliest_choice(speaker):
    model, tokenizer = speaker
    question, choices = "def alpha", ("_1(self", "_beta):", "(value")
    prefix = tokenizer.encode(question, bos=True)
    scores = [log_likelihood(model, prefix, tokenizer.encode(c)) for c in choices]
    best = scores.index(max(scores))
    asked = [Question(question=question, choices=choices, answer=a) for a in range(3)]
    score = answer_questions(model, tokenizer, asked)
    assert score.accuracy == pytest.approx(1 / 3)
    assert score.chance == pytest.approx(1 / 3)
    assert answer_questions(model, tokenizer, [asked[best]]).accuracy == 1.0
    assert answer_questions(model, tokenizer, [asked[(best + 1) % 3]]).accuracy == 0.0


def test_a_file_of_questions_is_read(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question": "a", "choices": ["b", "c"], "answer": 1}) + "\n")
    assert read_questions(path) == [Question(question="a", choices=("b", "c"), answer=1)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "it is empty"),
        ("no json", "line 1: expected"),
        ('{"question": "a", "choices": ["b", "c"]}', "'answer'"),
        ('{"question": "a", "choices": ["b"], "answer": 0}', "at least two texts"),
        ('{"question": "a", "choices": ["b", ""], "answer": 0}', "at least two texts"),
        ('{"question": "a", "choices": ["b", "c"], "answer": 2}', "an index below 2; got 2"),
        ("[1]", "line 1: expected"),
    ],
)
def test_a_damaged_question_is_named(tmp_path, line, words):
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match=words):
        read_questions(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_questions(tmp_path / "none.jsonl")
