"""Scripted faults: their names, when they act, and on what. Pure.

A fault is scripted by a flag (`drop:n=3,at=30,line=a`) or by an HTTP request with the same names in JSON. It waits
until its time, acts a number of times or for some seconds, and is then kept in the list of done ones with its count.
"""

from __future__ import annotations

import math
import random
import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sheetanchor.errors import BadSettings, shortened
from sheetanchor.simulator.playback.market import MarketEvent
from sheetanchor.simulator.playback.script import KINDS

DONE_MAX: Final = 100
"""Finished faults that are kept to be read."""

FAULTS_MAX: Final = 100
"""Most faults that wait or act at the same time."""

NUMBER_MAX: Final = 1e9


@dataclass(frozen=True, slots=True)
class Recipe:
    """A kind of fault: its parameters with defaults, and its effect in one line."""

    does: str
    defaults: dict[str, float | str]


_EVERYWHERE: Final[dict[str, float | str]] = {"at": 0.0, "symbol": ""}
_LINES: Final[dict[str, float | str]] = {**_EVERYWHERE, "line": "", "connection": 0.0}
_REQUESTS: Final[dict[str, float | str]] = {"at": 0.0, "n": 1.0, "path": "", "for": 0.0}

RECIPES: Final[dict[str, Recipe]] = {
    "drop": Recipe("the next n messages are not sent", {**_LINES, "n": 1.0, "what": "depth"}),
    "duplicate": Recipe("the next n messages are sent twice", {**_LINES, "n": 1.0, "what": "all"}),
    "garbage": Recipe("n invalid frames are sent between others", {**_LINES, "n": 1.0}),
    "silence": Recipe(
        "nothing is sent for some seconds, no ping either; messages due are lost", {**_LINES, "seconds": 5.0}
    ),
    "hold": Recipe("nothing is sent for some seconds; messages due are sent late", {**_LINES, "seconds": 2.0}),
    "disconnect": Recipe("connections are cut; new ones are refused for some seconds", {**_LINES, "seconds": 0.0}),
    "refuse": Recipe("new connections are refused for some seconds", {**_LINES, "seconds": 10.0}),
    "shutdown": Recipe(
        "serverShutdown is announced, and connections end some seconds later", {**_LINES, "seconds": 1.0}
    ),
    "price_jump": Recipe(
        "the prices of the next n trade messages are some per cent off", {**_EVERYWHERE, "n": 1.0, "percent": 2.0}
    ),
    "slow_rest": Recipe("the next n REST answers come some seconds late", {**_REQUESTS, "seconds": 3.0}),
    "rest_status": Recipe(
        "the next n REST requests are answered with an error", {**_REQUESTS, "code": 500.0, "retry_after": 1.0}
    ),
    "rest_body": Recipe("the next n REST answers are damaged JSON", {**_REQUESTS, "form": "truncated"}),
    "stale_snapshot": Recipe(
        "the next n depth answers are some seconds old", {**_REQUESTS, "seconds": 5.0, "symbol": "", "path": "depth"}
    ),
}

BODY_FORMS: Final = ("truncated", "html", "empty", "wrong")

_TIMED: Final = ("silence", "hold", "disconnect", "refuse")
_PER_MESSAGE: Final = ("drop", "duplicate", "garbage")


@dataclass(frozen=True, slots=True)
class Client:
    """The properties by which a fault selects a connection.

    Attributes:
        number: Connections are numbered from 1 as they come.
        user_agent: Its User-Agent; ingestors put `line=<name>` into it.
    """

    number: int
    user_agent: str


