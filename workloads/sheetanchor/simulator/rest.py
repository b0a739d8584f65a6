"""REST under `/api/v3`: parameters, weight and answer of each route, from the same book that the streams have reached.

Owns no state. A request is charged first, then subject to faults, then answered without interruption, so that no
message is sent between two parts of an answer.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeVar

import orjson
from aiohttp import web

from sheetanchor.simulator import answers
from sheetanchor.simulator.faults import Fault
from sheetanchor.simulator.limits import LimitDecision
from sheetanchor.simulator.playback.tape import INTERVALS_US
from sheetanchor.simulator.query import Query, RestError, check_format, check_sent, missing, wants_micros
from sheetanchor.simulator.venue import Venue

Item = TypeVar("Item")

PREFIX: Final = "/api/v3/"
DEPTH_MAX: Final = 5_000
LIST_MAX: Final = 1_000

_INTEGER: Final = re.compile(r"[0-9]{1,20}")


def _depth(query: Query) -> Any:
    market, limit = query.market(), query.limit(100, DEPTH_MAX)
    fault = query.stale()
    book = market.book if fault is None else market.past_book(query.now_us, int(fault.number("seconds") * 1e6))
    return answers.depth(market, book, limit)


def _trades(query: Query) -> Any:
    market, limit = query.market(), query.limit(500, LIST_MAX)
    trades = market.tape.trades
    from_id = query.integer("fromId")
    if from_id is None:
        chosen = list(islice(trades, max(0, len(trades) - limit), None))
    else:
        chosen = list(islice((item for item in trades if item.id >= from_id), limit))
    return [answers.trade(market, item, query.clock) for item in chosen]


def _aggregates(query: Query) -> Any:
    market, limit = query.market(), query.limit(500, LIST_MAX)
    from_id, start_us, end_us = query.integer("fromId"), query.time_us("startTime"), query.time_us("endTime")
    found = [
        item
        for item in market.tape.aggregates
        if (from_id is None or item.id >= from_id)
        and (start_us is None or item.time_us >= start_us)
        and (end_us is None or item.time_us < end_us + 1000)
    ]
    forward = from_id is not None or start_us is not None
    return [answers.aggregate(market, item, query.clock) for item in _part(found, limit, forward=forward)]


def _part(items: Sequence[Item], limit: int, *, forward: bool) -> Sequence[Item]:
    """Give the oldest items when a start was given, else the newest."""
    return items[:limit] if forward else items[-limit:]


def _klines(query: Query) -> Any:
    market, limit = query.market(), query.limit(500, LIST_MAX)
    interval = query.params.get("interval", "")
    if not interval:
        raise missing("interval")
    if interval not in INTERVALS_US:
        raise RestError(-1120, "Invalid interval.")
    start_us, end_us = query.time_us("startTime"), query.time_us("endTime")
    found = [
        item
        for item in market.tape.candles(interval, query.now_us, query.zone_us())
        if (start_us is None or item.open_us >= start_us) and (end_us is None or item.open_us <= end_us)
    ]
    chosen = _part(found, limit, forward=start_us is not None)
    return [answers.candle(market, item, interval, query.clock) for item in chosen]


def _ticker_24hr(query: Query) -> Any:
    full = query.is_full()
    found = [answers.ticker_24hr(market, query.now_us, query.clock, full=full) for market in query.markets()]
    return found[0] if "symbol" in query.params else found


def _ticker(query: Query) -> Any:
    full, window_us = query.is_full(), query.window_us()
    markets = query.markets(needed=True)
    found = [answers.ticker(market, query.now_us, window_us, query.clock, full=full) for market in markets]
    return found[0] if "symbol" in query.params else found


def _ticker_price(query: Query) -> Any:
    found = [answers.ticker_price(market) for market in query.markets()]
    return found[0] if "symbol" in query.params else found


def _average_price(query: Query) -> Any:
    return answers.average_price(query.market(), query.now_us, query.clock)


def _book_ticker(query: Query) -> Any:
    found = [answers.book_ticker(market) for market in query.markets()]
    return found[0] if "symbol" in query.params else found


def _exchange_info(query: Query) -> Any:
    shown = query.flag("showPermissionSets", default=True)
    limit = query.venue.budget.per_minute
    return answers.exchange_info(query.listed(), query.clock(query.now_us), limit, permission_sets=shown)


def _time(query: Query) -> Any:
    return {"serverTime": query.clock(query.now_us)}


def _ping(query: Query) -> Any:
    return {}


def depth_weight(params: Mapping[str, str]) -> int:
    """Give the weight of a depth request by its limit."""
    text = params.get("limit", "")
    limit = int(text) if _INTEGER.fullmatch(text) else 100
    return 5 if limit <= 100 else 25 if limit <= 500 else 50 if limit <= 1000 else 250


def ticker_weight(params: Mapping[str, str]) -> int:
    """Give the weight of a 24-hour ticker request by its number of symbols."""
    if "symbol" in params:
        return 2
    count = params["symbols"].count(",") + 1 if "symbols" in params else 101
    return 2 if count <= 20 else 40 if count <= 100 else 80


def _rolling_weight(params: Mapping[str, str]) -> int:
    return min(200, 4 * (params["symbols"].count(",") + 1 if "symbols" in params else 1))


def _book_ticker_weight(params: Mapping[str, str]) -> int:
    return 2 if "symbol" in params else 4


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint: parameters it reads, its weight, and its answer."""

    answer: Callable[[Query], Any]
    weight: int | Callable[[Mapping[str, str]], int]
    reads: tuple[str, ...] = ()


