"""Signed requests to a role of this machine."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from sheetanchor.web.control import NONCE_PATH, SIGNATURE_HEADER, signature
from support.patience import PATIENCE_S


def nonce_of(port: int) -> str:
    """Read the present nonce."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{NONCE_PATH}", timeout=PATIENCE_S) as answer:
        return str(json.loads(answer.read())["nonce"])


def post(port: int, path: str, raw: bytes, signed: str) -> tuple[int, dict[str, Any]]:
    """Send a request with a signature; gives status and body."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=raw, headers={SIGNATURE_HEADER: signed})
    try:
        with urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def control(port: int, action: str, body: dict[str, Any], password: str) -> tuple[int, dict[str, Any]]:
    """Sign a request and send it; gives status and body."""
    path, raw = f"{NONCE_PATH}/{action}", json.dumps(body).encode()
    return post(port, path, raw, signature(password, nonce_of(port), path, raw))
