"""The text messages of a WebSocket connection: subscriptions and properties, answers and errors. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from sheetanchor.errors import shortened
from sheetanchor.simulator.playback.script import KINDS

STREAMS_MAX: Final = 1_024
"""Most streams of one connection."""

_METHODS: Final = ("SUBSCRIBE", "UNSUBSCRIBE", "LIST_SUBSCRIPTIONS", "SET_PROPERTY", "GET_PROPERTY")
_ID_TEXT: Final = re.compile(r"[A-Za-z0-9_-]{1,36}")
_STREAM: Final = re.compile(r"[^\x00-/:-`{-\x7f\s]{1,20}@([A-Za-z0-9_@:+-]{1,30})")
"""Digits, lower-case letters, and letters of scripts without case."""


UNKNOWN_PROPERTY: Final = 0
NO_BOOLEAN: Final = 1
INVALID_REQUEST: Final = 2
INVALID_JSON: Final = 3


@dataclass(slots=True)
class Subscriptions:
    """The subscriptions of one connection, in the order in which they were requested."""

    streams: dict[str, None] = field(default_factory=dict)
    properties: dict[str, bool] = field(default_factory=lambda: {"combined": False})


class _Refused(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def is_stream_name(name: object) -> bool:
    """Say whether a value has the form of a stream's name: lower-case symbol, `@`, type."""
    return isinstance(name, str) and _STREAM.fullmatch(name) is not None


def unserved_type(name: str) -> str:
    """Give the type of a stream if it is not served, else "": without an error it would look like a quiet market."""
    found = _STREAM.fullmatch(name)
    return found[1] if found is not None and found[1] not in KINDS else ""


def not_served(stream_type: str) -> str:
    """Make the error about a stream type that is not served."""
    return f"no stream of type {stream_type!r} is served here: expected one of {', '.join(KINDS)}"


def answer(text: str, subscriptions: Subscriptions) -> str:
    """Carry out one request and give the answer as JSON.

    Args:
        text: What the client sent.
        subscriptions: The connection's; a request may change them.
    """
    try:
        request = json.loads(text)
    except RecursionError:
        return _dump({"code": INVALID_JSON, "msg": "Invalid JSON: recursion limit exceeded"})
    except ValueError as error:
        place = f"line {getattr(error, 'lineno', 1)} column {getattr(error, 'colno', 1)}"
        return _dump({"code": INVALID_JSON, "msg": f"Invalid JSON: expected value at {place}"})
    request_id: Any = None
    try:
        if not isinstance(request, dict):
            raise _Refused(INVALID_REQUEST, "Invalid request: expected an object")  # noqa: TRY301
        request_id = _id(request)
        return _dump({"result": _carry_out(request, subscriptions), "id": request_id})
    except _Refused as refusal:
        body: dict[str, Any] = {"code": refusal.code, "msg": str(refusal)}
        if request_id is not None:
            body["id"] = request_id
        return _dump(body)


def _dump(body: dict[str, Any]) -> str:
    return json.dumps(body, separators=(",", ":"))


def _id(request: dict[str, Any]) -> int | str | None:
    value = request.get("id")
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63:
        return value
    if isinstance(value, str) and _ID_TEXT.fullmatch(value):
        return value
    raise _Refused(INVALID_REQUEST, "Invalid request: request ID must be an unsigned integer")


def _carry_out(request: dict[str, Any], subscriptions: Subscriptions) -> Any:
    if "method" not in request:
        raise _Refused(INVALID_REQUEST, "Invalid request: missing field `method`")
    method = request["method"]
    if not isinstance(method, str) or method not in _METHODS:
        raise _Refused(
            INVALID_REQUEST,
            f"Invalid request: unknown variant `{shortened(str(method), 100)}`, expected one of {', '.join(_METHODS)}",
        )
    params = request.get("params", [])
    if not isinstance(params, list):
        raise _Refused(INVALID_REQUEST, "Invalid request: params must be an array")
    if method == "LIST_SUBSCRIPTIONS":
        if params:
            raise _Refused(INVALID_REQUEST, "Invalid request: too many parameters")
        return list(subscriptions.streams)
    if method in ("SUBSCRIBE", "UNSUBSCRIBE"):
        return _change(method, params, subscriptions)
    return _property(method, params, subscriptions)


def _change(method: str, params: list[Any], subscriptions: Subscriptions) -> None:
    if not params:
        raise _Refused(INVALID_REQUEST, "Invalid request: missing field `params`")
    for name in params:
        if not is_stream_name(name):
            raise _Refused(INVALID_REQUEST, f"Invalid request: invalid stream name {shortened(repr(name), 100)}")
        if unserved_type(name) and method == "SUBSCRIBE":
            raise _Refused(INVALID_REQUEST, f"Invalid request: {not_served(unserved_type(name))}")
    if method == "UNSUBSCRIBE":
        for name in params:
            subscriptions.streams.pop(name, None)
        return
    if len(subscriptions.streams.keys() | set(params)) > STREAMS_MAX:
        raise _Refused(INVALID_REQUEST, f"Invalid request: more than {STREAMS_MAX} streams on one connection")
    subscriptions.streams.update(dict.fromkeys(params))


def _property(method: str, params: list[Any], subscriptions: Subscriptions) -> bool | None:
    takes = 2 if method == "SET_PROPERTY" else 1
    if not params or not isinstance(params[0], str):
        raise _Refused(INVALID_REQUEST, "Invalid request: property name must be a string")
    if len(params) > takes:
        raise _Refused(INVALID_REQUEST, "Invalid request: too many parameters")
    name = params[0]
    if name not in subscriptions.properties:
        raise _Refused(UNKNOWN_PROPERTY, "Unknown property")
    if method == "GET_PROPERTY":
        return subscriptions.properties[name]
    if len(params) < takes or not isinstance(params[1], bool):
        raise _Refused(NO_BOOLEAN, "Invalid value type: expected Boolean")
    subscriptions.properties[name] = params[1]
    return None
