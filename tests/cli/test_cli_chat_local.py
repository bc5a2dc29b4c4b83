"""Claims about `longcat chat` with a model in this process: drafts, memory, interrupts."""

from pathlib import Path
from typing import Any

import pytest

from longcat.chat import TextDelta
from longcat.cli.talk.local import LocalPartner
from longcat.cli.talk.session import Session
from longcat.flash import FlashModel
from longcat.flash.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def chatty(chat_checkpoint: Path) -> LocalPartner:
    """A model with a chat format that has learned nothing."""
    model = FlashModel.from_pretrained(chat_checkpoint).eval()
    return LocalPartner("chatty", model, Tokenizer.load(chat_checkpoint))


def said(partner: LocalPartner, session: Session) -> str:
    pieces = [piece.delta for piece in partner.reply(session)]
    return "".join(delta.text for delta in pieces if isinstance(delta, TextDelta))


def test_a_local_reply_is_the_same_with_and_without_drafts(chatty: LocalPartner) -> None:
    session = Session()
    session.ask("hello")
    session.change(seed=1, max_tokens=20, temperature=1.0)
    drafted = said(chatty, session)
    assert chatty.turn.drafted
    session.change(draft=False)
    assert said(chatty, session) == drafted
    assert not chatty.turn.drafted


def test_a_later_turn_computes_only_what_is_new(chatty: LocalPartner) -> None:
    session = Session()
    session.change(seed=1, max_tokens=20, temperature=1.0)
    session.ask("hello world " * 8)
    said(chatty, session)
    engine = chatty._engine
    assert engine is not None
    before = engine.stats()
    session.messages.append({"role": "assistant", "content": "x"})
    session.ask("again")
    said(chatty, session)
    after = engine.stats()
    assert chatty._engine is engine
    prompt = after.prefix_queries - before.prefix_queries
    assert after.prefix_hits - before.prefix_hits > prompt / 2


def test_a_reply_that_is_left_or_interrupted_leaves_an_engine_that_answers_the_same(
    chatty: LocalPartner, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session()
    session.ask("hello")
    session.change(seed=1, max_tokens=20, temperature=1.0)
    whole = said(chatty, session)
    pieces: Any = chatty.reply(session)
    next(pieces)
    pieces.close()
    assert chatty._engine is not None
    assert not chatty._engine.has_work
    assert said(chatty, session) == whole
    engine = chatty._engine

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        said(chatty, session)
    assert chatty._engine is None
    assert said(chatty, session) == whole
    assert chatty._engine is not engine


def test_a_conversation_that_is_too_long_is_told_to_start_again(chatty: LocalPartner) -> None:
    session = Session()
    session.ask("hello " * 2000)
    with pytest.raises(
        ValueError, match=r"the conversation has \d+ tokens and there is room for 1024; .* /reset"
    ):
        chatty.reply(session)