@dataclass(slots=True)
class Fault:
    """One fault: its parameters and its progress.

    Attributes:
        at_us: When it begins, wall-clock µs.
        until_us: When it ends by itself; None if by count alone.
        applied: Messages, connections or requests that it has affected.
        state: waiting, active or done.
    """

    id: int
    kind: str
    params: dict[str, float | str]
    at_us: int
    until_us: int | None = None
    applied: int = 0
    state: str = "waiting"
    note: str = ""
    random: random.Random = field(default_factory=random.Random, repr=False)

    def number(self, name: str) -> float:
        """Give a number among the parameters; 0 if it has none of this name."""
        value = self.params.get(name, 0.0)
        return value if isinstance(value, float) else 0.0

    def text(self, name: str) -> str:
        """Give a text among the parameters; empty if it has none of this name."""
        value = self.params.get(name, "")
        return value if isinstance(value, str) else ""

    def picks(self, client: Client) -> bool:
        """Say whether it applies to a connection."""
        line = self.text("line")
        named = not line or re.search(rf"line={re.escape(line)}(?![\w-])", client.user_agent)
        return bool(named) and self.number("connection") in (0, client.number)

    def concerns(self, event: MarketEvent) -> bool:
        """Say whether it applies to a message."""
        return self.text("symbol") in ("", event.symbol) and self.text("what") in ("", "all", event.kind)

    def report(self) -> dict[str, Any]:
        """Render for HTTP."""
        shown = {name: value for name, value in self.params.items() if value not in ("", 0.0)}
        return {
            "id": self.id,
            "kind": self.kind,
            "state": self.state,
            "params": shown,
            "at_us": self.at_us,
            "until_us": self.until_us,
            "applied": self.applied,
            "note": self.note,
        }


def parse(spec: str) -> tuple[str, dict[str, float | str]]:
    """Read `kind:name=value,name=value`.

    Raises:
        BadSettings: Names the fault, the wrong part and what was expected.
    """
    kind, _, rest = spec.partition(":")
    given: dict[str, Any] = {}
    for part in rest.split(",") if rest else []:
        name, equals, value = part.partition("=")
        if not equals:
            raise BadSettings(f"fault = {spec!r}: expected name=value, found {part!r}")
        given[name.strip()] = value.strip()
    return check(kind.strip(), given)


def check(kind: str, given: Mapping[str, Any]) -> tuple[str, dict[str, float | str]]:
    """Complete and check the parameters of a fault.

    Raises:
        BadSettings: Names the fault, the wrong part and what was expected.
    """
    if kind not in RECIPES:
        raise BadSettings(f"fault {shortened(kind, 60)!r}: expected one of {', '.join(RECIPES)}")
    params = dict(RECIPES[kind].defaults)
    for name, value in given.items():
        if name not in params:
            raise BadSettings(
                f"fault {kind}: unknown parameter {shortened(name, 60)!r}; it takes {', '.join(sorted(params))}"
            )
        params[name] = _text(kind, name, value) if isinstance(params[name], str) else _number(kind, name, value)
    return kind, params


