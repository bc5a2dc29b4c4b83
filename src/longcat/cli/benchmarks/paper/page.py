"""A figure's page in the documentation, made from its JSON alone.

The words around the figures say what the report shows and what differs; every statement about our
runs is a Verdict, that is, computed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longcat.cli.benchmarks.paper.figure import Figure
from longcat.cli.benchmarks.paper.interval import COVERAGE, percent, student_quantile
from longcat.cli.benchmarks.paper.plot import Panel, plot
from longcat.cli.benchmarks.paper.results import Results
from longcat.cli.benchmarks.paper.verdict import Verdict

_MARKS = {
    True: ("exact", "seen"),
    False: ("absent", "not seen at this scale"),
    None: ("scaled", "measured, the report does not say"),
}
AXES = {"tokens": "tokens", "flops": "active FLOPs", "cpu_seconds": "CPU seconds"}


def render(figure: Figure, document: Mapping[str, Any]) -> str:
    """The whole page as Markdown."""
    results = Results(document)
    verdicts = figure.verdicts(results)
    blocks = [
        "---\nhide: [toc]\n---",
        f"<!-- Written by `longcat bench paper --pages` from bench/results/{file_name(figure)}: "
        "edits here are lost. -->",
        f"# Figure {figure.number}: {figure.title}",
        f"**In the report** ({figure.report}): {figure.shows}",
        f"**Here**: {figure.differs}",
        "## What these runs show",
        verdict_list(verdicts),
        *figure.body(results),
        "## How it was made",
        *_method(document, results),
    ]
    return "\n\n".join(block.strip("\n") for block in blocks) + "\n"


def file_name(figure: Figure) -> str:
    """Of the figure's document."""
    return f"paper-{figure.number:02d}.json"


def page_name(figure: Figure) -> str:
    """Of the figure's page."""
    return f"figure-{figure.number:02d}.md"


def verdict_list(verdicts: Sequence[Verdict]) -> str:
    """Each statement with a word before it that says whether it was seen."""
    lines = []
    for verdict in verdicts:
        kind, mark = _MARKS[verdict.seen]
        sentence = verdict.text[0].upper() + verdict.text[1:]
        lines.append(f'- <span class="status {kind}">{mark}</span> {sentence}')
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys; the first column to the left, the others to the right."""
    names = list(rows[0])
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *([r[n] for n in names] for r in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def loss_plots(
    results: Results, arms: Sequence[str], *, title: str, roles: Mapping[str, str] | None = None
) -> str:
    """Held-out loss against tokens, active FLOPs and CPU seconds, without the untrained model."""
    panels = [
        Panel(
            series={arm: results.curve(arm, "loss", x=x, table="held_out")[1:] for arm in arms},
            x_label=label,
        )
        for x, label in AXES.items()
    ]
    return plot(panels, title=title, y_label="held-out loss, nats per token", roles=roles)


def index(pages: Mapping[int, tuple[Figure, Mapping[str, Any]]]) -> str:
    """The page that lists the figures, with each one's first statement."""
    lines = [
        "---\nhide: [toc]\n---",
        "<!-- Written by `longcat bench paper --pages`: edits here are lost. -->",
        "# The report's figures, in small",
        "Small models trained on this project's own loop, a few seeds each, so that anyone can "
        "repeat them on two cores: `longcat bench paper`. A statement is called seen only when the "
        "data say so: a difference must be larger than its interval over the seeds.",
    ]
    rows = []
    for number, (figure, document) in sorted(pages.items()):
        verdicts = figure.verdicts(Results(document))
        judged = [v.seen for v in verdicts if v.seen is not None]
        rows.append(
            {
                "figure": f"[{number}. {figure.title}]({page_name(figure)})",
                "in the report": figure.report,
                "of its statements seen here": f"{sum(judged)} of {len(judged)}",
            }
        )
    body = table(rows) if rows else "Nothing has been run yet."
    return "\n\n".join([*lines, body]) + "\n"


def _method(document: Mapping[str, Any], results: Results) -> list[str]:
    seeds, scale, text = len(results.seeds), document["scale"], document["text"]
    quantile = student_quantile(0.5 + COVERAGE / 2, seeds - 1)
    cpu = sum(run["cpu_seconds"] for run in document["runs"])
    said = [
        f"- `{document['command']}`; runs made {_dates(document)}; {len(document['runs'])} "
        f"trainings, {cpu:,.0f} CPU seconds of training in all, one thread each.",
        f"- Intervals: mean ± t·s/√n over n = {seeds} seeds, Student's t = {quantile:.2f} for "
        f"{percent(COVERAGE)} coverage. Arms are compared seed by seed. "
        "Where an interval leaves a plot it is cut at the edge.",
        f"- Text: {text['source']}; {text['train_tokens']:,} training tokens of a byte-pair "
        f"vocabulary of {text['vocab_size']:,}, the same for every arm. Held-out loss: the "
        f"heads of {text['held_out_documents']} files never trained on, "
        f"{text['held_out_bytes']:,} bytes.",
        f"- Scale `{scale['name']}`: width {scale['width']}, {scale['steps']} steps of "
        f"{scale['batch_size']} x {scale['seq_len']} tokens, unless an arm says otherwise.",
    ]
    for machine in document["machines"]:
        hardware = ", ".join(f"{key} {value}" for key, value in machine["hardware"].items())
        versions = ", ".join(f"{key} {value}" for key, value in machine["versions"].items())
        said.append(f"- Machine: {hardware}; {versions}.")
    return ["\n".join(said), _arms(document)]


def _dates(document: Mapping[str, Any]) -> str:
    dates = sorted({run["date"] for run in document["runs"]})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"


def _arms(document: Mapping[str, Any]) -> str:
    rows = []
    for arm in document["arms"]:
        changes = {**arm["model"], **arm["settings"], **arm["options"]}
        if arm["width"] is not None:
            changes["width"] = arm["width"]
        said = ", ".join(f"`{name}` {_shown(value)}" for name, value in changes.items())
        rows.append(
            {"arm": arm["name"], "parameters": f"{arm['parameters']:,}", "set": said or "nothing"}
        )
    return table(rows)


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|")
