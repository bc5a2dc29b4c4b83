"""`longcat bench serve`: the engine beside transformers' generate, or a running server's load."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from longcat.cli.benchmarks.load.traffic import Traffic

TIMES = (
    "processor time of one thread, in turns; wall medians beside it; spread: middle half over the "
    "median"
)
NOTES = {
    "models": "random weights but for the shipped nano; bench is the preset, sparse has four times "
    "its experts",
    "prefill": "one prompt of fresh random tokens until its first token; % of the fastest product "
    "of the precision, in model operations",
    "decode": "one pass of the batch, from what 16 tokens more take after a prompt of 64; MB_read: "
    "weights that a pass reads, each chosen expert once; % of the fastest read; "
    "beside int8, transformers in bfloat16",
    "ragged": "8 requests at once, 16 to 512 tokens in, 16 to 128 out; transformers pads them to "
    "one batch; tokens/s counts what was asked for",
    "prefix": "first token of a prompt of 1,024, 928 of them in the prefix cache or none",
    "drafts": "bfloat16, 64 tokens after a prompt of 64, prefill included; % behind best: time "
    "beyond that of the best fixed number; replayed: all is "
    "computed, and what the random weights say is replaced",
    "quality": "bits per byte of held-out text",
}


def command(
    url: Annotated[
        str | None, typer.Option(help="A running server to load; without it, this machine.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            help="The folder for the results' file.",
            show_default="bench/results; with --url, none is written",
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Turns that each form gets.")] = 5,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="prefill, decode, ragged, prefix, drafts or quality; repeat for more.",
            show_default="all",
        ),
    ] = None,
    rows: Annotated[
        str,
        typer.Option(
            help='Only rows of this model and precision, as "bench float32" or "sparse".',
            show_default="all",
        ),
    ] = "",
    api_key: Annotated[
        str | None, typer.Option(envvar="LONGCAT_API_KEY", help="With --url: the server's key.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="With --url: which model.", show_default="the first one")
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="With --url: how many.")] = 64,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, help="With --url: how many at once.", show_default="8; 256 at a rate"),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="With --url: arrivals per second, at random moments.")
    ] = None,
    prompt_words: Annotated[int, typer.Option(min=1, help="With --url: of each prompt.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="With --url: of each answer.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, help="With --url: 0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="With --url: of prompts and arrivals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the document.")] = False,
) -> None:
    """Compare our engine with transformers' generate on a CPU, or load a running server (--url).

    Without --url: writes serve-cpu.json, part by part; parts that are not measured anew stay as
    they are. Without transformers only our own times are measured.
    With it: streams completions of random prompts, and reports time to first token, time per
    token, throughput and errors.

    Example: longcat bench serve --url http://127.0.0.1:8000 --requests 32 --concurrency 4
    """
    from longcat.cli.benchmarks import document

    if url is not None:
        if only or rows:
            raise typer.BadParameter(
                "--only and --rows choose what is measured here, without --url"
            )
        from longcat.cli.benchmarks.load import report
        from longcat.cli.benchmarks.load.traffic import Traffic

        traffic = Traffic(
            requests=requests,
            concurrency=concurrency or (8 if rate is None else 256),
            rate=rate,
            words=prompt_words,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        result = _load(url, api_key, model, traffic)
        if out is not None:
            document.write(out / "serve-load.json", result)
        if as_json:
            typer.echo(json.dumps(result, indent=2))
        else:
            report.show(result)
        if not result["ended_well"]:
            raise typer.Exit(1)
        return
    path = (out or Path("bench/results")) / "serve-cpu.json"
    result = _measure(path, rounds, only or [], rows)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
        return
    for line in _lines(result):
        typer.echo(line)
    typer.echo(f"written: {path}")


def _load(url: str, key: str | None, model: str | None, traffic: Traffic) -> dict[str, Any]:
    from longcat.cli.benchmarks.load import report
    from longcat.cli.benchmarks.load.call import Outcome, Target
    from longcat.cli.benchmarks.load.traffic import send
    from longcat.cli.ui.theme import make_console

    target = Target(url=url, key=key)
    target = replace(target, model=model or target.first_model())
    ended = 0
    with make_console(stderr=True).status("sending") as status:  # on a terminal only

        def count(outcome: Outcome) -> None:
            nonlocal ended
            ended += 1
            status.update(f"{ended} of {traffic.requests} requests ended")

        outcomes, seconds = send(target, traffic, count)
    return report.summarise(target, traffic, outcomes, seconds)


def _measure(path: Path, rounds: int, only: list[str], which: str) -> dict[str, Any]:
    """Measure part after part, and keep in the file whatever a model has given."""
    from longcat.cli.benchmarks import document, timing
    from longcat.cli.benchmarks.serve import parts
    from longcat.cli.benchmarks.train import transformers_missing

    wanted = parts.chosen(only, which)
    path.parent.mkdir(parents=True, exist_ok=True)  # before minutes of work, not after
    missing = transformers_missing()
    if missing:
        typer.echo(missing, err=True)
    result = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    with timing.pinned_threads(1):
        header: dict[str, Any] = {
            "command": "longcat bench serve",
            "times": TIMES,
            **timing.machine("cpu", "longcat-flash", "longcat-serve", "transformers"),
            "notes": NOTES,
        }
        for part in wanted:
            watch = parts.Stopwatch(rounds)
            earlier = result.get("measured", {}).get(part)
            measuring = parts.Measuring(rounds=rounds, compare=not missing, rows=which)
            for rows in parts.measure(part, measuring):
                tables = parts.merged(result, header, part, rows)
                anew = f"{earlier}; {which} anew: " if earlier and which else ""
                said = {**result.get("measured", {}), part: anew + watch.said()}
                measured = {
                    name: said[name]
                    for name, of_part in parts.TABLES.items()
                    if any(tables.get(table) for table in of_part)
                }
                result = {**header, "measured": measured, **tables}
                document.write(path, result)
            typer.echo(f"measured {part}", err=True)
    return result


def _lines(result: dict[str, Any]) -> list[str]:
    """The tables as plain columns, each under its name."""
    hardware = ", ".join(f"{key} {value}" for key, value in result["hardware"].items())
    lines = [hardware, result["times"]]
    lines += [f"{part}: {said}" for part, said in result["measured"].items()]
    for name, rows in result.items():
        if not isinstance(rows, list) or not rows:
            continue
        cells = [[key.replace("_", " ") for key in rows[0]]]
        cells += [[_cell(row.get(key, "")) for key in rows[0]] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["", name]
        for line in cells:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            lines.append("  " + "  ".join(padded).rstrip())
    return lines


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
