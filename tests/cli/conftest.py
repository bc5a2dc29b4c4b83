"""A checkpoint small enough to make in a blink, with a tokenizer, for the commands to open."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_layers": 1,
    "num_attention_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "ffn_hidden_size": 32,
    "expert_ffn_hidden_size": 16,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with config.json, random weights (MTP head included) and tokenizer.json."""
    from longcat.flash import FlashConfig, FlashModel
    from longcat.flash.tokenizer import Tokenizer

    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    FlashModel(FlashConfig.preset("nano", **TINY), seed=1).save_pretrained(directory)
    Tokenizer.train_bpe(["hello world, def main(): return 1\n"] * 10, 300).save(directory)
    return directory


@pytest.fixture(scope="session")
def chat_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with a tokenizer made for chat, and a longer window."""
    from longcat.chat import LONGCAT
    from longcat.flash import FlashModel
    from longcat.flash.tokenizer import Tokenizer

    directory = tmp_path_factory.mktemp("served") / "tiny"
    tokenizer = Tokenizer.load(tiny_checkpoint).with_markers(LONGCAT)
    changes = {
        "vocab_size": tokenizer.vocab_size,
        "eos_token_id": tokenizer.markers[LONGCAT.end],
        "max_position_embeddings": 1024,
    }
    model = FlashModel.from_pretrained(tiny_checkpoint)
    config = type(model.config).from_hf(model.config.to_hf() | changes)
    FlashModel(config, seed=1).save_pretrained(directory)
    tokenizer.save(directory)
    return directory


class ServeCommand:
    """`longcat serve` as somebody starts it: processes, signals and sockets are real."""

    def __init__(self, model: Path | str, log: Path, *options: str) -> None:
        self._log = log
        command = [sys.executable, "-m", "longcat.cli.main", "serve", "--model", str(model)]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [*command, "--port", "0", *options],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        self.port = int(self._told(r"at http://127.0.0.1:(\d+):"))
        self.url = f"http://127.0.0.1:{self.port}"

    def _told(self, pattern: str) -> str:
        """What the log says, waited for."""
        for _ in range(1200):
            found = re.search(pattern, self.log)
            if found:
                return found[1]
            assert self.process.poll() is None, self.log
            time.sleep(0.1)
        raise AssertionError(f"the server does not get ready: {self.log}")

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def engine_pid(self) -> int:
        """The process that holds the model (Linux)."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")  # one for each thread
        children = [int(child) for task in tasks for child in task.read_text().split()]
        lines = {child: Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        return next(c for c, line in lines.items() if b"spawn_main" in line)

    def stop(self) -> int:
        """Ask it to end -> its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """serve(model, *options): a running server, which must end well when the test is over."""
    started: list[ServeCommand] = []

    def start(model: Path | str, *options: str) -> ServeCommand:
        started.append(ServeCommand(model, tmp_path / f"server-{len(started)}.log", *options))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            assert server.stop() == 0, server.log
