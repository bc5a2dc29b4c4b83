"""The report's section on what was watched: bounds met or not, alarms, the router's state."""

from collections.abc import Sequence
from html import escape

from longcat.train.charts import line_chart
from longcat.train.metrics import Record
from longcat.train.summary import Summary
from longcat.train.watch.load import LOAD_LIMIT, MEAN_LIMIT, SETTLED, WINDOW

TITLE = "What was watched"
NOTE = (
    "Bounds on the controller's work, per layer; alarms with the step of the first; how alike the "
    "router's rows are (mean pairwise cosine: high where the balance loss rules)."
)


def body(summary: Summary, records: Sequence[Record]) -> str:
    """HTML below the section's title."""
    return _bounds(summary) + _alarms(summary) + _similarity(records)


def words(met: bool | None) -> str:
    """met, not met, or why nothing can be said."""
    return {True: "met", False: "not met", None: "the run is too short to say"}[met]


def _bounds(summary: Summary) -> str:
    found = summary["balance"]
    if found["load_met"] is None:
        return ""
    target = summary["ffn_experts_target"]
    rows = [
        (
            f"heaviest expert over the last tenth, at most {LOAD_LIMIT:g} times the mean",
            _listed(found["expert_load_max"], "{:.2f}")
            + f" (single steps up to {max(found['expert_load_max_step']):.2f})",
            words(found["load_met"]),
        ),
        (
            f"FFN experts within {MEAN_LIMIT:.0%} of {target:g}, any {WINDOW} steps after step "
            f"{SETTLED}",
            _listed(found["window_deviation"], "{:.2%}"),
            words(found["window_met"]),
        ),
    ]
    if found["held_out_deviation"] is not None:
        what = f"FFN experts within {MEAN_LIMIT:.0%} of {target:g}, held-out text"
        figure = _listed(found["held_out_deviation"], "{:.2%}")
        rows.append((what, figure, words(found["held_out_met"])))
    return "<table><tr><th>bound</th><th>layers</th><th></th></tr>" + _rows(rows) + "</table>"


def _alarms(summary: Summary) -> str:
    if not summary["alarms"]:
        return "<p>No alarm was raised.</p>"
    rows = [
        (a["kind"], f"{a['count']:,}", f"{a['first']:,} to {a['last']:,}", a["text"])
        for a in summary["alarms"]
    ]
    head = "<tr><th>alarm</th><th>times</th><th>steps</th><th>the first one</th></tr>"
    return f"<table>{head}{_rows(rows)}</table>"


def _similarity(records: Sequence[Record]) -> str:
    measured = [r for r in records if r.get("router_similarity")]
    layers = max((len(r["router_similarity"]) for r in measured), default=0)
    if not layers:
        return ""
    series = {
        f"router similarity, layer {i + 1}": [
            (float(r["tokens"]), r["router_similarity"][i])
            for r in measured
            if i < len(r["router_similarity"]) and r["router_similarity"][i] is not None
        ]
        for i in range(layers)
    }
    return line_chart(series, x_label="tokens", limits=(-0.2, 1.0))


def _rows(rows: Sequence[tuple[str, ...]]) -> str:
    return "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )


def _listed(values: Sequence[float] | None, form: str) -> str:
    return ", ".join(form.format(v) for v in values) if values else ""