def _number(kind: str, name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    whole = name in ("n", "connection", "code")
    low = -99 if name == "percent" else 1 if name == "n" else 0
    high = 599 if name == "code" else NUMBER_MAX
    if not low <= number <= high or (whole and number != int(number)) or (name == "code" and number < 400):
        what = "a status from 400 to 599" if name == "code" else f"a {'whole ' if whole else ''}number from {low}"
        raise BadSettings(f"fault {kind}: {name} = {shortened(repr(value), 100)}: expected {what}")
    return number


def _text(kind: str, name: str, value: Any) -> str:
    text = str(value)
    choices = {"what": (*KINDS, "all"), "form": BODY_FORMS}.get(name)
    if choices and text not in choices:
        raise BadSettings(f"fault {kind}: {name} = {shortened(text, 100)!r}: expected one of {', '.join(choices)}")
    return text.upper() if name == "symbol" and text.isascii() else text


@dataclass(frozen=True, slots=True)
class Edit:
    """The payloads that one connection gets instead of one message, in order."""

    payloads: tuple[bytes, ...]


class FaultBoard:
    """All faults of an exchange.

    Args:
        start_us: When playing begins, wall-clock µs; `at` counts from here, or from the request if that is later.
    """

    def __init__(self, start_us: int) -> None:
        self._start_us = start_us
        self._count = 0
        self.live: list[Fault] = []
        self.done: deque[Fault] = deque(maxlen=DONE_MAX)

    def add(self, kind: str, params: dict[str, float | str], now_us: int) -> Fault:
        """Add a checked fault.

        Raises:
            BadSettings: There are too many already.
        """
        if len(self.live) >= FAULTS_MAX:
            raise BadSettings(f"fault {kind}: there are {FAULTS_MAX} faults already; delete some first")
        self._count += 1
        begin_us = max(now_us, self._start_us) + int(float(params.get("at", 0.0)) * 1e6)
        fault = Fault(self._count, kind, params, begin_us, random=random.Random(self._count))
        lasts_s = fault.number("seconds") if kind in _TIMED else fault.number("for")
        if lasts_s > 0:
            fault.until_us = begin_us + int(lasts_s * 1e6)
        self.live.append(fault)
        return fault

    def remove(self, fault_id: int) -> Fault | None:
        """End a fault early; None if no live one has this id."""
        for fault in self.live:
            if fault.id == fault_id:
                self.finish(fault, "deleted")
                return fault
        return None

    def finish(self, fault: Fault, note: str = "") -> None:
        """Move a fault to the done ones."""
        fault.state, fault.note = "done", note
        self.live.remove(fault)
        self.done.append(fault)

    def tick(self, now_us: int) -> list[Fault]:
        """Begin and end faults by time; returns those that begin now."""
        begun = []
        for fault in list(self.live):
            if fault.state == "waiting" and now_us >= fault.at_us:
                fault.state = "active"
                begun.append(fault)
            if fault.until_us is not None and now_us >= fault.until_us and fault not in begun:
                self.finish(fault)
        return begun

    def active(self, *kinds: str) -> list[Fault]:
        """Give the active faults of some kinds, oldest first."""
        return [fault for fault in self.live if fault.state == "active" and fault.kind in kinds]

    def refuses(self, client: Client) -> bool:
        """Say whether a new connection is refused, and count it."""
        for fault in self.active("refuse", "disconnect"):
            if fault.picks(client):
                fault.applied += fault.kind == "refuse"
                return True
        return False

    def request(self, kind: str, path: str) -> Fault | None:
        """Give the fault that applies to a REST request, if any, and count it."""
        for fault in self.active(kind):
            if fault.text("path") in path:
                self._count_one(fault)
                return fault
        return None

    def edits(
        self, events: Sequence[MarketEvent], subscribers: Mapping[str, Iterable[Client]]
    ) -> dict[int, dict[int, Edit]]:
        """Decide what the connections get instead of the messages of one tick.

        A fault applies to a message for all selected connections at once, so that two lines lose the same one; it waits
        while no selected connection has subscribed.

        Args:
            events: The messages in order.
            subscribers: Connections by stream.

        Returns:
            By number of the connection: place of the message to what is sent instead.
        """
        found: dict[int, dict[int, Edit]] = {}
        if not self.active("silence", "hold", *_PER_MESSAGE):
            return found
        for place, event in enumerate(events):
            clients = list(subscribers.get(event.stream, ()))
            for fault in self.active("silence", *_PER_MESSAGE):
                picked = [client for client in clients if fault.picks(client)]
                if picked and fault.concerns(event):
                    self._meet(fault, event, place, picked, found)
        return found

    def _meet(
        self, fault: Fault, event: MarketEvent, place: int, picked: list[Client], found: dict[int, dict[int, Edit]]
    ) -> None:
        junk = garbage(fault.random, fault.applied, event.frame) if fault.kind == "garbage" else b""
        for client in picked:
            edits = found.setdefault(client.number, {})
            before = edits.get(place, Edit((event.frame,))).payloads
            edits[place] = Edit(
                {
                    "drop": (),
                    "silence": (),
                    "duplicate": before * 2,
                    "garbage": (junk, *before),
                }[fault.kind]
            )
        if fault.kind == "silence":
            fault.applied += 1
        else:
            self._count_one(fault)

    def _count_one(self, fault: Fault) -> None:
        fault.applied += 1
        if fault.applied >= fault.number("n") and fault.until_us is None:
            self.finish(fault)


def garbage(source: random.Random, number: int, frame: bytes) -> bytes:
    """Make a frame that a decoder has to refuse; successive numbers damage it in different ways."""
    forms = (
        frame[: len(frame) // 2],  # cut off
        frame[:4] + b"\xff\xff" + frame[6:],  # another schema
        frame[:2] + b"\xef\xbe" + frame[4:],  # an unknown template
        b"\x00\x00" + frame[2:],  # a root block too short for its template
        b"\x00\x00\xff\xff\xff\xff" + source.randbytes(40),  # noise
        b"",
    )
    return forms[number % len(forms)]
