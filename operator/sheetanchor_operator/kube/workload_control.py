"""Signed requests to pods that change something: have a processor take a term, have a Redis master hand over."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from sheetanchor.errors import shortened
from sheetanchor.web.control import NONCE_PATH, SIGNATURE_HEADER, signature
from sheetanchor_operator.names import HTTP_PORT

TIMEOUT_S: Final = 12.0
"""A hand-over of Redis takes 8 s at most."""

BYTES_MAX: Final = 16 * 1024
TEXT_MAX: Final = 300


class ControlFailed(Exception):
    """A request was not carried out, as far as is known; says why in one line."""


async def send_control(address: str, action: str, body: Mapping[str, Any], password: str) -> None:
    """Send a signed request to a pod.

    Args:
        address: IP of the pod.
        action: Path below `/control/`.
        body: What to do.
        password: What the pod knows too; it is not sent.

    Raises:
        ControlFailed: The pod refuses, or does not answer.
    """
    host = f"[{address}]" if ":" in address else address
    origin, path = f"http://{host}:{HTTP_PORT}", f"{NONCE_PATH}/{action}"
    raw = json.dumps(dict(body)).encode()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
            nonce = await _nonce(session, f"{origin}{NONCE_PATH}")
            headers = {SIGNATURE_HEADER: signature(password, nonce, path, raw), "Content-Type": "application/json"}
            async with session.post(f"{origin}{path}", data=raw, headers=headers, allow_redirects=False) as response:
                if response.status != 200:
                    raise ControlFailed(_refusal(response.status, await response.content.read(BYTES_MAX)))
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        raise ControlFailed(f"it does not answer: {error or type(error).__name__}") from error


async def _nonce(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url, allow_redirects=False) as response:
        raw = await response.content.read(BYTES_MAX)
    try:
        return str(json.loads(raw)["nonce"])
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        message = "it takes no control requests: its image is of an earlier version, or it has no Redis password"
        raise ControlFailed(message) from error


def _refusal(status: int, raw: bytes) -> str:
    try:
        found = str(json.loads(raw)["error"]["message"])
    except (ValueError, RecursionError, KeyError, TypeError):
        found = ""
    return shortened(found or f"HTTP {status}", TEXT_MAX)
