"""Asks for a re-anchor, and waits for what becomes of it."""

from __future__ import annotations

import getpass
import json
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor.reanchor_object import digest, object_name
from sheetanchor_operator.names import PAUSED_ANNOTATION
from sheetanchor_operator.plugin.api import Api
from sheetanchor_operator.plugin.errors import (
    EXIT_CHANGED_NOTHING,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOT_FOUND,
    EXIT_NOT_IN_TIME,
    PluginError,
)
from sheetanchor_operator.plugin.words import condition

FINAL_PHASES: Final = ("Succeeded", "Failed", "Skipped")
POLL_S: Final = 0.5
UNSEEN_TOLD_S: Final = 2.0
UNSEEN_HINT_S: Final = 10.0
"""An operator that is there acts within a second or two."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for.

    Attributes:
        symbol: "" for all of the pipeline's.
        request_id: "" makes a new one; the same id twice is one request.
    """

    name: str
    symbol: str = ""
    reason: str = ""
    request_id: str = ""
    dry_run: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for: its id, and the names of the ReAnchors that the operator makes of it."""

    request_id: str
    names: tuple[str, ...]
    note: str = ""


def ask(api: Api, wanted: Wanted) -> Asked:
    """Write the request into the pipeline's annotation.

    Raises:
        PluginError: There is no such pipeline or symbol, nothing would come of it, or it is not allowed.
    """
    pipeline = api.pipeline(wanted.name)
    symbols = _symbols(pipeline, wanted)
    _check_if_awake(pipeline, wanted)
    request_id = wanted.request_id or f"kubectl-{uuid.uuid4().hex[:12]}"
    entries: Object = {"id": request_id, "reason": wanted.reason or "requested with kubectl reanchor"}
    entries["by"] = api.who_am_i() or getpass.getuser()
    optional = {"symbol": wanted.symbol, "dryRun": wanted.dry_run, "force": wanted.force}
    entries.update({key: value for key, value in optional.items() if value})
    api.annotate(wanted.name, json.dumps(entries, ensure_ascii=False))
    names = tuple(object_name(wanted.name, symbol, f"a{digest(request_id, symbol)}") for symbol in symbols)
    return Asked(request_id, names, _throttle_note(pipeline, wanted))


def _symbols(pipeline: Object, wanted: Wanted) -> Sequence[str]:
    symbols: list[str] = pipeline["spec"]["symbols"]
    if wanted.symbol and wanted.symbol not in symbols:
        told = f"pipeline {wanted.name} has no symbol {wanted.symbol}: it has {', '.join(symbols)}"
        raise PluginError(told, EXIT_NOT_FOUND)
    return [wanted.symbol] if wanted.symbol else symbols


def _check_if_awake(pipeline: Object, wanted: Wanted) -> None:
    notes, spec = pipeline["metadata"].get("annotations") or {}, pipeline["spec"]
    if notes.get(PAUSED_ANNOTATION) == "true":
        told = f"pipeline {wanted.name} is paused: kubectl annotate pp {wanted.name} {PAUSED_ANNOTATION}- ends that"
        raise PluginError(told, EXIT_CHANGED_NOTHING)
    if wanted.force:
        return
    if spec.get("suspend"):
        raise PluginError(f"pipeline {wanted.name} is suspended: set spec.suspend to false first", EXIT_CHANGED_NOTHING)
    if (spec.get("maintenance") or {}).get("enabled"):
        reason = spec["maintenance"].get("reason") or "no reason given"
        raise PluginError(f"pipeline {wanted.name} is in maintenance: {reason}", EXIT_CHANGED_NOTHING)
    if not (spec.get("reanchor") or {}).get("enabled", True):
        told = f"re-anchoring of pipeline {wanted.name} is switched off (spec.reanchor.enabled); --force overrides that"
        raise PluginError(told, EXIT_CHANGED_NOTHING)


def _throttle_note(pipeline: Object, wanted: Wanted) -> str:
    throttled = condition(pipeline.get("status") or {}, "ReanchorThrottled")
    if throttled.get("status") != "True" or wanted.force:
        return ""
    return f"re-anchors are throttled now: {throttled.get('reason')}: {throttled.get('message')}"


def wait(api: Api, asked: Asked, timeout_s: float) -> list[Object]:
    """Wait until every ReAnchor of a request is final, telling on stderr what it waits for.

    Raises:
        PluginError: Not within the time; says why, as far as that can be seen.
    """
    deadline_s = time.monotonic() + timeout_s
    begun_s, told = time.monotonic(), ""
    while True:
        found = {name: api.reanchor(name) for name in asked.names}
        if all(one is not None and _is_final(one) for one in found.values()):
            return [one for one in found.values() if one is not None]
        words = _waits_for(found, time.monotonic() - begun_s)
        seen = any(one is not None for one in found.values())
        if words != told and (seen or time.monotonic() - begun_s > UNSEEN_TOLD_S):
            print(words, file=sys.stderr)
            told = words
        if time.monotonic() > deadline_s:
            told = f"not done within {timeout_s:g} s: {words}; the request stays: kubectl get reanchors"
            raise PluginError(told, EXIT_NOT_IN_TIME)
        time.sleep(POLL_S)


def _is_final(one: Object) -> bool:
    return (one.get("status") or {}).get("phase") in FINAL_PHASES


def _waits_for(found: dict[str, Object | None], waited_s: float) -> str:
    words = []
    for name, one in found.items():
        if one is None:
            late = " (is the operator running? it acts within seconds)" if waited_s > UNSEEN_HINT_S else ""
            words.append(f"{name}: not seen by the operator yet{late}")
            continue
        status = one.get("status") or {}
        if not _is_final(one):
            message = status.get("message")
            words.append(f"{name}: {status.get('phase') or 'Pending'}{': ' + message if message else ''}")
    return "; ".join(words)


def exit_code_of(reanchors: Sequence[Object]) -> int:
    """Say in a number what became of a request: the worst of its ReAnchors counts."""
    phases = {(one.get("status") or {}).get("phase") for one in reanchors}
    if "Failed" in phases:
        return EXIT_FAILED
    return EXIT_CHANGED_NOTHING if "Skipped" in phases else EXIT_DONE
