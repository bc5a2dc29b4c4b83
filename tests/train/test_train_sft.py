"""Fine-tuning runs: where they start, exact resuming, the figures, what is refused."""

import json
import math
import shutil
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from longcat.flash import FlashModel
from longcat.flash.chat import encode_conversation
from longcat.flash.tokenizer import Tokenizer
from longcat.train import open_run
from longcat.train.directory import RunDirectory
from longcat.train.errors import DataError, RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import TIMED_FIELDS, read_metrics
from longcat.train.origin import initial_model, read_origin
from longcat.train.prepare import reopen
from longcat.train.sft.chats import read_chats, split_chats
from longcat.train.sft.packing import IDS, PackedWindows, pack
from longcat.train.sft.prepare import encode_chats, held_out_chats, prepare_chats
from longcat.train.sft.score import answer, score_chats
from longcat.train.summary import summarise


def records(count: int) -> list[Any]:
    """Questions and answers."""
    return [pair(f"What is alpha_{i}?", f"It is {i + 1}.") for i in range(count)]


def pair(asked: str, said: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    return {"messages": messages}


def write(path: Any, lines: list[Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture(scope="module")
def base(kit: Any, tmp_path_factory: Any) -> SimpleNamespace:
    """A tiny checkpoint, and conversations for it."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = Tokenizer.train_bpe([kit.text(0, 200)], 300)
    FlashModel(kit.config(max_position_embeddings=512), seed=1).save_pretrained(folder / "model")
    tokenizer.save(folder / "model")
    return SimpleNamespace(
        model=str(folder / "model"), chats=write(folder / "chats.jsonl", records(40))
    )


def settings_for(kit: Any, base: Any, **changes: Any) -> Any:
    defaults = {"init": base.model, "sft": (base.chats,), "seq_len": 96, "batch_size": 2}
    return kit.settings(**{**defaults, **changes})


def start(kit: Any, base: Any, path: Any, **changes: Any) -> Any:
    settings = settings_for(kit, base, **changes)
    prepared = prepare_chats(RunDirectory(path), settings, read_origin(settings))
    begin(RunDirectory(path), prepared)
    return RunDirectory(path), prepared


def test_a_run_starts_from_the_checkpoint_with_ids_for_the_markers(
    kit: Any, base: Any, tmp_path: Any
) -> None:
    directory, prepared = start(kit, base, tmp_path / "run")
    before, after = (FlashModel.from_pretrained(p) for p in (base.model, directory.path))
    tokenizer = Tokenizer.load(directory.path)
    assert tokenizer.chat is not None
    assert after.eos_token_id == tokenizer.markers[tokenizer.chat.end]
    assert after.vocab_size == tokenizer.vocab_size == 305
    ids = torch.arange(4, 20)[None]
    assert torch.equal(after(ids).logits[..., :300], before(ids).logits)
    assert (directory.path / "chat_template.jinja").read_text() == tokenizer.chat.jinja
    chats = prepared.card["chats"]
    assert (chats["cut"], chats["skipped"]) == (0, 0)
    assert 0 < chats["learned_tokens"] < prepared.card["train_tokens"]
    assert (prepared.card["train_documents"], prepared.card["held_out_documents"]) == (38, 2)


def test_a_killed_and_resumed_run_gives_the_bits_of_one_that_was_not(
    kit: Any, base: Any, tmp_path: Any
) -> None:
    class Killed(BaseException):
        pass

    class Killer(Silent):
        def step(self, record: Any, progress: float, seconds_left: float | None) -> None:
            if record["step"] == 5:
                raise Killed

    ends = []
    for name, watcher in (("whole", Silent()), ("cut", Killer())):
        directory, prepared = start(kit, base, tmp_path / name, steps=6, save_every=3)
        try:
            run(directory, prepared, Exchange(), watcher)
        except Killed:
            run(directory, reopen(directory), Exchange(), Silent())
        lines = [
            {k: v for k, v in r.items() if k not in TIMED_FIELDS}
            for r in read_metrics(directory.path)
        ]
        ends.append((FlashModel.from_pretrained(directory.path).state_dict(), lines))
    (whole, whole_lines), (cut, cut_lines) = ends
    assert whole_lines == cut_lines
    assert len(whole_lines) == 6
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_control_an_order_that_depends_on_the_process_is_noticed(
    kit: Any, base: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = np.random.default_rng(0)
    monkeypatch.setattr(
        PackedWindows, "place", lambda self, n: int(drawn.integers(len(self.windows)))
    )
    with pytest.raises(AssertionError):
        test_a_killed_and_resumed_run_gives_the_bits_of_one_that_was_not(kit, base, tmp_path)


def test_replies_are_scored_as_if_each_conversation_were_alone(
    kit: Any, base: Any, tmp_path: Any
) -> None:
    directory, prepared = start(kit, base, tmp_path / "run")
    tokenizer, model = prepared.tokenizer, FlashModel.from_pretrained(directory.path).double()
    chats = held_out_chats(directory.path, "longcat")
    score = score_chats(model, tokenizer, chats, window=96)
    text, ends, size = 0.0, [], 0
    for chat in chats:
        ids, learned = encode_conversation(tokenizer, chat.rendered, tokenizer.chat)
        logits = model(torch.tensor([ids])).logits[0].detach()
        for t in range(1, len(ids)):
            nats = float(cross_entropy(logits[t - 1], torch.tensor(ids[t])))
            piece = tokenizer.token_bytes()[ids[t]]
            if learned[t] and piece:
                text, size = text + nats, size + len(piece)
            elif learned[t] and ids[t] == model.eos_token_id:
                ends.append(nats)
    assert score.held_out.bits_per_byte == pytest.approx(text / math.log(2) / size, rel=1e-5)
    assert score.end_nats == pytest.approx(np.mean(ends), rel=1e-5)
    assert score.held_out.text_bytes == size
    reply = answer(model.float(), tokenizer, chats[0])
    assert reply["document"].startswith(f"{base.chats}, line ")
    assert reply["prompt"].endswith(" ASSISTANT:")
    assert reply["reference"].endswith("</longcat_s>")


def test_a_whole_run_learns_its_replies_and_says_what_its_figures_are_of(
    kit: Any, base: Any, tmp_path: Any
) -> None:
    settings = settings_for(kit, base, steps=16, lr=1e-2, seq_len=64, template="chatml")
    session = open_run(tmp_path / "run", settings, processes=1, say=lambda _: None)
    assert "learned" in [row.label for row in session.card]
    run(session.directory, session.prepared, Exchange(), Silent())
    training = {"finished": True, "steps": 16, "tokens": 1, "seconds": 1.0, "cpu_seconds": 1.0}
    summary = summarise(session.directory, session.prepared, training, prompts=2)
    held_out = summary["held_out"]
    assert (held_out["of"], held_out["conversations"]) == ("replies", 2)
    assert held_out["bits_per_byte"] < 0.7 * held_out["bits_per_byte_before"]
    assert summary["sample"]["prompt"].endswith("<|im_start|>assistant\n")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").chat == session.prepared.tokenizer.chat


def test_text_goes_on_from_a_checkpoint_with_its_own_tokenizer(
    kit: Any, base: Any, tmp_path: Any
) -> None:
    (tmp_path / "a.txt").write_text(kit.text(3, 80))
    settings = kit.settings(init=base.model, data=(str(tmp_path / "a.txt"),), steps=2)
    session = open_run(tmp_path / "run", settings, processes=1, say=lambda _: None)
    run(session.directory, session.prepared, Exchange(), Silent())
    assert Tokenizer.load(tmp_path / "run").encode("alpha") == Tokenizer.load(base.model).encode(
        "alpha"
    )
    first = initial_model(settings, session.prepared.config).state_dict()
    given = FlashModel.from_pretrained(base.model).state_dict()
    assert all(torch.equal(first[name], given[name]) for name in given)


def test_what_cannot_be_started_from_is_refused(kit: Any, base: Any, tmp_path: Any) -> None:
    with pytest.raises(RunError, match="--sft goes with --init MODEL"):
        kit.settings(sft=(base.chats,))
    with pytest.raises(RunError, match="without --data"):
        settings_for(kit, base, data=("a",))
    with pytest.raises(RunError, match="max_position_embeddings=512"):
        read_origin(settings_for(kit, base, seq_len=513))
    with pytest.raises(ValueError, match="unknown template 'x'; known are longcat, chatml"):
        read_origin(settings_for(kit, base, template="x"))
    model = FlashModel(kit.config(num_nextn_predict_layers=0), seed=0)
    model.save_pretrained(tmp_path / "headless")
    shutil.copy(f"{base.model}/tokenizer.json", tmp_path / "headless")
    with pytest.raises(RunError, match="has no draft head"):
        read_origin(settings_for(kit, base, init=str(tmp_path / "headless"), seq_len=64))
    untied = FlashModel.from_pretrained(base.model)
    untied.untie_mtp_embedding()
    with torch.no_grad():
        untied.model.mtp.embed_tokens.weight += 1
    untied.save_pretrained(tmp_path / "untied")
    settings = settings_for(kit, base, init=str(tmp_path / "untied"))
    with (
        pytest.warns(UserWarning, match="keeps an embedding"),
        pytest.raises(RunError, match="an embedding of its own"),
    ):
        initial_model(settings, untied.config)


def test_a_conversation_that_is_too_long_is_cut_and_counted(
    kit: Any, base: Any, tmp_path: Any
) -> None:
    long, late = pair("a", "b " * 200), pair("a " * 200, "b")
    chats = read_chats([write(tmp_path / "chats.jsonl", [*records(2), long, late])], "longcat")
    tokenizer = read_origin(settings_for(kit, base)).tokenizer
    packed = pack(encode_chats(tokenizer, chats), 64, tokenizer.pad_id)
    assert (packed.cut, packed.skipped) == (1, 1)
    ends = packed.windows[:, IDS] == tokenizer.markers["</longcat_s>"]
    assert ends.sum() == 2  # a reply that was cut does not teach to end there


def test_held_out_conversations_that_cannot_be_scored_are_refused_before_the_first_step(
    kit: Any, base: Any, tmp_path: Any
) -> None:
    lines = records(19)
    path = write(tmp_path / "chats.jsonl", lines)
    _, held_out = split_chats(read_chats([path], "longcat"))
    lines = [
        pair("a " * 200, "late") if chat.name in {c.name for c in held_out} else line
        for chat, line in zip(read_chats([path], "longcat"), lines, strict=True)
    ]
    settings = settings_for(kit, base, sft=(write(tmp_path / "chats.jsonl", lines),))
    with pytest.raises(DataError, match=r"first 96 tokens of the 1 held out .*--seq-len"):
        prepare_chats(RunDirectory(tmp_path / "run"), settings, read_origin(settings))
    assert not (tmp_path / "run").exists()
