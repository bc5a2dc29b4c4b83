"""Claims about clients that others wrote: each runs against the server as its users run it.

They are heavy, so they are no requirement of this repository: a test whose client is not on the
path is skipped. Figures of the last run stand in docs/guides/serve.md.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from longcat.cli.models import shipped_nano

pytestmark = pytest.mark.slow
Serve = Callable[..., Any]
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

# A text from the training corpus' kind, and how it does not go on.
QUESTIONS = [
    ("def read(", ["self", " banana", "::"], 0),
    ("import", [" os", "(((", " yellow"], 0),
    ("for i in", [" range(", " return", "]"], 0),
    ("if x is not", [" None", " def", "@"], 0),
    ("class Error(", ["Exception", " while", " 12"], 0),
    ("return", ["}", " None", " ;;"], 1),
    ("raise ValueError", ["import", "(", " def"], 1),
    ("while", [" None:", " True:", "))"], 1),
    ("try:\n    pass\nexcept", [" 7", " for", " Exception"], 2),
    ("with open(path) as", [" (", " None", " f"], 2),
    ("self.assertEqual", [" return", "é", "("], 2),
    ("x = [1, 2", ["]", ", 3]", " def"], 1),
]


def client(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not on the path; see docs/guides/serve.md")
    return found


def run(*command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | OFFLINE | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def nano() -> Path:
    directory = shipped_nano()
    assert directory is not None
    return directory


def test_schemathesis_finds_no_answer_that_the_schema_does_not_promise(
    serve: Serve, chat_checkpoint: Path, tmp_path: Path
) -> None:
    program = client("schemathesis")
    server = serve(chat_checkpoint, "--max-tokens", "8", "--quiet")
    # All checks but one: the schema cannot say that token ids fit the vocabulary, or that a text
    # fits the window, so data that fits the schema may be refused.
    told = run(
        *(program, "run", f"{server.url}/openapi.json", "--max-examples", "500", "--seed", "1"),
        *("--checks", "all", "--exclude-checks", "positive_data_acceptance"),
        folder=tmp_path,
    )
    print(told[-600:])


def test_lm_eval_gets_the_models_own_log_likelihoods(serve: Serve, tmp_path: Path) -> None:
    program = client("lm_eval")
    rows = [
        {"question": question, "choices": choices, "answer": answer}
        for question, choices, answer in QUESTIONS
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lab_mc.yaml").write_text(
        "task: lab_mc\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\n"
        "test_split: test\noutput_type: multiple_choice\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\n'
        'target_delimiter: ""\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    server = serve("nano", "--quiet")
    options = f"model=nano,base_url={server.url}/v1/completions,tokenizer_backend=remote"
    run(
        *(program, "run", "--model", "local-completions", "--tasks", "lab_mc"),
        *("--model_args", f"{options},num_concurrent=4,max_retries=1"),
        *("--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")),
        "--log_samples",
        folder=tmp_path,
        HF_HOME=str(tmp_path / "hf"),
    )
    [results] = (tmp_path / "out").rglob("results_*.json")
    told = json.loads(results.read_text())["results"]["lab_mc"]
    [samples] = (tmp_path / "out").rglob("samples_*.jsonl")
    by_doc = {s["doc_id"]: s for s in map(json.loads, samples.read_text().splitlines())}
    served = [[float(r[0][0]) for r in by_doc[i]["resps"]] for i in range(len(QUESTIONS))]

    own = log_likelihoods()
    assert list(chain(*served)) == pytest.approx(list(chain(*own)), abs=1e-4)
    for metric, lengths in (("acc", False), ("acc_norm", True)):
        right = 0
        for scores, (_, choices, answer) in zip(own, QUESTIONS, strict=True):
            each = [s / (len(c) if lengths else 1) for s, c in zip(scores, choices, strict=True)]
            right += each.index(max(each)) == answer
        assert told[f"{metric},none"] == right / len(QUESTIONS)
    print(f"lm-eval: acc {told['acc,none']:.4f}, acc_norm {told['acc_norm,none']:.4f}")


def log_likelihoods() -> list[list[float]]:
    """The shipped nano's log-likelihood of every choice, computed in this process."""
    import torch

    from longcat.flash import FlashModel
    from longcat.flash.tokenizer import Tokenizer

    model = FlashModel.from_pretrained(nano()).eval()
    tokenizer = Tokenizer.load(nano())
    told = []
    for question, choices, _ in QUESTIONS:
        scores = []
        for choice in choices:
            head, ids = tokenizer.encode(question), tokenizer.encode(question + choice)
            with torch.inference_mode():
                logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            places = range(len(head), len(ids))
            scores.append(sum(float(logits[place - 1, ids[place]]) for place in places))
        told.append(scores)
    return told


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_guidellm_measures_the_server(
    serve: Serve, chat_checkpoint: Path, tmp_path: Path, path: str
) -> None:
    program = client("guidellm")
    server = serve(nano() if path == "/v1/completions" else chat_checkpoint, "--name", "served")
    backend = f"kind=openai_http,target={server.url},model=served,request_format={path}"
    run(
        *(program, "run", "--backend", backend),
        *("--profile", "kind=concurrent,streams=4"),
        *("--constraint", "kind=max_requests,count=24"),
        *("--tokenizer", f"kind=huggingface_auto,model={nano()}"),
        *("--data", "kind=synthetic_text,prompt_tokens=32,output_tokens=16"),
        *("--output", f"kind=json,path={tmp_path}/told.json", "--disable-console-interactive"),
        folder=tmp_path,
    )
    told = json.loads((tmp_path / "told.json").read_text())
    metrics = told["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    assert (totals["successful"], totals["errored"]) == (24, 0)
    names = ("time_to_first_token_ms", "inter_token_latency_ms", "output_tokens_per_second")
    print(path, {name: round(metrics[name]["successful"]["median"], 1) for name in names})
