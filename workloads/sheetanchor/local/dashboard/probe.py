"""Polls the roles: their metrics pages, their memory, and the newest entry of each line in Redis.

Once per slot and in its middle, so that no replica is busy answering while it should predict.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
from redis.asyncio import Redis

from sheetanchor.contract import LINES_MAX, SLOT_MS, keys, line_names, line_stream
from sheetanchor.local.dashboard import exposition
from sheetanchor.local.dashboard.exposition import Sample
from sheetanchor.local.dashboard.status import LineStatus, RoleStatus
from sheetanchor.local.processes import Child
from sheetanchor.store.redis_connection import translate_errors

TIMEOUT_S: Final = 0.8
EXAMINED: Final = ("ingest/", "process", "infer/")
"""Roles that have a metrics page, by the beginning of their names."""

PHASE_MS: Final = SLOT_MS // 2


def delay_to_phase_s(now_us: int) -> float:
    """Give the time to the next middle of a slot."""
    period = SLOT_MS * 1_000
    return ((PHASE_MS * 1_000 - now_us) % period) / 1_000_000


def memory_mb(pid: int) -> float | None:
    """Give the resident memory of a process in MiB, None where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def role_status(child: Child) -> RoleStatus:
    """Give the status of a process."""
    pid = child.pid
    return RoleStatus(child.spec.name, pid, child.port, child.state, child.restarts, memory_mb(pid) if pid else None)


def message_rates(
    samples: Sequence[Sample], earlier: Mapping[str, float], elapsed_s: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Give each symbol's message count of one line, and the rate per second since the last poll.

    Args:
        samples: Metrics of the line's ingestor.
        earlier: Counts at the last poll.
        elapsed_s: Seconds since then.
    """
    counts: dict[str, float] = {}
    for name, labels, value in samples:
        if name == exposition.MESSAGES:
            symbol = labels.get("symbol", "").upper()
            counts[symbol] = counts.get(symbol, 0.0) + value
    rates = {
        symbol: (count - earlier[symbol]) / elapsed_s
        for symbol, count in counts.items()
        if elapsed_s > 0 and symbol in earlier and count >= earlier[symbol]
    }
    return counts, rates


class Probe:
    """The metrics of the roles, as of the last poll.

    Args:
        session: HTTP client.
        redis: Client of the pipeline's Redis.
        symbols: Trading pairs.
    """

    def __init__(self, session: aiohttp.ClientSession, redis: Redis, symbols: Sequence[str]) -> None:
        self.latency = exposition.LatencyWindow()
        self.lines: dict[str, list[LineStatus]] = {symbol: [] for symbol in symbols}
        self.redis_memory_mb: float | None = None
        self._session = session
        self._redis = redis
        self._counts: dict[str, dict[str, float]] = {}
        self._polled_at = 0.0

    async def poll(self, children: Sequence[Child]) -> None:
        """Poll every role once; one that does not answer is left out."""
        pages: dict[str, list[Sample]] = {}
        for child in children:
            if child.port and child.spec.name.startswith(EXAMINED):
                page = await self._page(child.port)
                if page:
                    child.heard()
                pages[child.spec.name] = exposition.parse(page)
        self.latency.add(exposition.histograms(sample for page in pages.values() for sample in page))
        now = time.monotonic()
        elapsed_s, self._polled_at = now - self._polled_at, now
        await self._poll_lines(pages, elapsed_s)

    async def _page(self, port: int) -> str:
        try:
            async with asyncio.timeout(TIMEOUT_S), self._session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                return await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return ""

    async def _poll_lines(self, pages: Mapping[str, list[Sample]], elapsed_s: float) -> None:
        rates: dict[str, dict[str, float]] = {}
        connected: dict[str, bool] = {}
        for name, samples in pages.items():
            if name.startswith("ingest/"):
                line = name.partition("/")[2]
                counts, rates[line] = message_rates(samples, self._counts.get(line, {}), elapsed_s)
                self._counts[line] = counts
                states = [value >= 1 for metric, _, value in samples if metric == exposition.CONNECTED]
                connected.update(dict.fromkeys([line] if states else [], all(states)))
        with translate_errors("reading the lines"):
            memory: dict[str, Any] = await self._redis.info("memory")
            self.redis_memory_mb = int(memory.get("used_memory", 0)) / 2**20
            seconds, micros = await self._redis.time()
            for symbol in self.lines:
                names = line_names(await self._redis.smembers(keys(symbol).lines))[:LINES_MAX]
                self.lines[symbol] = [
                    LineStatus(
                        line,
                        await self._age_ms(symbol, line, seconds * 1_000 + micros // 1_000),
                        rates.get(line, {}).get(symbol),
                        connected.get(line),
                    )
                    for line in names
                ]

    async def _age_ms(self, symbol: str, line: str, now_ms: int) -> float | None:
        newest: Any = await self._redis.xrevrange(line_stream(symbol, line), count=1)
        return max(0.0, now_ms - int(newest[0][0].partition(b"-")[0])) if newest else None


async def unready_reason(session: aiohttp.ClientSession, child: Child) -> str:
    """Read from a role's health why it is not ready; "" if it is."""
    try:
        async with asyncio.timeout(TIMEOUT_S), session.get(f"http://127.0.0.1:{child.port}/health") as answer:
            body: Any = await answer.json()
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return f"its health endpoint does not answer ({type(error).__name__})"
    checks = body.get("checks", {}) if isinstance(body, dict) else {}
    failing = [
        f"{name} {check.get('message', check.get('status'))}"
        for name, check in checks.items()
        if check.get("status") == "unhealthy" and not check.get("optional")
    ]
    return ", ".join(failing)
