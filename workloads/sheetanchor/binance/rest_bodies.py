"""Bodies of the exchange's REST answers: checked, and turned into exact integers. Pure.

Prices and quantities become mantissas at `EXPONENT`, which has the eight decimals that the exchange writes, straight
from their decimal text; a float would round them.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, Final

from sheetanchor.errors import ExchangeError, shortened
from sheetanchor.venue import EXPONENT, Depth, Kline, Ticker, Trade

_ONE: Final = 10**-EXPONENT
MANTISSA_LIMIT: Final = 2**63
"""The exchange documents 92,233,720,368.54775807 as its largest quantity, and its own frames carry no more."""

MILLISECONDS_MAX: Final = 10**14
"""Times below this are milliseconds (until the year 5138), others microseconds (since 1973): not every server honours
the header that asks for microseconds."""

ID_MAX: Final = 2**62
SHOWN_MAX: Final = 80


class Body:
    """A parsed answer with its endpoint, so that every error names endpoint and field."""

    def __init__(self, endpoint: str, raw: bytes) -> None:
        self.endpoint = endpoint
        try:
            self.value: Any = json.loads(raw)
        except (ValueError, RecursionError) as error:
            shown = raw[:SHOWN_MAX].decode("utf-8", "replace")
            raise ExchangeError(f"GET {endpoint}: expected JSON, found {len(raw)} bytes: {shown!r}") from error

    def wrong(self, field: str, found: Any, expected: str) -> ExchangeError:
        """Make the error about a wrong field."""
        shown = repr(found)
        shown = shown if len(shown) <= SHOWN_MAX else shown[:SHOWN_MAX] + "…"
        return ExchangeError(f"GET {self.endpoint}: {field} = {shown}: expected {expected}")

    def member(self, parent: Any, name: str, where: str = "") -> Any:
        """Get a member of an object."""
        if not isinstance(parent, dict):
            raise self.wrong(where or "body", parent, "an object")
        if name not in parent:
            raise ExchangeError(f"GET {self.endpoint}: {where}{name} is missing")
        return parent[name]

    def entries(self, value: Any, field: str, most: int) -> list[Any]:
        """Check that a value is a list of bounded length."""
        if not isinstance(value, list):
            raise self.wrong(field, value, "a list")
        if len(value) > most:
            raise ExchangeError(f"GET {self.endpoint}: {field}: expected at most {most} entries, found {len(value)}")
        return value

    def whole(self, value: Any, field: str) -> int:
        """Check an id or a time."""
        if type(value) is not int or not 0 <= value < ID_MAX:
            raise self.wrong(field, value, "a whole number of at least 0")
        return value

    def time_us(self, value: Any, field: str) -> int:
        """Read a time in milliseconds or microseconds."""
        number = self.whole(value, field)
        return number * 1000 if number < MILLISECONDS_MAX else number

    def decimal(self, value: Any, field: str) -> int:
        """Read a decimal text as a mantissa, exactly."""
        if not isinstance(value, str):
            raise self.wrong(field, value, "a decimal number as text")
        whole, _, fraction = value.partition(".")
        digits = whole + fraction
        if not (digits.isascii() and digits.isdigit() and whole) or len(digits) > 2 * 19:
            raise self.wrong(field, value, "a decimal number of at least 0")
        if len(fraction) > -EXPONENT and fraction[-EXPONENT:].strip("0"):
            raise self.wrong(field, value, f"at most {-EXPONENT} decimals")
        mantissa = int(whole) * _ONE + int(fraction[:-EXPONENT].ljust(-EXPONENT, "0"))
        if mantissa >= MANTISSA_LIMIT:
            raise self.wrong(field, value, f"a number below {MANTISSA_LIMIT // _ONE}.{MANTISSA_LIMIT % _ONE:08d}")
        return mantissa

    def above_zero(self, value: Any, field: str) -> int:
        """Read a decimal text that has to be above zero."""
        mantissa = self.decimal(value, field)
        if mantissa == 0:
            raise self.wrong(field, value, "a number above 0")
        return mantissa


def parse_depth(body: Body, limit: int) -> Depth:
    """Read the answer of `depth`.

    Raises:
        ExchangeError: Names the field that is wrong.
    """
    last_update_id = body.whole(body.member(body.value, "lastUpdateId"), "lastUpdateId")
    sides = []
    for side in ("bids", "asks"):
        entries = body.entries(body.member(body.value, side), side, limit)
        if not entries:
            raise ExchangeError(f"GET {body.endpoint}: Invalid depth data received: {side} is empty")
        sides.append([_level(body, entry, f"{side}[{at}]") for at, entry in enumerate(entries)])
    return Depth(last_update_id, *sides)


def _level(body: Body, entry: Any, field: str) -> tuple[int, int]:
    if not isinstance(entry, list) or len(entry) < 2:
        raise body.wrong(field, entry, "a price and a quantity")
    return body.above_zero(entry[0], field), body.above_zero(entry[1], field)


def parse_trades(body: Body, limit: int) -> list[Trade]:
    """Read the answer of `trades`, oldest first; empty for a market without trades.

    Raises:
        ExchangeError: Names the field that is wrong.
    """
    entries = body.entries(body.value, "body", limit)
    trades = [_trade(body, entry, f"[{at}].") for at, entry in enumerate(entries)]
    if any(first.id >= second.id for first, second in pairwise(trades)):
        raise ExchangeError(f"GET {body.endpoint}: id: expected rising trade ids")
    return trades


def _trade(body: Body, entry: Any, where: str) -> Trade:
    maker = body.member(entry, "isBuyerMaker", where)
    if not isinstance(maker, bool):
        raise body.wrong(f"{where}isBuyerMaker", maker, "true or false")
    return Trade(
        body.whole(body.member(entry, "id", where), f"{where}id"),
        body.above_zero(body.member(entry, "price", where), f"{where}price"),
        body.above_zero(body.member(entry, "qty", where), f"{where}qty"),
        body.time_us(body.member(entry, "time", where), f"{where}time"),
        maker,
    )


def parse_klines(body: Body, limit: int) -> list[Kline]:
    """Read the answer of `klines`, oldest first.

    Raises:
        ExchangeError: Names the field that is wrong.
    """
    return [_kline(body, entry, f"[{at}]") for at, entry in enumerate(body.entries(body.value, "body", limit))]


def _kline(body: Body, entry: Any, where: str) -> Kline:
    if not isinstance(entry, list) or len(entry) < 7:
        raise body.wrong(where, entry, "at least 7 values")
    return Kline(
        open_us=body.time_us(entry[0], f"{where}.openTime"),
        open=body.decimal(entry[1], f"{where}.open"),
        high=body.decimal(entry[2], f"{where}.high"),
        low=body.decimal(entry[3], f"{where}.low"),
        close=body.decimal(entry[4], f"{where}.close"),
        close_us=body.time_us(entry[6], f"{where}.closeTime"),
    )


def parse_ticker(body: Body) -> Ticker:
    """Read the answer of `ticker/24hr` for one symbol.

    Raises:
        ExchangeError: Names the field that is wrong.
    """

    def optional(name: str) -> int | None:
        return (body.decimal(body.value[name], name) or None) if name in body.value else None

    return Ticker(
        last=body.decimal(body.member(body.value, "lastPrice"), "lastPrice"),
        bid=optional("bidPrice"),
        ask=optional("askPrice"),
        close_us=body.time_us(body.member(body.value, "closeTime"), "closeTime"),
    )


def parse_server_time(body: Body) -> int:
    """Read the answer of `time` in µs.

    Raises:
        ExchangeError: Names the field that is wrong.
    """
    return body.time_us(body.member(body.value, "serverTime"), "serverTime")


def parse_error(raw: bytes) -> str:
    """Read `{"code": …, "msg": …}` of an error answer; of any other body give the beginning."""
    try:
        value = json.loads(raw)
        return f"{int(value['code'])} {shortened(str(value['msg']), 300)}"
    except (ValueError, TypeError, KeyError, RecursionError):
        return repr(raw[:SHOWN_MAX].decode("utf-8", "replace"))
