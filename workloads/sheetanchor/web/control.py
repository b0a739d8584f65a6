"""Requests that change something: the sender shows that it knows a password, which is never sent.

`GET /control` gives a nonce, and a request is signed with it. A nonce is good for one request, of one process, for at
most half a minute, and for a quarter at least: what was recorded on the way is of no use later or elsewhere, and no two
clocks have to agree.
"""

from __future__ import annotations

import hmac
import json
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI, HTTPException, Request

log = logging.getLogger(__name__)

NONCE_PATH: Final = "/control"
SIGNATURE_HEADER: Final = "X-Sheetanchor-Signature"
NONCE_LIFE_S: Final = 30.0
NONCE_GIVEN_S: Final = 15.0
"""A nonce is given to clients for this long: one that is given at the end of its life would be refused at once."""
BYTES_MAX: Final = 16 * 1024
_PURPOSE: Final = b"sheetanchor control requests, version 1"

Body = Mapping[str, Any]
Action = Callable[[Body], Awaitable[dict[str, Any]]]


class ControlRefused(Exception):
    """A request that is understood and not carried out; its text says why, in one line."""


def signature(password: str, nonce: str, path: str, body: bytes) -> str:
    """Sign a request.

    Args:
        password: What both sides know; a key of its own is derived from it.
        nonce: The receiver's present one.
        path: Path of the request.
        body: Its whole body.
    """
    key = hmac.digest(password.encode(), _PURPOSE, "sha256")
    return hmac.new(key, b"\n".join((nonce.encode(), path.encode(), body)), "sha256").hexdigest()


def password_in(path: Path) -> str:
    """Read a password from its file, "" if it cannot be read: then nothing is let in."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        log.error("control requests are refused: the password in %s cannot be read: %s", path, error)
        return ""


class ControlGate:
    """Decides which requests are carried out.

    Args:
        password: Reads the password at each request, since it may change; "" lets nothing in.
        clock: Monotonic seconds.
    """

    def __init__(self, password: Callable[[], str], clock: Callable[[], float] = time.monotonic) -> None:
        self._password, self._clock = password, clock
        self._made_s: dict[str, float] = {}
        """When each nonce that is good was made, the newest last; at most two are within their lives."""

    def nonce(self) -> str:
        """Give the nonce that the next request has to be signed with."""
        now_s = self._clock()
        self._forget_old(now_s)
        # One for all who ask: without the password no client can use it up, nor have many made.
        for nonce, made_s in reversed(self._made_s.items()):
            if now_s - made_s <= NONCE_GIVEN_S:
                return nonce
        self._made_s[made := secrets.token_hex(16)] = now_s
        return made

    def _forget_old(self, now_s: float) -> None:
        self._made_s = {nonce: made_s for nonce, made_s in self._made_s.items() if now_s - made_s <= NONCE_LIFE_S}

    def admits(self, given: str, path: str, body: bytes) -> bool:
        """Say whether a request is signed with the password and a nonce that is good, which is used up then."""
        password = self._password()
        self._forget_old(self._clock())
        if not password:
            return False
        for nonce in self._made_s:
            if hmac.compare_digest(signature(password, nonce, path, body).encode(), given.encode()):
                del self._made_s[nonce]
                return True
        return False


def add_control(app: FastAPI, gate: ControlGate, actions: Mapping[str, Action]) -> None:
    """Add the nonce's route, and one for each action.

    Args:
        app: The role's application.
        gate: What admits requests.
        actions: By path below `/control/`; each gets the JSON object of the request and gives that of the answer, or
            raises `ControlRefused`.
    """

    async def nonce() -> dict[str, str]:
        return {"nonce": gate.nonce()}

    app.add_api_route(NONCE_PATH, nonce)
    for name, action in actions.items():
        app.add_api_route(f"{NONCE_PATH}/{name}", _route(gate, action), methods=["POST"])


def _route(gate: ControlGate, action: Action) -> Callable[[Request], Awaitable[dict[str, Any]]]:
    async def act(request: Request) -> dict[str, Any]:
        raw = await _whole(request)
        path = request.url.path
        if not gate.admits(request.headers.get(SIGNATURE_HEADER, ""), path, raw):
            raise HTTPException(401, f"sign the request with the password and the nonce of GET {NONCE_PATH}")
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise HTTPException(422, "expected a JSON object")
        try:
            done = await action(body)
        except ControlRefused as error:
            log.warning("%s was not done: %s", path, error)
            raise HTTPException(409, str(error)) from error
        log.info("%s was done", path)
        return done

    return act


async def _whole(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BYTES_MAX:
            raise HTTPException(413, f"expected at most {BYTES_MAX} bytes")
    return bytes(body)
