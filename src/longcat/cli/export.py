"""`longcat export`: a checkpoint rewritten for another program."""

import json
import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from longcat.cli.models import Model, find_model, torch_dtype

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class Format(StrEnum):
    """Whose form of a checkpoint to write."""

    hub = "hub"
    transformers5 = "transformers5"


def command(
    out: Annotated[Path, typer.Option(help="The directory to write.")],
    model: Model = None,
    format: Annotated[
        Format,
        typer.Option(
            help="hub: vLLM, SGLang, transformers 4.57. transformers5: transformers 5.x, which "
            "cannot read the hub form of a model with identity experts."
        ),
    ] = Format.hub,
    dtype: Annotated[
        str | None, typer.Option(help="f32, bf16, f16 or f64.", show_default="as stored")
    ] = None,
    max_shard_size: Annotated[
        str, typer.Option(help="Largest file, such as 500MB; more is split.")
    ] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a checkpoint in another format, tensor by tensor.

    Example: longcat export --format transformers5 --out exported
    """
    shard_bytes = size_in_bytes(max_shard_size)
    stored_as = None if dtype is None else torch_dtype(dtype)
    source = find_model(model)

    from longcat.flash.checkpoint import export_checkpoint

    export_checkpoint(
        source.directory,
        out,
        format=format.value,
        dtype=stored_as,
        max_shard_bytes=shard_bytes,
    )
    files = {path.name: path.stat().st_size for path in sorted(out.iterdir()) if path.is_file()}
    total = sum(files.values())
    if as_json:
        document = {
            "model": str(source.directory),
            "out": str(out),
            "format": format.value,
            "bytes": total,
            "files": files,
        }
        typer.echo(json.dumps(document, indent=2))
        return
    typer.echo(
        f"wrote {out}: {source.directory} in the {format.value} format, {total / 1e6:,.1f} MB in "
        f"{len(files)} files"
    )


def size_in_bytes(text: str) -> int:
    """5GB, 500MB, 1.5G or a plain number of bytes -> bytes; units are powers of 1000.

    Raises ValueError for anything else, and for less than one byte.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", text, re.IGNORECASE)
    size = 0 if found is None else int(float(found[1]) * _UNITS[found[2].upper()])
    if size < 1:
        raise ValueError(f"--max-shard-size must be a size such as 5GB or 500MB, got {text!r}")
    return size
