"""Requests a re-anchor, and waits for its result."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor.policy.reanchor_object import REQUESTED_BY_LENGTH_MAX, Owner, ReAnchorRequest, digest, reanchor_object
from sheetanchor.runtime.plain_text import one_line
from sheetanchor_operator.names import PAUSED_ANNOTATION
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
from sheetanchor_operator.plugin.words import condition, print_line

FINAL_PHASES: Final = ("Succeeded", "Failed", "Skipped")
ACTION: Final = "immediate_reanchor"
POLL_S: Final = 0.5
MESSAGE_LENGTH_MAX: Final = 1_000
UNSEEN: Final = "not seen by the operator yet"
UNSEEN_REPORTED_S: Final = 2.0
UNSEEN_HINT_S: Final = 10.0
"""A running operator acts within a second or two."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """A request for a re-anchor.

    Attributes:
        symbol: Trading pair, "" for all of the pipeline's.
        request_id: Id of the request, "" for a new one; the same id twice is one request.
    """

    name: str
    symbol: str = ""
    reason: str = ""
    request_id: str = ""
    dry_run: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class SubmittedRequest:
    """A request that was made: its id, and the names of its ReAnchors."""

    request_id: str
    names: tuple[str, ...]
    note: str = ""


def submit(api: Api, options: RequestOptions) -> SubmittedRequest:
    """Create a ReAnchor for each symbol.

    Names are derived from the request's id: requested twice with the same id, a symbol has one ReAnchor.

    Raises:
        PluginError: There is no such pipeline or symbol, the request would have no effect, or it is not allowed.
    """
    pipeline = api.pipeline(options.name)
    symbols = _symbols(pipeline, options)
    _check_if_awake(pipeline, options)
    request_id = options.request_id or f"kubectl-{uuid.uuid4().hex[:12]}"
    owner = Owner(options.name, api.namespace, pipeline["metadata"].get("uid", ""))
    by = api.whoami()
    manifests = [reanchor_object(owner, _ask_for(symbol, request_id, by, options)) for symbol in symbols]
    notes = [_throttle_note(pipeline, options)]
    for done, manifest in enumerate(manifests):
        try:
            notes.append(_create(api, manifest, request_id))
        except PluginError as error:
            if not done:
                raise
            made = ", ".join(one["metadata"]["name"] for one in manifests[:done])
            raise PluginError(f"{error}; already requested: {made}", error.exit_code) from error
    names = tuple(str(one["metadata"]["name"]) for one in manifests)
    return SubmittedRequest(request_id, names, "; ".join(filter(None, notes)))


def _ask_for(symbol: str, request_id: str, by: str, options: RequestOptions) -> ReAnchorRequest:
    return ReAnchorRequest(
        symbol=symbol,
        suffix=f"m{digest(request_id, symbol)}",
        action=ACTION,
        reason=options.reason or "requested with kubectl reanchor",
        trigger="manual",
        # An admission policy may compare it with the caller: a shortened name would be another user's.
        requested_by=by if len(by) <= REQUESTED_BY_LENGTH_MAX else "",
        at_us=0,  # 0 means the time of creation, by the API server's clock
        request_id=request_id,
        dry_run=options.dry_run,
        force=options.force,
    )


def _create(api: Api, manifest: Object, request_id: str) -> str:
    """Create a ReAnchor; gives a note if it exists already, from the same request."""
    if api.create_reanchor(manifest) is not None:
        return ""
    name = manifest["metadata"]["name"]
    there = api.reanchor(name)
    if there is not None and _is_same_request(there, manifest):
        return f"request {request_id} was made before, as {name}"
    raise PluginError(f"there is another ReAnchor named {name}: use another --request-id", EXIT_FAILED)


def _is_same_request(there: Object, manifest: Object) -> bool:
    return all(there["spec"].get(name) == manifest["spec"].get(name) for name in ("pipeline", "symbol", "requestID"))


def _symbols(pipeline: Object, options: RequestOptions) -> Sequence[str]:
    symbols: list[str] = pipeline["spec"]["symbols"]
    if options.symbol and options.symbol not in symbols:
        message = f"pipeline {options.name} has no symbol {options.symbol}: it has {', '.join(symbols)}"
        raise PluginError(message, EXIT_NOT_FOUND)
    return [options.symbol] if options.symbol else symbols


def _check_if_awake(pipeline: Object, options: RequestOptions) -> None:
    notes, spec = pipeline["metadata"].get("annotations") or {}, pipeline["spec"]
    if notes.get(PAUSED_ANNOTATION) == "true":
        message = (
            f"pipeline {options.name} is paused: kubectl annotate pp {options.name} {PAUSED_ANNOTATION}- ends that"
        )
        raise PluginError(message, EXIT_CHANGED_NOTHING)
    if options.force:
        return
    if spec.get("suspend"):
        raise PluginError(
            f"pipeline {options.name} is suspended: set spec.suspend to false, or use --force", EXIT_CHANGED_NOTHING
        )
    if (spec.get("maintenance") or {}).get("enabled"):
        reason = spec["maintenance"].get("reason") or "no reason given"
        message = f"pipeline {options.name} is in maintenance: {reason}; --force overrides that"
        raise PluginError(message, EXIT_CHANGED_NOTHING)
    if not (spec.get("reanchor") or {}).get("enabled", True):
        message = f"re-anchoring of pipeline {options.name} is disabled (spec.reanchor.enabled); --force overrides that"
        raise PluginError(message, EXIT_CHANGED_NOTHING)


def _throttle_note(pipeline: Object, options: RequestOptions) -> str:
    throttled = condition(pipeline.get("status") or {}, "ReanchorThrottled")
    if throttled.get("status") != "True" or options.force:
        return ""
    return f"re-anchors are throttled now: {throttled.get('reason')}: {throttled.get('message')}"


def wait(api: Api, submitted: SubmittedRequest, timeout_s: float) -> list[Object]:
    """Wait until every ReAnchor of a request is final, printing on stderr what it waits for.

    Raises:
        PluginError: Not within the time, or one was deleted; says why, as far as that can be seen.
    """
    begun_s, printed = time.monotonic(), ""
    final: dict[str, Object] = {}
    while True:
        waited_s = time.monotonic() - begun_s
        words = _poll(api, submitted, final, waited_s)
        if len(final) == len(submitted.names):
            return [final[name] for name in submitted.names]
        if words != printed and (waited_s > UNSEEN_REPORTED_S or UNSEEN not in words):
            print_line(words, sys.stderr)
            printed = words
        if waited_s > timeout_s:
            message = f"not done within {timeout_s:g} s: {words}; the request stays, see kubectl get reanchors"
            raise PluginError(message, EXIT_NOT_IN_TIME)
        time.sleep(POLL_S)


def _poll(api: Api, submitted: SubmittedRequest, final: dict[str, Object], waited_s: float) -> str:
    """Read the ReAnchors that are not final yet and note those that are now; gives a text of what is waited for."""
    words = []
    for name in submitted.names:
        if name in final:
            continue
        try:
            one = api.reanchor(name)
        except PluginError as error:
            if error.exit_code != EXIT_UNREACHABLE:
                raise
            words.append(str(error))  # the server may answer the next time; `--timeout` bounds the tries
            continue
        if one is None:
            raise PluginError(f"reanchor/{name} was deleted before it ended", EXIT_FAILED)
        if _is_final(one):
            final[name] = one
        else:
            words.append(_waits_for(name, one, waited_s))
    return "; ".join(words)


def _is_final(one: Object) -> bool:
    return (one.get("status") or {}).get("phase") in FINAL_PHASES


def _waits_for(name: str, one: Object, waited_s: float) -> str:
    status = one.get("status") or {}
    if "phase" not in status:
        late = " (is the operator running? it acts within seconds)" if waited_s > UNSEEN_HINT_S else ""
        return f"{name}: {UNSEEN}{late}"
    message = one_line(str(status.get("message") or ""), MESSAGE_LENGTH_MAX)
    return f"{name}: {status['phase']}{': ' + message if message else ''}"


def exit_code_of(reanchors: Sequence[Object]) -> int:
    """Give the exit code of a request: that of the worst of its ReAnchors."""
    phases = {(one.get("status") or {}).get("phase") for one in reanchors}
    if "Failed" in phases:
        return EXIT_FAILED
    return EXIT_CHANGED_NOTHING if "Skipped" in phases else EXIT_DONE
