"""What is said of the shipped nano is what made it and what was measured."""

import importlib.util
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "src/longcat/flash/nano/README.md"

RUN: dict[str, Any] = {
    "corpus": {"source": "a text", "licence": "ours", "train_tokens": 2_000},
    "parameters": {"total": 1_940_000, "mtp": 190_000},
    "tokens": 5_000,
    "cpu_seconds": 612.3,
}
DRAFTS: dict[str, Any] = {
    "command": "longcat train",
    "settle_cpu_seconds": 7.0,
    "distill_cpu_seconds": 280.6,
    "prompts": {"count": 256},
    "tokens_per_pass": 1.882,
    "sampled": 0.6049,
    "by_prompt": [[100, 90, 50, 41], [100, 88, 50, 40]],
}
FIGURES: dict[str, Any] = {
    "documents": 36,
    "bytes": 338_716,
    "bits_per_byte": 1.2341,
    "compressors": {"zlib": 2.0291},
    "ffn_experts_target": 4,
    "ffn_experts_mean": [4.012, 3.987],
    "ffn_experts_half_width": [0.021, 0.064],
}


def card(run: dict[str, Any], drafts: dict[str, Any], figures: dict[str, Any]) -> str:
    spec = importlib.util.spec_from_file_location("nano_card", ROOT / "tools/nano_card.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text: str = module.card(run, drafts, figures)
    return text


def test_the_readme_names_the_command_that_make_nano_runs() -> None:
    recipe = re.search(r"longcat (train --preset nano .*) --out", (ROOT / "Makefile").read_text())
    assert recipe is not None
    stated = re.search(r"\| command \| `longcat (train .*?)` \|", README.read_text("utf-8"))
    assert stated is not None
    assert stated[1] == recipe[1]


def test_the_card_shows_what_was_measured() -> None:
    text = card(RUN, DRAFTS, FIGURES)
    experts = "4.01 ± 0.02 and 3.99 ± 0.06"
    figures = ("612", "288", "2.50 passes", "1.234", experts, "89.0%", "81.0%", "60.5%")
    for figure in figures:
        assert figure in text, figure
    assert "1.900" in card(RUN, DRAFTS, FIGURES | {"bits_per_byte": 1.9})


def test_the_shipped_readme_is_such_a_card() -> None:
    def words(text: str) -> list[str]:
        return re.sub(r"\d[\d,.]*", "0", text).splitlines()

    shipped, made = words(README.read_text("utf-8")), words(card(RUN, DRAFTS, FIGURES))
    assert len(shipped) == len(made)
    assert shipped[-6:] == made[-6:]