ROUTES: Final[dict[str, Route]] = {
    "depth": Route(_depth, depth_weight, ("symbol", "limit", "symbolStatus")),
    "trades": Route(_trades, 25, ("symbol", "limit")),
    "historicalTrades": Route(_trades, 25, ("symbol", "limit", "fromId")),
    "aggTrades": Route(_aggregates, 4, ("symbol", "fromId", "startTime", "endTime", "limit")),
    "klines": Route(_klines, 2, ("symbol", "interval", "startTime", "endTime", "timeZone", "limit")),
    "ticker/24hr": Route(_ticker_24hr, ticker_weight, ("symbol", "symbols", "type", "symbolStatus")),
    "uiKlines": Route(_klines, 2, ("symbol", "interval", "startTime", "endTime", "timeZone", "limit")),
    "avgPrice": Route(_average_price, 2, ("symbol",)),
    "ticker": Route(_ticker, _rolling_weight, ("symbol", "symbols", "windowSize", "type", "symbolStatus")),
    "ticker/price": Route(_ticker_price, _book_ticker_weight, ("symbol", "symbols", "symbolStatus")),
    "ticker/bookTicker": Route(_book_ticker, _book_ticker_weight, ("symbol", "symbols", "symbolStatus")),
    "exchangeInfo": Route(
        _exchange_info, 20, ("symbol", "symbols", "permissions", "symbolStatus", "showPermissionSets")
    ),
    "time": Route(_time, 1),
    "ping": Route(_ping, 1),
}


def answer(query: Query, route: Route) -> Any:
    """Check the names of the parameters and give the body.

    Raises:
        RestError: The request is wrong.
    """
    read = [name for name in query.params if name in route.reads]
    if len(read) < len(query.params):
        raise RestError(
            -1104,
            f"Not all sent parameters were read; read '{len(read)}' parameter(s) but was sent '{len(query.params)}'.",
        )
    return route.answer(query)


def _respond(body: Any, status: int, headers: Mapping[str, str]) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, headers=headers, content_type="application/json")


def _error(code: int, text: str) -> dict[str, Any]:
    return {"code": code, "msg": text}


def _over_limit(verdict: LimitDecision, per_minute: int, headers: dict[str, str]) -> web.Response:
    headers["Retry-After"] = str(verdict.retry_after_s)
    if verdict.status == 418:
        text = f"Way too much request weight used; IP banned until {verdict.banned_until_ms}."
    else:
        text = f"Too much request weight used; current limit is {per_minute} request weight per 1 MINUTE."
    return _respond(_error(-1003, text), verdict.status, headers)


_STATUS_BODIES: Final = {
    429: (-1003, "Too much request weight used; current limit is 6000 request weight per 1 MINUTE."),
    418: (-1003, "Way too much request weight used; IP banned."),
    403: (-1002, "You are not authorized to execute this request."),
    503: (-1008, "Server is currently overloaded with other requests. Please try again in a few minutes."),
    504: (-1007, "Timeout waiting for response from backend server. Send status unknown; execution status unknown."),
}


def _scripted_error(fault: Fault, headers: dict[str, str]) -> web.Response:
    status = int(fault.number("code"))
    code, text = _STATUS_BODIES.get(status, (-1000, "An unknown error occurred while processing the request."))
    if status in (418, 429):
        headers["Retry-After"] = str(int(fault.number("retry_after")))
    return _respond(_error(code, text), status, headers)


def _spoiled(form: str, body: bytes) -> bytes:
    if form == "html":
        return b"<html><body><h1>502 Bad Gateway</h1></body></html>"
    if form == "empty":
        return b""
    return b'{"unexpected":[1,2,3]}' if form == "wrong" else body[: max(1, len(body) // 2)]


async def serve(request: web.Request) -> web.Response:
    """Answer one request."""
    venue: Venue = request.app[VENUE]
    name = request.match_info["route"]
    route = ROUTES.get(name)
    if route is None:
        return _respond(_error(-1000, f"Path {request.path} is not served here."), 404, {})
    if request.method not in ("GET", "HEAD"):
        return _respond(_error(-1020, "This operation is not supported."), 405, {"Allow": "GET, HEAD"})
    now_us = venue.now_us()
    params = dict(request.query)
    weight = route.weight if isinstance(route.weight, int) else route.weight(params)
    verdict = venue.budget.charge(request.remote or "", weight, now_us / 1e6)
    headers = {"X-MBX-USED-WEIGHT": str(verdict.used), "X-MBX-USED-WEIGHT-1M": str(verdict.used)}
    if verdict.status != 200:
        return _over_limit(verdict, venue.budget.per_minute, headers)
    scripted = venue.board.request("rest_status", name)
    if scripted is not None:
        return _scripted_error(scripted, headers)
    query = Query(venue, params, now_us, stale=lambda: venue.board.request("stale_snapshot", name))
    response = _answered(request, query, route, headers)
    return await _spoil(venue, name, response)


def _answered(request: web.Request, query: Query, route: Route, headers: Mapping[str, str]) -> web.Response:
    try:
        check_format(request.headers.get("Accept", ""), request.headers.get("X-MBX-SBE", ""))
        query.micros = wants_micros(request.headers.get("X-MBX-TIME-UNIT", ""))
        check_sent(request.query.items())
        return _respond(answer(query, route), 200, headers)
    except RestError as error:
        return _respond(_error(error.code, str(error)), error.status, headers)


async def _spoil(venue: Venue, name: str, response: web.Response) -> web.Response:
    """Let scripted faults delay or damage an answer that is already made."""
    spoiler = venue.board.request("rest_body", name)
    if spoiler is not None and isinstance(response.body, bytes):
        response.body = _spoiled(spoiler.text("form"), response.body)
    slow = venue.board.request("slow_rest", name)
    if slow is not None:
        await asyncio.sleep(slow.number("seconds"))
    return response


VENUE: Final = web.AppKey("venue", Venue)
