"""The request that a processor take a given term: made over HTTP, carried out by the processor's own loop.

The loop takes, since role, term and epoch change between its turns only. A request that is given up meanwhile leaves
nothing behind: whether it was carried out is what Redis says of the term.
"""

from __future__ import annotations

import asyncio
from typing import Final

from sheetanchor.store.hot_records import Anchor

WITHIN_S: Final = 2.0
"""A turn of the loop takes a tenth of a second and two requests to Redis."""


def refusal_of(anchor: Anchor, held_epoch: int, held_receipt: str, *, caught_up: bool) -> str:
    """Say why a processor must not write yet, "" if it may.

    Args:
        anchor: What is stored.
        held_epoch: Epoch of what the processor holds.
        held_receipt: Receipt of what it holds.
        caught_up: Whether it has a book and has read the lines to their end.
    """
    if not caught_up:
        return "it has not read the lines to their end"
    if (anchor.epoch, anchor.receipt) != (held_epoch, held_receipt):
        return f"it holds epoch {held_epoch}, and epoch {anchor.epoch} is stored"
    return ""


class RequestedTerm:
    """One request at a time, and its answer."""

    def __init__(self) -> None:
        self.term = 0
        """The term that is asked for, 0 for none."""

        self._answer: asyncio.Future[str] | None = None

    async def request(self, term: int, within_s: float = WITHIN_S) -> str:
        """Ask the loop to take a term, and wait for it.

        Args:
            term: The term.
            within_s: How long to wait.

        Returns:
            Why it was not taken, "" if it was.
        """
        if self.term:
            return "another request is being carried out"
        self.term, self._answer = term, asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(within_s):
                return await self._answer
        except TimeoutError:
            return f"not done within {within_s:g} s, Redis may not answer"
        finally:
            self.term, self._answer = 0, None

    def answer(self, term: int, refusal: str) -> None:
        """Answer the request, if it still waits.

        Args:
            term: The term that it asked for.
            refusal: Why the term was not taken, "" if it was.
        """
        if term == self.term and self._answer is not None and not self._answer.done():
            self._answer.set_result(refusal)
