"""Multiple choice by log-likelihood: the answer is the continuation the model finds most likely.

A file has one JSON object a line: {"question": TEXT, "choices": [TEXT, ...], "answer": INDEX}.
Each choice is scored after the question; the sum favours short choices, so the mean per byte is
reported beside it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from longcat.flash import FlashModel
from longcat.flash.tokenizer import Tokenizer
from longcat.train.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Question:
    """One line of the file; `answer` counts from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, kw_only=True)
class ChoiceScore:
    """Fractions of questions answered rightly, by summed and by per-byte log-likelihood.

    Attributes:
        chance: what guessing would give on average.
    """

    questions: int
    accuracy: float
    accuracy_per_byte: float
    chance: float


def read_questions(path: Path) -> list[Question]:
    """The questions of a .jsonl file.

    Raises:
        DataError: naming the line and what it should hold.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise DataError(f"--choices: {path} cannot be read: {reason}") from error
    questions = [_question(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line]
    if not questions:
        raise DataError(f"--choices: expected one question a line in {path}, it is empty")
    return questions


def _question(line: str, where: str) -> Question:
    try:
        record = json.loads(line)
        question, choices, answer = record["question"], record["choices"], record["answer"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'--choices: {where}: expected {{"question": text, "choices": [text, ...], '
            f'"answer": index}}; {error or type(error).__name__}'
        ) from error
    texts = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
    if not isinstance(question, str) or not texts or len(choices) < 2:
        raise DataError(f"--choices: {where}: expected a question and at least two texts to choose")
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise DataError(
            f"--choices: {where}: answer must be an index below {len(choices)}; got {answer!r}"
        )
    return Question(question=question, choices=tuple(choices), answer=answer)


@torch.inference_mode()
def log_likelihood(model: FlashModel, prefix: Sequence[int], ids: Sequence[int]) -> float:
    """Sum of log probabilities of `ids` after `prefix`, in nats.

    Raises:
        ValueError: when both together are longer than the model's positions.
    """
    whole = torch.tensor([[*prefix, *ids]]).to(model.lm_head.weight.device)
    logits = model(whole[:, :-1]).logits[0, len(prefix) - 1 :].double()
    chosen = logits.log_softmax(dim=-1).gather(-1, whole[0, len(prefix) :, None])
    return float(chosen.sum())


def answer_questions(
    model: FlashModel, tokenizer: Tokenizer, questions: Sequence[Question]
) -> ChoiceScore:
    """Answer every question; ties go to the choice named first."""
    right, right_per_byte = 0, 0
    for item in questions:
        prefix = tokenizer.encode(item.question, bos=True)
        scores = [log_likelihood(model, prefix, tokenizer.encode(c)) for c in item.choices]
        per_byte = [s / len(c.encode()) for s, c in zip(scores, item.choices, strict=True)]
        right += scores.index(max(scores)) == item.answer
        right_per_byte += per_byte.index(max(per_byte)) == item.answer
    count = len(questions)
    return ChoiceScore(
        questions=count,
        accuracy=right / count,
        accuracy_per_byte=right_per_byte / count,
        chance=sum(1 / len(q.choices) for q in questions) / count,
    )
