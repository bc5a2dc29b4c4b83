"""`longcat serve --disaggregated`: prompts in a process of their own, which may die."""

import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from longcat.cli.serving import ServedTokenizer
from longcat.flash import FlashModel
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import SamplingParams, decode

pytestmark = pytest.mark.slow
Serve = Callable[..., Any]
TEXTS = [f"def main{i}(): return {i}\n" * 12 for i in range(12)]


def get(server: Any, path: str) -> str:
    with urllib.request.urlopen(f"{server.url}{path}", timeout=60) as answer:
        return answer.read().decode()


def ask(server: Any, prompt: str) -> tuple[int, str]:
    """Status and text of one completion."""
    fields = {"model": "served", "prompt": prompt, "max_tokens": 16, "ignore_eos": True}
    fields["temperature"] = 0
    request = urllib.request.Request(
        f"{server.url}/v1/completions",
        json.dumps(fields).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.loads(answer.read())["choices"][0]["text"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def alone(directory: Path, prompt: str) -> str:
    model, tokenizer = FlashModel.from_pretrained(directory).eval(), Tokenizer.load(directory)
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    params = SamplingParams(max_tokens=16, ignore_eos=True)
    return ServedTokenizer(tokenizer).decode(
        t.id for t in decode(model, ids, params, speculative=False)
    )


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def prefill_pids(server: Any) -> list[int]:
    """The engine's children that compute prompts (Linux): one, or none just now."""
    lines = {child: Path(f"/proc/{child}/cmdline") for child in children(server.engine_pid)}
    with suppress(FileNotFoundError):
        return [child for child, line in lines.items() if b"spawn_main" in line.read_bytes()]
    return []


def prefill_pid(server: Any) -> int:
    [pid] = prefill_pids(server)
    return pid


def waited_for(holds: Callable[[], bool]) -> bool:
    for _ in range(600):
        if holds():
            return True
        time.sleep(0.1)
    return False


def metrics(server: Any) -> dict[str, float]:
    pattern = r"^(longcat_\w+(?:\{state=\"used\"\})?) (\S+)$"
    found = re.findall(pattern, get(server, "/metrics"), re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_texts_are_those_of_the_model_and_a_killed_prefill_costs_time(
    serve: Serve, chat_checkpoint: Path
) -> None:
    server = serve(chat_checkpoint, "--disaggregated", "--exact", "--name", "served", "--quiet")
    assert "prompts are computed in a process of their own" in server.log
    status, text = ask(server, TEXTS[0])
    assert (status, text) == (200, alone(chat_checkpoint, TEXTS[0]))
    assert json.loads(get(server, "/health")) == {"status": "ok", "prefill": "up"}

    answers: dict[str, tuple[int, str]] = {}
    threads = [
        threading.Thread(target=lambda text=text: answers.update({text: ask(server, text)}))
        for text in TEXTS
    ]
    victim = prefill_pid(server)
    for thread in threads:
        thread.start()
    os.kill(victim, signal.SIGKILL)
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers.values()} == {200}
    assert answers[TEXTS[5]][1] == alone(chat_checkpoint, TEXTS[5])
    assert waited_for(lambda: metrics(server)['longcat_pages{state="used"}'] == 0)
    assert metrics(server)["longcat_prefill_restarts_total"] == 1
    assert metrics(server)["longcat_engine_restarts_total"] == 0


def test_a_prompt_that_was_lost_twice_is_a_503_that_may_be_sent_again(
    serve: Serve, chat_checkpoint: Path
) -> None:
    server = serve(chat_checkpoint, "--disaggregated", "--name", "served", "--quiet")
    body = {"model": "served", "prompt": TEXTS[0], "max_tokens": 4}
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=120)
        while not asked.done():  # each dies before it has read the model, let alone the prompt
            for victim in prefill_pids(server):
                os.kill(victim, signal.SIGKILL)
            time.sleep(0.02)
        answer = asked.result()
    told = answer.json()["error"]
    assert (answer.status_code, told["code"]) == (503, "prefill_died")
    assert int(answer.headers["retry-after"]) >= 1
    assert ask(server, TEXTS[1])[0] == 200
    assert metrics(server)["longcat_engine_restarts_total"] == 0


def test_an_idle_death_shows_in_health_and_the_next_request_starts_another(
    serve: Serve, chat_checkpoint: Path
) -> None:
    server = serve(chat_checkpoint, "--disaggregated", "--name", "served", "--quiet")
    assert ask(server, TEXTS[0])[0] == 200
    os.kill(prefill_pid(server), signal.SIGKILL)
    down = {"status": "ok", "prefill": "down"}
    assert waited_for(lambda: json.loads(get(server, "/health")) == down)
    assert ask(server, TEXTS[1])[0] == 200
    assert json.loads(get(server, "/health")) == {"status": "ok", "prefill": "up"}


def test_no_process_outlives_a_killed_front(serve: Serve, chat_checkpoint: Path) -> None:
    server = serve(chat_checkpoint, "--disaggregated", "--name", "served", "--quiet")
    assert ask(server, TEXTS[0])[0] == 200
    family = [server.engine_pid, prefill_pid(server)]
    server.process.kill()
    server.process.wait()

    def gone(pid: int) -> bool:
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"

    assert waited_for(lambda: all(map(gone, family)))
