"""metrics.jsonl: one JSON object per optimizer step, flushed, cut back on resume."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_NAME = "metrics.jsonl"

# Every line has these. Lists have one entry per ScMoE layer. `r_g` and `router_similarity` are null
# on the steps between two measurements; `mtp_loss` and `mtp_acceptance` are null without an MTP
# head, and `mtp_ffn_experts_mean` where it has no mixture; `spike_loss` and `spike_norm` while the
# history is short; `alarms` is mostly []; `mfu` is null where no peak was measured.
FIELDS = (
    "step",
    "tokens",
    "loss",
    "bits_per_byte",
    "lr",
    "tokens_per_s",
    "mfu",
    "ffn_experts_mean",
    "ffn_experts_std",
    "expert_load_max",
    "expert_load",
    "r_g",
    "r_g_centred",
    "balance_alpha",
    "router_similarity",
    "grad_norm",
    "grad_rms",
    "epsilon_meets_gradient",
    "spike_loss",
    "spike_norm",
    "alarms",
    "hidden_rms",
    "z_loss",
    "balance_loss",
    "mtp_loss",
    "mtp_acceptance",
    "mtp_ffn_experts_mean",
    "memory_peak",
    "seconds",
    "cpu_seconds",
)
# What depends on the machine's speed and not on the mathematics.
TIMED_FIELDS = ("tokens_per_s", "mfu", "memory_peak", "seconds", "cpu_seconds")

Record = dict[str, Any]


class MetricsWriter:
    """Appends records to DIR/metrics.jsonl.

    Args:
        directory: the run.
        restored_step: last step of the snapshot the run continues from; later lines, and a line
            cut short when the process was killed, are removed. 0 starts an empty file.
    """

    def __init__(self, directory: Path, restored_step: int) -> None:
        self._path = directory / FILE_NAME
        kept = [r for r in read_metrics(directory) if r["step"] <= restored_step]
        temporary = self._path.with_name(f".{FILE_NAME}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_line(record) for record in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._path)
        self._file = self._path.open("a", encoding="utf-8")

    def write(self, record: Record) -> None:
        """Append one step.

        Raises:
            ValueError: when a field is missing: the names are a contract.
        """
        missing = [name for name in FIELDS if name not in record]
        if missing:
            raise ValueError(f"metrics: a record must have {missing}; got {sorted(record)}")
        self._file.write(_line(record))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(directory: Path) -> list[Record]:
    """All complete records of a run, in order; [] when there are none yet."""
    return list(_records(directory / FILE_NAME))


def _records(path: Path) -> Iterator[Record]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return  # killed in the middle of a line
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def _line(record: Record) -> str:
    """One line of strict JSON: numbers that are not finite become null."""
    return json.dumps({k: _finite(v) for k, v in record.items()}, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
