"""Follows predictions, gaps and receipts of all symbols as they appear in Redis."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from redis.asyncio import Redis

from sheetanchor.contract import Gap, Receipt, keys
from sheetanchor.errors import RedisError
from sheetanchor.local.dashboard import reanchor_metrics
from sheetanchor.local.dashboard.tally import ShownPrediction, Tally
from sheetanchor.store.redis_connection import translate_errors

log = logging.getLogger(__name__)

BLOCK_MS: Final = 250
RETRY_S: Final = 0.1
COUNT: Final = 200


class Watcher:
    """Reads the three streams of every symbol into its tally.

    Args:
        redis: Client of the pipeline's Redis.
        tallies: One per symbol.
        on_prediction: Called for every prediction that counts, with the symbol.
        on_gap: Called for every gap record, with the symbol.
    """

    def __init__(
        self,
        redis: Redis,
        tallies: Sequence[Tally],
        on_prediction: Callable[[str, ShownPrediction], None],
        on_gap: Callable[[str, Gap], None],
    ) -> None:
        self._redis = redis
        self._on_prediction = on_prediction
        self._on_gap = on_gap
        self._ids: dict[str, str] = {}
        self._takers: dict[str, tuple[Tally, Callable[[Tally, str, Mapping[str, str]], None]]] = {}
        for tally in tallies:
            key = keys(tally.symbol)
            self._takers[key.preds] = (tally, self._take_prediction)
            self._takers[key.gaps] = (tally, self._take_gap)
            self._takers[key.receipts] = (tally, self._take_receipt)

    async def begin(self) -> None:
        """Remember where the streams end now: entries of an earlier run do not count.

        Raises:
            RedisError: If Redis does not answer.
        """
        for stream in self._takers:
            with translate_errors(f"XREVRANGE {stream}"):
                newest: Any = await self._redis.xrevrange(stream, count=1)
            self._ids[stream] = newest[0][0].decode() if newest else "0-0"

    async def run(self) -> None:
        """Follow the streams until cancelled."""
        while True:
            try:
                await self.read(BLOCK_MS)
            except RedisError as error:
                log.debug("streams cannot be read: %s", error)
                await asyncio.sleep(RETRY_S * (0.5 + random.random()))

    async def read(self, block_ms: int | None = None) -> None:
        """Read new entries.

        Args:
            block_ms: Milliseconds to wait when there are none; None does not wait.

        Raises:
            RedisError: If Redis does not answer.
        """
        with translate_errors("XREAD preds, gaps, receipts"):
            ids: dict[Any, Any] = dict(self._ids)
            answer: Any = await self._redis.xread(ids, count=COUNT, block=block_ms)
        for name, entries in answer.items() if isinstance(answer, dict) else answer or ():
            stream = name.decode()
            tally, take = self._takers[stream]
            for entry_id, raw in entries[0] if isinstance(answer, dict) and len(entries) == 1 else entries:
                self._ids[stream] = entry_id.decode()
                fields = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in raw.items()}
                try:
                    take(tally, entry_id.decode(), fields)
                except (KeyError, ValueError) as error:
                    log.warning("entry %s of %s is ignored, it cannot be read: %r", entry_id.decode(), stream, error)

    def _take_prediction(self, tally: Tally, entry_id: str, fields: Mapping[str, str]) -> None:
        prediction = ShownPrediction.parse(entry_id, fields)
        if tally.add_prediction(prediction):
            self._on_prediction(tally.symbol, prediction)

    def _take_gap(self, tally: Tally, _: str, fields: Mapping[str, str]) -> None:
        gap = Gap.parse(dict(fields))
        tally.add_gap(gap)
        self._on_gap(tally.symbol, gap)

    def _take_receipt(self, tally: Tally, _: str, fields: Mapping[str, str]) -> None:
        receipt = Receipt.from_json(fields["receipt"])
        tally.add_receipt(receipt)
        reanchor_metrics.count(receipt)
