"""The tables and texts that `kubectl reanchor` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TextIO

from sheetanchor.runtime.plain_text import clean
from sheetanchor_operator.api.timestamps import micros_of

Object = Mapping[str, Any]

SECOND_US: Final = 1_000_000
MESSAGE_LENGTH_MAX: Final = 70
LAST_SHOWN: Final = 5
ROWS: Final = ("NAME", "PHASE", "RESULT", "TRIGGER", "AGE", "TOOK", "EPOCH", "MESSAGE")

BAD_WHEN: Final = {
    "ReanchorInProgress": "",
    "FailoverInProgress": "True",
    "ReanchorThrottled": "True",
    "Paused": "True",
}
"""Conditions that report no problem when they are not True; of the others every value but True is shown."""


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print lines. Text from objects, servers and helpers must not move the terminal's cursor."""
    for line in text.split("\n"):
        print(clean(line), file=file)


def escaped(text: str) -> str:
    """Give JSON in whose strings the control characters of terminals are escaped."""
    return "".join(sign if sign.isprintable() or sign == "\n" else _escape(sign) for sign in text)


def _escape(sign: str) -> str:
    pairs = sign.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{pairs[at : at + 4]}" for at in range(0, len(pairs), 4))


def age(at: str | None, now_us: int) -> str:
    """Give how long ago a time was, as kubectl does; "-" for none."""
    if not at:
        return "-"
    seconds = max(0, now_us - micros_of(at)) // SECOND_US
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns; the last one is not padded."""
    rows = [[clean(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def row_of(reanchor: Object, now_us: int, message_max: int = MESSAGE_LENGTH_MAX) -> list[str]:
    """Give the cells of one re-anchor."""
    metadata, spec, status = reanchor["metadata"], reanchor.get("spec") or {}, reanchor.get("status") or {}
    message = str(status.get("message") or spec.get("reason") or "")
    return [
        metadata["name"],
        status.get("phase") or "Pending",
        status.get("result") or "-",
        spec.get("trigger") or "-",
        age(metadata.get("creationTimestamp"), now_us),
        f"{status['durationSeconds']:.1f}s" if "durationSeconds" in status else "-",
        _epochs(status),
        message if len(message) <= message_max else message[: message_max - 1] + "…",
    ]


def _epochs(status: Object) -> str:
    before, after = status.get("epochBefore"), status.get("epochAfter")
    if after is None:
        return "-"
    return str(after) if before in (None, after) else f"{before}→{after}"


def history(reanchors: Sequence[Object], now_us: int) -> str:
    """Render re-anchors as a table, newest first."""
    if not reanchors:
        return "No re-anchors yet."
    return table([ROWS, *(row_of(one, now_us) for one in reversed(reanchors))])


def overview(pipelines: Sequence[Object], now_us: int) -> str:
    """Render pipelines as a table."""
    rows = [["NAME", "PHASE", "READY", "ANCHORED", "EPOCH", "PREDICTED", "LAST RE-ANCHOR"]]
    for one in pipelines:
        status = one.get("status") or {}
        last = status.get("lastReanchor") or {}
        last_cell = f"{last.get('result') or 'running'} {age(last.get('startedAt'), now_us)} ago" if last else "-"
        rows.append(
            [
                one["metadata"]["name"],
                status.get("phase") or "Pending",
                status.get("ready") or "-",
                condition(status, "Anchored").get("status", "Unknown"),
                str(status.get("epoch", "-")),
                age(status.get("lastPredictionAt"), now_us),
                last_cell,
            ]
        )
    return table(rows)


def condition(status: Object, kind: str) -> Object:
    """Find a condition, {} if it is not there."""
    return next((one for one in status.get("conditions") or () if one.get("type") == kind), {})


def summary(pipeline: Object, reanchors: Sequence[Object], now_us: int) -> str:
    """Render the state of a pipeline."""
    metadata, status = pipeline["metadata"], pipeline.get("status") or {}
    anchored = condition(status, "Anchored")
    facts = [
        ["phase", f"{status.get('phase') or 'Pending'}, {status.get('ready') or '0/0'} pods ready"],
        ["anchored", _anchored_words(anchored)],
        ["epoch", f"{status.get('epoch', '-')} (term {status.get('term', '-')})"],
        ["prediction", _prediction_words(status, now_us)],
        ["active zone", status.get("activeZone") or "-"],
    ]
    parts = [f"{metadata['name']} (namespace {metadata['namespace']})", _indented(table(facts))]
    symbols = [_symbol_cells(one, now_us) for one in status.get("symbols") or ()]
    if symbols:
        parts += ["Symbols", _indented(table([["NAME", "STATE", "EPOCH", "TERM", "REASON"], *symbols]))]
    notes = [one for one in status.get("conditions") or () if is_worth_a_line(one)]
    if notes:
        parts += [
            "Conditions",
            *(f"  {one['type']}={one['status']} {one['reason']}: {one['message']}" for one in notes),
        ]
    parts += ["Last re-anchors", _indented(history(reanchors[-LAST_SHOWN:], now_us))]
    return "\n".join(parts)


def is_worth_a_line(one: Object) -> bool:
    """Say whether a condition reports a problem, or a run in progress."""
    if one["type"] in BAD_WHEN:
        return bool(one.get("status") == "True")
    return bool(one.get("status") != "True")


def _anchored_words(anchored: Object) -> str:
    words = {"True": "yes", "False": "no"}.get(anchored.get("status", ""), "unknown")
    return words if words == "yes" or not anchored.get("message") else f"{words}: {anchored['message']}"


def _prediction_words(status: Object, now_us: int) -> str:
    at = status.get("lastPredictionAt")
    if not at:
        return "none yet"
    return f"{age(at, now_us)} ago, model {status.get('model') or 'unknown'}"


def _symbol_cells(one: Object, now_us: int) -> list[str]:
    since = one.get("suspectSince")
    state = f"{one.get('state', 'unknown')}{' for ' + age(since, now_us) if since else ''}"
    return [one["name"], state, str(one.get("epoch", "-")), str(one.get("term", "-")), one.get("reason") or ""]


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))
