"""`longcat info`: a model's configuration and what follows from it."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_DIR",
            help="A preset (nano, nano-bytes, bench, longcat-flash) or a checkpoint directory.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show a model's sizes: parameters, activated per token, cache.

    Example: longcat info longcat-flash

    For scripts: longcat info longcat-flash --json
    """
    from longcat.flash.card import card
    from longcat.flash.config import FlashConfig
    from longcat.flash.presets import PRESETS

    if name in PRESETS:
        config = FlashConfig.preset(name)
    elif Path(name).is_dir():
        from longcat.flash.checkpoint.files import read_config

        config = FlashConfig.from_hf(read_config(Path(name)))
    else:
        raise ValueError(
            f"no model {name!r}: expected a preset ({', '.join(sorted(PRESETS))}) or a directory "
            "with a config.json"
        )
    if as_json:
        typer.echo(json.dumps(figures(name, config), indent=2))
        return
    from longcat.cli.ui.theme import make_console

    make_console().print(card(config, title=name))


def figures(name: str, config: Any) -> dict[str, Any]:
    """The card as plain numbers: parameters, and bytes of a bfloat16 cache per token."""
    from longcat.flash.accounting import count_parameters

    counted = count_parameters(config)
    return {
        "name": name,
        "total_parameters": counted.total_parameters,
        "activated_parameters": {
            "min": counted.activated_min,
            "mean": counted.activated_mean,
            "max": counted.activated_max,
        },
        "cache_bytes_per_token": counted.cache_bytes_per_token(),
        "mtp_parameters": counted.mtp_parameters,
        "config": config.to_hf(),
    }
