"""How long an error answer of the exchange bans a client or asks it to wait, in each form of such answers. Pure.

The documents promise a `Retry-After` header with every 429 and 418. Proxies drop it, and the text of the answer says
more: "IP banned until 1659146400000" for a ban, "current limit is 6000 request weight per 1 MINUTE" for a limit.
Source: Binance, REST API, General API Information; error code -1003.
"""

from __future__ import annotations

import math
import re
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

TOO_MANY: Final = (418, 429)
WAIT_DEFAULT_S: Final = 10.0
WAIT_MAX_S: Final = 3 * 86_400.0
"""The exchange's longest ban."""

TEXT_MAX: Final = 4_096
"""Characters of an answer's text that are searched; an error message has some hundred."""

_UNTIL: Final = re.compile(r"banned until\s+(\d{10,17})(?!\d)", re.IGNORECASE)
_PER: Final = re.compile(r"\bper\s+(\d{1,4})\s*(SECOND|MINUTE|HOUR|DAY)S?\b", re.IGNORECASE)
_CODE: Final = re.compile(r'"code"\s*:\s*-(?:1003|1015)\b')
_SECONDS: Final = {"SECOND": 1, "MINUTE": 60, "HOUR": 3_600, "DAY": 86_400}


def asks_for_silence(status: int, text: str) -> bool:
    """Say whether an error answer means too many requests: by its status, its code, or a ban that it names."""
    return status in TOO_MANY or (status >= 400 and bool(_CODE.search(text) or _UNTIL.search(text)))


def silence_s(retry_after: str | None, date: str | None, text: str, now_s: float, default_s: float) -> float:
    """Give the seconds for which no request may be sent, the longest that the answer names in any form.

    Args:
        retry_after: Header of that name, seconds or a date; None without one.
        date: Header `Date`, the exchange's own clock, by which ends of bans are computed; None without one.
        text: Body of the answer.
        now_s: Our clock in seconds since 1970, for an answer without a date.
        default_s: The seconds when the answer names none.
    """
    given_s = _date_s(date)
    clock_s = given_s if given_s is not None else now_s
    text = text[:TEXT_MAX]
    waits = [_header_s(retry_after, clock_s), _ban_s(text, clock_s)]
    known = [wait_s for wait_s in waits if wait_s is not None]
    if not known:
        interval_s = _interval_s(text)
        known = [default_s if interval_s is None else max(default_s, interval_s - clock_s % interval_s)]
    return min(max(known), WAIT_MAX_S)


def _header_s(header: str | None, clock_s: float) -> float | None:
    value = (header or "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:12])
    at_s = _date_s(value)
    return None if at_s is None else max(0.0, at_s - clock_s)


def _date_s(text: str | None) -> float | None:
    try:
        at = parsedate_to_datetime(text or "")
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _ban_s(text: str, clock_s: float) -> float | None:
    """Read the end of a ban, in seconds, milliseconds or microseconds since 1970; one that is over counts as none."""
    found = _UNTIL.search(text)
    if found is None:
        return None
    until = int(found[1])
    left_s = until / 1_000 ** max(0, math.ceil((len(found[1]) - 11) / 3)) - clock_s
    return left_s if left_s > 0 else None


def _interval_s(text: str) -> float | None:
    found = _PER.search(text)
    return None if found is None else float(max(1, int(found[1])) * _SECONDS[found[2].upper()])
