"""`POST /control/take`: the operator has this processor write from here on, under a term that it names."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from sheetanchor.process.ownership.requested_term import RequestedTerm
from sheetanchor.web.control import Action, ControlRefused

TAKE: Final = "take"
TERM_END: Final = 2**53
"""Beyond it the doubles of Redis' functions skip integers."""


class Takes(Protocol):
    """What of a symbol's processor is asked."""

    symbol: str
    requested: RequestedTerm


def take_action(replica: str, processors: Sequence[Takes]) -> Action:
    """Make the action.

    Args:
        replica: Name of this process, which a request has to name: another may have its address by now.
        processors: Of its symbols.
    """
    by_symbol = {processor.symbol: processor.requested for processor in processors}

    async def take(body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("replica") != replica:
            raise ControlRefused(f"replica = {body.get('replica')!r}: expected {replica}")
        term, symbols = body.get("term"), body.get("symbols")
        if type(term) is not int or not 0 < term < TERM_END:
            raise ControlRefused(f"term = {term!r}: expected a whole number above 0")
        if not isinstance(symbols, list) or not symbols or not all(one in by_symbol for one in symbols):
            raise ControlRefused(f"symbols = {symbols!r}: expected some of {', '.join(by_symbol)}")
        names = list(dict.fromkeys(symbols))
        refusals = await asyncio.gather(*(by_symbol[name].request(term) for name in names))
        refused = {name: refusal for name, refusal in zip(names, refusals, strict=True) if refusal}
        if refused:
            # One symbol may be taken by now: who asks again under the same term gets the same answer for it.
            raise ControlRefused("; ".join(f"{name}: {refusal}" for name, refusal in refused.items()))
        return {"replica": replica, "term": term, "symbols": names}

    return take
