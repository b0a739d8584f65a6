"""Parameters of a REST request, its unit of time and the format of the answer. Pure.

Reading a parameter either gives a value or raises `RestError` with the exchange's own error code.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from sheetanchor.simulator.faults import Fault
from sheetanchor.simulator.playback.market import PlaybackMarket
from sheetanchor.simulator.venue import Venue

STATUSES: Final = ("TRADING", "HALT", "BREAK")
STATUS: Final = "TRADING"
"""Status of every market here."""

PERMISSIONS: Final = ("SPOT",)
"""Permission that every market here requires."""

_SYMBOL: Final = re.compile(r"(?:[A-Z0-9_.-]|[^\x00-\x7f\s]){1,20}")
_PERMISSION: Final = re.compile(r"SPOT|MARGIN|LEVERAGED|TRD_GRP_[0-9]{3}")
_INTEGER: Final = re.compile(r"[0-9]{1,20}")
_ZONE: Final = re.compile(r"([+-]?)([0-9]{1,2})(?::([0-9]{2}))?")
_WINDOW: Final = re.compile(r"([1-9][0-9]?)([mhd])")
_SCHEMA: Final = re.compile(r"[0-9]{1,9}:[0-9]{1,9}")

_MICROSECONDS_FROM: Final = 10**14
"""A time at or above this can only be in µs: in ms it would be the year 5138."""

_MINUTE_US: Final = 60_000_000
_ZONE_MIN_US, _ZONE_MAX_US = -12 * 60 * _MINUTE_US, 14 * 60 * _MINUTE_US
_WINDOWS: Final = {"m": (59, _MINUTE_US), "h": (23, 60 * _MINUTE_US), "d": (7, 1_440 * _MINUTE_US)}

SYMBOLS_MAX: Final = 100


class RestError(Exception):
    """A request that is answered with an error body."""

    def __init__(self, code: int, text: str, status: int = 400) -> None:
        super().__init__(text)
        self.code = code
        self.status = status


def missing(name: str) -> RestError:
    """Give the error for a missing mandatory parameter."""
    return RestError(-1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed.")


def invalid(name: str) -> RestError:
    """Give the error for a value that cannot be used."""
    return RestError(-1130, f"Data sent for parameter '{name}' is not valid.")


def check_sent(sent: Iterable[tuple[str, str]]) -> None:
    """Check that every parameter was sent once and with a value.

    Raises:
        RestError: It was not.
    """
    pairs = list(sent)
    if any(count > 1 for count in Counter(name for name, _ in pairs).values()):
        raise RestError(-1101, "Duplicate values for a parameter detected.")
    for name, value in pairs:
        if not value:
            raise RestError(-1105, f"Parameter '{name}' was empty.")


def wants_micros(unit: str) -> bool:
    """Read the header `X-MBX-TIME-UNIT`.

    Raises:
        RestError: It names no unit.
    """
    if unit.upper() not in ("", "MICROSECOND", "MILLISECOND"):
        raise RestError(-1194, "Invalid value for time unit; expected either MICROSECOND or MILLISECOND.")
    return unit.upper() == "MICROSECOND"


def check_format(accept: str, schema: str) -> None:
    """Check that the client accepts JSON: SBE answers are not served in any version.

    Args:
        accept: The header `Accept`.
        schema: The header `X-MBX-SBE`.

    Raises:
        RestError: The client does not accept JSON.
    """
    if "application/sbe" not in accept or "json" in accept or "*/*" in accept:
        return
    if not _SCHEMA.fullmatch(schema):
        raise RestError(-1152, "Invalid `X-MBX-SBE` header; expected `<SCHEMA_ID>:<VERSION>`.")
    raise RestError(-1153, "Unsupported SBE schema ID or version specified in the `X-MBX-SBE` header.")


@dataclass(slots=True)
class Query:
    """The parameters of one request, and the markets that they refer to."""

    venue: Venue
    params: Mapping[str, str]
    now_us: int
    micros: bool = False
    stale: Callable[[], Fault | None] = field(default=lambda: None)

    def clock(self, time_us: int) -> int:
        """Convert µs to the requested unit."""
        return time_us if self.micros else time_us // 1000

    def market(self) -> PlaybackMarket:
        """Give the market of the mandatory parameter `symbol`."""
        name = self.params.get("symbol", "")
        if not name:
            raise missing("symbol")
        market = self._market(name, "symbol")
        if self.status() not in ("", STATUS):
            raise RestError(-1220, "The symbol's status does not match the requested symbolStatus.")
        return market

    def markets(self, *, needed: bool = False) -> list[PlaybackMarket]:
        """Give the markets of `symbol` or `symbols`, and of `symbolStatus`; all without any of them.

        Args:
            needed: Whether one of the first two is mandatory.
        """
        if "symbol" in self.params and "symbols" in self.params:
            raise RestError(-1128, "Combination of optional parameters invalid.")
        if "symbol" in self.params:
            return [self.market()]
        if needed and "symbols" not in self.params:
            raise RestError(-1102, "Param 'symbol' or 'symbols' must be sent, but both were empty/null!")
        found = [self._market(name, "symbols") for name in self._names("symbols")]
        chosen = found if "symbols" in self.params else list(self.venue.markets.values())
        return chosen if self.status() in ("", STATUS) else []

    def _names(self, parameter: str) -> list[str]:
        if parameter not in self.params:
            return []
        try:
            names = json.loads(self.params[parameter])
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise RestError(
                -1100, f"Illegal characters found in parameter '{parameter}'; legal range is a JSON array of names."
            )
        if parameter == "symbols" and len(set(names)) < len(names):
            raise RestError(-1151, "Symbol is present multiple times in the list.")
        if len(names) > SYMBOLS_MAX:
            raise invalid(parameter)
        return names

    def _market(self, name: str, parameter: str) -> PlaybackMarket:
        if not _SYMBOL.fullmatch(name):
            legal = "^[A-Z0-9-_.]{1,20}$"
            raise RestError(-1100, f"Illegal characters found in parameter '{parameter}'; legal range is '{legal}'.")
        if name not in self.venue.markets:
            raise RestError(-1121, "Invalid symbol.")
        return self.venue.markets[name]

    def status(self) -> str:
        """Read `symbolStatus`; "" when it was not sent."""
        value = self.params.get("symbolStatus", "")
        if value and value not in STATUSES:
            raise RestError(-1122, "Invalid symbolStatus.")
        return value

    def listed(self) -> list[PlaybackMarket]:
        """Give the markets of an `exchangeInfo` request, by name, or by permission and status."""
        named = "symbol" in self.params or "symbols" in self.params
        if named and ("permissions" in self.params or "symbolStatus" in self.params):
            raise RestError(-1128, "Combination of optional parameters invalid.")
        wanted = self._permissions()
        markets = self.markets()
        return markets if not wanted or set(wanted) & set(PERMISSIONS) else []

    def _permissions(self) -> list[str]:
        text = self.params.get("permissions", "")
        names = self._names("permissions") if text.startswith("[") else [text] if text else []
        if not all(_PERMISSION.fullmatch(name) for name in names):
            raise invalid("permissions")
        return names

    def flag(self, name: str, *, default: bool) -> bool:
        """Read an optional yes or no."""
        value = self.params.get(name, "").lower()
        if value not in ("", "true", "false"):
            raise invalid(name)
        return value == "true" if value else default

    def integer(self, name: str) -> int | None:
        """Read an optional whole number."""
        text = self.params.get(name)
        if text is None:
            return None
        if not _INTEGER.fullmatch(text):
            legal = "^[0-9]{1,20}$"
            raise RestError(-1100, f"Illegal characters found in parameter '{name}'; legal range is '{legal}'.")
        return int(text)

    def limit(self, default: int, highest: int) -> int:
        """Read `limit`; larger ones are cut to the highest."""
        value = self.integer("limit")
        if value == 0:
            raise invalid("limit")
        return min(default if value is None else value, highest)

    def time_us(self, name: str) -> int | None:
        """Read a time in ms or µs."""
        value = self.integer(name)
        if value is None or value >= _MICROSECONDS_FROM:
            return value
        return value * 1000

    def zone_us(self) -> int:
        """Read `timeZone`, for instance `8`, `-1:00` or `05:45`: how far its clocks are ahead of UTC."""
        found = _ZONE.fullmatch(self.params.get("timeZone", "0"))
        if found is None or int(found[3] or 0) > 59:
            raise invalid("timeZone")
        value = (int(found[2]) * 60 + int(found[3] or 0)) * _MINUTE_US * (-1 if found[1] == "-" else 1)
        if not _ZONE_MIN_US <= value <= _ZONE_MAX_US:
            raise invalid("timeZone")
        return value

    def window_us(self) -> int:
        """Read `windowSize`: 1m to 59m, 1h to 23h, 1d to 7d."""
        found = _WINDOW.fullmatch(self.params.get("windowSize", "1d"))
        if found is None or int(found[1]) > _WINDOWS[found[2]][0]:
            raise invalid("windowSize")
        return int(found[1]) * _WINDOWS[found[2]][1]

    def is_full(self) -> bool:
        """Read `type`, FULL or MINI."""
        kind = self.params.get("type", "FULL")
        if kind not in ("FULL", "MINI"):
            raise RestError(-1139, "Invalid ticker type.")
        return kind == "FULL"
