"""Moves a pipeline: requests the move by an annotation, and waits for its result in the status."""

from __future__ import annotations

import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor_operator.names import ANY_ZONE, EVACUATE_ANNOTATION, PAUSED_ANNOTATION, SWITCHOVER_ANNOTATION
from sheetanchor_operator.plugin.api import Api
from sheetanchor_operator.plugin.errors import (
    EXIT_CHANGED_NOTHING,
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOT_FOUND,
    EXIT_NOT_IN_TIME,
    EXIT_UNREACHABLE,
    PluginError,
)
from sheetanchor_operator.plugin.words import print_line

POLL_S: Final = 0.5
LOST: Final = ("silent", "failed")

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class MoveOptions:
    """What is asked for.

    Attributes:
        command: switchover, evacuate or return.
        zone: The zone; of a switchover the one to go to, "" for any.
        request_id: Id of the request, "" for a new one.
        dry_run: Check everything, the rights too, and change nothing.
    """

    command: str
    name: str
    zone: str
    request_id: str = ""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """A move that can be asked for.

    Attributes:
        annotation: The annotation that asks for it.
        value: Its value, None to take it away.
        version: Resource version of the pipeline that it was checked against.
        text: What it does, in one line.
    """

    options: MoveOptions
    annotation: str
    value: str | None
    version: str
    text: str


def prepare(api: Api, options: MoveOptions) -> Move:
    """Check a move against the pipeline as it is. The operator checks again, by what it knows of the pods.

    Raises:
        PluginError: There is no such pipeline or zone, or the move would change nothing.
    """
    pipeline = api.pipeline(options.name)
    metadata, status = pipeline["metadata"], pipeline.get("status") or {}
    notes = metadata.get("annotations") or {}
    if notes.get(PAUSED_ANNOTATION) == "true":
        raise PluginError(f"pipeline {options.name} is paused, so it cannot be moved", EXIT_CHANGED_NOTHING)
    evacuated = str(notes.get(EVACUATE_ANNOTATION, "")).partition("/")[0]
    request_id = options.request_id or f"kubectl-{uuid.uuid4().hex[:12]}"
    version = str(metadata.get("resourceVersion", ""))
    if options.command == "return":
        if evacuated != options.zone:
            found = f"zone {evacuated} is" if evacuated else "none is"
            message = f"zone {options.zone} of pipeline {options.name} is not evacuated: {found}"
            raise PluginError(message, EXIT_CHANGED_NOTHING)
        text = f"pods of {options.name} may run in zone {options.zone} again; what writes stays where it is"
        return Move(options, EVACUATE_ANNOTATION, None, version, text)
    _check_zone(options, status)
    if options.command == "evacuate":
        if status.get("evacuatedZone") == options.zone:
            raise PluginError(
                f"zone {options.zone} of pipeline {options.name} is evacuated already", EXIT_CHANGED_NOTHING
            )
        if evacuated and evacuated != options.zone:
            message = f"zone {evacuated} is evacuated already: kubectl reanchor return {options.name} {evacuated} first"
            raise PluginError(message, EXIT_CHANGED_NOTHING)
        text = f"writer, Redis master, processors and readers of {options.name} leave zone {options.zone}, and stay out"
        return Move(options, EVACUATE_ANNOTATION, f"{options.zone}/{request_id}", version, text)
    active = status.get("activeZone")
    if options.zone and options.zone == active:
        message = f"pipeline {options.name} is written from zone {active} already"
        raise PluginError(message, EXIT_CHANGED_NOTHING)
    to = f"to zone {options.zone}" if options.zone else f"to another zone than {active or 'the present one'}"
    text = f"the writer of {options.name} moves {to}; the Redis master leaves zone {active} if it is there"
    return Move(options, SWITCHOVER_ANNOTATION, f"{options.zone or ANY_ZONE}/{request_id}", version, text)


def _check_zone(options: MoveOptions, status: Object) -> None:
    rows = {str(row.get("name")): row for row in status.get("zones") or ()}
    if not options.zone or not rows:
        return
    if options.zone not in rows:
        message = f"pipeline {options.name} has no zone {options.zone!r}: it has {', '.join(sorted(rows))}"
        raise PluginError(message, EXIT_NOT_FOUND)
    lost = sorted(name for name, row in rows.items() if row.get("health") in LOST)
    if options.command == "switchover" and options.zone in lost:
        raise PluginError(f"zone {options.zone} is {rows[options.zone]['health']}: name another", EXIT_CHANGED_NOTHING)
    others = [name for name in lost if name != options.zone]
    if options.command == "evacuate" and others:
        message = f"zone {', '.join(others)} is lost: leaving zone {options.zone} as well would take two zones away"
        raise PluginError(message, EXIT_CHANGED_NOTHING)


def confirm(move: Move) -> None:
    """Ask the person at the terminal.

    Raises:
        PluginError: The answer is not yes.
    """
    print_line(move.text, sys.stderr)
    print("continue? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise PluginError("nothing was changed", EXIT_CHANGED_NOTHING)


def submit(api: Api, move: Move) -> Object:
    """Write the annotation; gives the pipeline as it is then.

    Raises:
        PluginError: It may not be written, or the pipeline has changed since it was checked.
    """
    options = move.options
    return api.annotate(options.name, {move.annotation: move.value}, move.version, dry_run=options.dry_run)


def wait(api: Api, move: Move, timeout_s: float) -> Object:
    """Wait until the operator has done what is asked, or says that it does not; gives `status.failover`.

    Raises:
        PluginError: Not within the time.
    """
    begun_s, printed = time.monotonic(), ""
    while True:
        words = "not seen by the operator yet"
        try:
            status = api.pipeline(move.options.name).get("status") or {}
        except PluginError as error:
            if error.exit_code != EXIT_UNREACHABLE:
                raise
            status, words = {}, str(error)
        found = dict(status.get("failover") or {})
        if move.value is None:
            if status and "evacuatedZone" not in status:
                return found
        elif found.get("request") == move.value:
            if found.get("phase") != "Running":
                return found
            words = f"step {found.get('step')}: {found.get('message', '')}"
        if words != printed:
            print_line(words, sys.stderr)
            printed = words
        if time.monotonic() - begun_s > timeout_s:
            message = f"not done within {timeout_s:g} s: {words}; it continues, see kubectl reanchor status"
            raise PluginError(message, EXIT_NOT_IN_TIME)
        time.sleep(POLL_S)


def exit_code_of(move: Move, failover: Object) -> int:
    """Give the exit code of a move that has ended."""
    if move.value is None or failover.get("phase") == "Done":
        return EXIT_DONE
    return EXIT_CHANGED_NOTHING if failover.get("phase") == "Refused" else EXIT_FAILED
