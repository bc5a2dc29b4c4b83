"""What is told when a run does something that nobody wanted: a kind, and one sentence.

Alarms stand in metrics.jsonl on the line of their step, on the terminal and in the report.
"""

from typing import Any, Literal, TypedDict

Kind = Literal["balance", "corruption", "epsilon", "rollback", "spike"]


class Alarm(TypedDict):
    """One alarm of one step; `text` is a sentence without a full stop."""

    kind: Kind
    text: str


def counted(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per kind: how many there were, the first and the last step, and the first one's text."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        for alarm in record.get("alarms") or ():
            one = found.setdefault(
                alarm["kind"],
                {"kind": alarm["kind"], "count": 0, "first": record["step"], "text": alarm["text"]},
            )
            one["count"] += 1
            one["last"] = record["step"]
    return list(found.values())
