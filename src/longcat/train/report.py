"""report.html: the run on one page that opens offline.

Rendered from run.json and metrics.jsonl alone; everything is inline (SVG and CSS), there is no
script and no request to anywhere.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from longcat.train.charts import bar_chart, line_chart, smoothed
from longcat.train.directory import write_text
from longcat.train.metrics import Record, read_metrics
from longcat.train.report_style import STYLE
from longcat.train.report_words import Next, figures, next_steps
from longcat.train.summary import Summary
from longcat.train.watch import page

FILE_NAME = "report.html"


def write_report(directory: Path, summary: Summary) -> Path:
    """Write DIR/report.html and return its path."""
    records = read_metrics(directory)
    path = directory / FILE_NAME
    write_text(path, render(summary, records))
    return path


def render(summary: Summary, records: Sequence[Record]) -> str:
    """The whole page."""
    title = f"LongCat-Flash {summary['settings']['preset']}: a training run"
    cards = "".join(
        f"<div class='card'><b>{escape(value)}</b><span>{escape(label)}</span></div>"
        for label, value in figures(summary)
    )
    on = "what the assistant says" if summary["settings"].get("sft") else "training text"
    sections = [
        _section("Loss", _loss(records), f"Cross entropy of the next token on {on}."),
        _held_out(summary),
        _experts(summary, records),
        _kinds(summary),
        _heat(summary),
        _drafts(summary, records),
        _stability(records),
        _section(page.TITLE, page.body(summary, records), page.NOTE),
        _sample(summary),
        _settings(summary),
        _next(next_steps(summary)),
    ]
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1><div class='cards'>{cards}</div>{''.join(sections)}"
        "</main></body></html>\n"
    )


def _section(title: str, body: str, note: str = "") -> str:
    text = f"<p class='note'>{escape(note)}</p>" if note else ""
    return f"<section><h2>{escape(title)}</h2>{text}{body}</section>" if body else ""


def _points(
    records: Sequence[Record], name: str, layer: int | None = None
) -> list[tuple[float, float]]:
    """(tokens, value) wherever the value was measured."""
    found = []
    for record in records:
        value = record.get(name)
        if layer is not None and value is not None:
            # A grown run has fewer layers in its first records.
            value = value[layer] if layer < len(value) else None
        if value is not None:
            found.append((float(record["tokens"]), float(value)))
    return found


def _loss(records: Sequence[Record]) -> str:
    series = {"main model (smoothed)": smoothed(_points(records, "loss"))}
    mtp = _points(records, "mtp_loss")
    if mtp:
        series["MTP head, two tokens ahead (smoothed)"] = smoothed(mtp)
    return line_chart(series, x_label="tokens")


def _held_out(summary: Summary) -> str:
    held_out = summary["held_out"]
    if held_out is None:
        return _section("Held-out text", "<p>No text was held out.</p>")
    rows = [*held_out["compressors"].items(), ("this model", held_out["bits_per_byte"])]
    bars = [(name, value, f"{value:.3f}") for name, value in sorted(rows, key=lambda r: -r[1])]
    if held_out.get("of") == "replies":
        return _section(
            "Bits per byte of held-out replies",
            bar_chart(bars, highlight="this model"),
            f"Over the {held_out['bytes']:,} bytes that the assistant says in "
            f"{held_out['conversations']} held-out conversations; prompts are read, not scored. "
            "Compressors get the same bytes without the prompts, so they are at a disadvantage.",
        )
    return _section(
        "Bits per byte on held-out files",
        bar_chart(bars, highlight="this model"),
        f"Exact, over all {held_out['bytes']:,} held-out bytes; what compressors need for the same "
        "bytes beside it. The model's own size is not counted. xz + training text is what xz adds "
        "for these bytes after it has read the text that the model was trained on.",
    )


def _experts(summary: Summary, records: Sequence[Record]) -> str:
    layers = len(records[-1]["ffn_experts_mean"]) if records else 0
    target = summary["ffn_experts_target"]
    series = {
        f"layer {i + 1}": smoothed(_points(records, "ffn_experts_mean", i), 0.8)
        for i in range(layers)
    }
    chart = line_chart(series, x_label="tokens", target=target, target_label=f"K_e = {target:g}")
    table = ""
    if summary["held_out"]:
        held_out = summary["held_out"]
        means, stds = held_out["ffn_experts_mean"], held_out["ffn_experts_std"]
        halves = held_out.get("ffn_experts_half_width")
        rows = "".join(
            f"<tr><td>layer {i + 1}</td><td>{mean:.3f}</td><td>{100 * (mean / target - 1):+.1f}"
            + (f" ± {100 * halves[i] / target:.1f}" if halves else "")
            + f" %</td><td>{std:.2f}</td></tr>"
            for i, (mean, std) in enumerate(zip(means, stds, strict=True))
        )
        table = (
            "<table><tr><th>held-out text</th><th>mean</th><th>from target</th>"
            f"<th>std over tokens</th></tr>{rows}</table>"
        )
        if halves:
            table += "<p>±: 95 %, from the scatter between the held-out documents.</p>"
    loads: list[list[float]] = next(
        (r["expert_load"] for r in reversed(records) if r.get("expert_load")), []
    )
    load_bars = "".join(
        f"<h3>layer {i + 1}: load of each FFN expert at the end (1 = mean)</h3>"
        + bar_chart([(f"expert {e}", v, f"{v:.2f}") for e, v in enumerate(load)], target=1.0)
        for i, load in enumerate(loads[:4])
        if len(load) <= 64
    )
    return _section(
        "FFN experts per token",
        chart + table + f"<details><summary>load per expert</summary>{load_bars}</details>",
        "Each token chooses among FFN experts and identity experts that cost nothing; a controller "
        "holds the mean at its target by moving the routers' biases.",
    )


def _kinds(summary: Summary) -> str:
    if not summary["held_out"]:
        return ""
    kinds = summary["held_out"]["kinds"]
    bars = [
        (k["kind"], k["ffn_experts"], f"{k['ffn_experts']:.2f}  ({k['tokens']:,})") for k in kinds
    ]

    def listed(name: str) -> str:
        items = (
            f"<code>{escape(repr(t['text'])[1:-1])}</code>&nbsp;{t['ffn_experts']:.2f}"
            for t in summary["held_out"][name]
        )
        return ", ".join(items)

    words = (
        f"<p>Fewest: {listed('tokens_fewest')}.</p><p>Most: {listed('tokens_most')}.</p>"
        if summary["held_out"]["tokens_fewest"]
        else ""
    )
    return _section(
        "Which tokens got fewer experts",
        bar_chart(bars, target=summary["ffn_experts_target"]) + words,
        "Mean FFN experts over layers, by kind of token (number of tokens in brackets). Kinds of "
        "tokens differ. The correlation of a position's experts with the loss of what follows is "
        f"{summary['held_out']['correlation_with_loss']:+.2f}.",
    )


def _heat(summary: Summary) -> str:
    if not summary["held_out"]:
        return ""
    heat = summary["held_out"]["heat"]
    means = [sum(token["ffn"]) / len(token["ffn"]) for token in heat]
    low, high = min(means), max(means)
    spans = []
    for token, mean in zip(heat, means, strict=True):
        share = (mean - low) / ((high - low) or 1)
        shown = token["text"] or " "
        detail = " / ".join(str(n) for n in token["ffn"])
        spans.append(
            f"<span title='{detail} FFN experts in layers 1 to {len(token['ffn'])}' "
            f"style='--s:{share:.2f}'>{escape(shown)}</span>"
        )
    return _section(
        "Compute, seen as text",
        f"<pre class='heat'>{''.join(spans)}</pre>",
        f"Held-out text, shaded by FFN experts per token (faint {low:.1f}, strong {high:.1f}).",
    )


def _drafts(summary: Summary, records: Sequence[Record]) -> str:
    mtp = summary["mtp"]
    if mtp is None:
        return ""
    fresh = mtp["acceptance_without_repeats"]
    rows = (
        f"<tr><td>all drafts</td><td>{_percent(mtp['acceptance'])}</td><td>{mtp['drafted']:,}</td>"
        f"</tr><tr><td>where no earlier 5-gram repeats</td><td>{_percent(fresh)}</td>"
        f"<td>{mtp['fresh_drafted']:,}</td></tr>"
    )
    chart = line_chart(
        {"agreement on training text": _points(records, "mtp_acceptance")},
        x_label="tokens",
        limits=(0, 1),
    )
    return _section(
        "Drafts of the MTP head",
        f"<table><tr><th>greedy continuation of held-out prompts</th><th>accepted</th>"
        f"<th>drafts</th></tr>{rows}</table><p>{mtp['tokens_per_step']:.2f} tokens per pass of the "
        f"model; {mtp['repeated']:.0%} of the generated tokens complete a 5-gram seen before.</p>"
        + chart,
        "A draft is accepted when it is the token that the model itself chooses.",
    )


def _stability(records: Sequence[Record]) -> str:
    layers = max((len(r["r_g"]) for r in records if r["r_g"]), default=0)
    ratio = line_chart(
        {f"R_g, layer {i + 1}": _points(records, "r_g", i) for i in range(layers)},
        x_label="tokens",
        target=0.1,
        target_label="keep below 0.1",
        logarithmic=True,
    )
    norm = line_chart(
        {"gradient norm": _points(records, "grad_norm")}, x_label="tokens", logarithmic=True
    )
    return _section(
        "Stability",
        (ratio if layers else "") + norm,
        "R_g: pull of the balance loss on the mean expert probabilities against that of the "
        "language-model loss. Below it, the gradient norm before clipping.",
    )


def _sample(summary: Summary) -> str:
    sample = summary["sample"]
    if sample is None:
        return ""
    if "reference" in sample:
        reference = f"<p>In the data:</p><pre>{escape(sample['reference'])}</pre>"
        return _section(
            "An answer",
            f"<pre><b>{escape(sample['prompt'])}</b>{escape(sample['text'])}</pre>{reference}",
            f"To {sample['document']}, held out (bold); greedy.",
        )
    return _section(
        "A sample",
        f"<pre><b>{escape(sample['prompt'])}</b>{escape(sample['text'])}</pre>",
        f"Lines of the held-out {sample['document']} (bold), continued at temperature "
        f"{sample['temperature']:g}.",
    )


def _settings(summary: Summary) -> str:
    corpus, settings = summary["corpus"], summary["settings"]
    rows = [
        ("text", corpus["source"]),
        ("licence", corpus["licence"]),
        ("training text", f"{corpus['train_bytes']:,} bytes, {corpus['train_tokens']:,} tokens"),
        ("held-out text", f"{corpus['held_out_bytes']:,} bytes"),
        ("processes", str(summary["processes"])),
        *((name, str(value)) for name, value in settings.items()),
    ]
    body = "".join(f"<tr><td>{escape(a)}</td><td>{escape(b)}</td></tr>" for a, b in rows)
    return _section("Settings", f"<details><summary>all</summary><table>{body}</table></details>")


def _next(steps: Sequence[Next]) -> str:
    items = "".join(f"<li>{escape(s.why)}<pre>{escape(s.command)}</pre></li>" for s in steps)
    return _section("What to try next", f"<ol>{items}</ol>")


def _percent(share: float | None) -> str:
    return "not measured" if share is None else f"{share:.1%}"
