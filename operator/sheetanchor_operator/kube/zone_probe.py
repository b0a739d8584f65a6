"""Polls pods only to find out whether they answer, each within less than a second."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from sheetanchor_operator.names import HTTP_PORT, SENTINEL_HTTP_PORT
from sheetanchor_operator.zones.witnesses import PodFacts

TIMEOUT_S: Final = 0.8
"""A pod answers within milliseconds; a round of questions has to end before the next one."""

BYTES_MAX: Final = 64 * 1024
AT_ONCE: Final = 320
"""More than a zone's suspects and all samples together; each is a connection."""


class ZoneProbe:
    """Asks pods over HTTP."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def aclose(self) -> None:
        """Give the connections back."""
        if self._session is not None:
            await self._session.close()

    async def answers(self, pod: PodFacts) -> bool:
        """Say whether a pod answers, whatever it says."""
        return await self._ask(pod, HTTP_PORT, "/health/live") is not None

    async def is_ready(self, pod: PodFacts) -> bool:
        """Say whether a pod answers that it is ready to serve."""
        answer = await self._ask(pod, HTTP_PORT, "/health/ready")
        return answer is not None and answer[0] == 200

    async def peers(self, pod: PodFacts) -> Mapping[str, Any]:
        """Ask a Redis node's Sentinel which peers it reaches; empty where that is not known."""
        answer = await self._ask(pod, SENTINEL_HTTP_PORT, "/peers")
        if answer is None or answer[0] != 200:
            return {}
        try:
            body = json.loads(answer[1])
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}

    async def _ask(self, pod: PodFacts, port: int, path: str) -> tuple[int, bytes] | None:
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=AT_ONCE))
        host = f"[{pod.address}]" if ":" in pod.address else pod.address
        try:
            async with asyncio.timeout(TIMEOUT_S):
                # A tenant's pod decides neither whom we ask nor how much we keep.
                async with self._session.get(f"http://{host}:{port}{path}", allow_redirects=False) as response:
                    return response.status, await response.content.read(BYTES_MAX)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError):
            return None
