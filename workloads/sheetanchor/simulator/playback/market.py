"""One symbol's market as it is played: the next messages, and the state for REST answers at the same moment. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, NamedTuple

from sheetanchor import sbe
from sheetanchor.contract import stream_symbol
from sheetanchor.simulator.playback.book import Book
from sheetanchor.simulator.playback.playback_clock import Pace
from sheetanchor.simulator.playback.script import Kind, Script, ScriptStep, moved, passes, scale_prices, trades_in
from sheetanchor.simulator.playback.tape import Tape, TapeTrade

PAST_BOOK_EVERY_US: Final = 1_000_000
PAST_BOOKS_MAX: Final = 30
"""Old books are kept for the fault that answers with an old one: half a minute, at 20 to 100 kB each."""

TOP: Final = 20
"""Levels a side of the `@depth20` stream."""

TOP_EVERY_US: Final = 50_000
TOP_LATE_MAX_US: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class MarketEvent:
    """One message for all subscribers of its stream.

    Attributes:
        stream: Name of the stream, for instance `btcusdt@depth`.
        first_id: First update or trade id in it.
        last_id: Last update or trade id in it.
    """

    kind: Kind
    symbol: str
    stream: str
    first_id: int
    last_id: int
    event_us: int
    frame: bytes


class Played(NamedTuple):
    """A step as it is played.

    Attributes:
        event_us: Its event time.
        made_us: When its trades were made; its event time if it has none.
        number: Of its pass.
        step: The step.
    """

    event_us: int
    made_us: int
    number: int
    step: ScriptStep


class PlaybackMarket:
    """Plays a script: `advance` gives what is due, and keeps book and tape as of the last message given.

    Args:
        script: What to play.
        pace: When.
        loop: Whether to begin again at the end.
        warmup_us: How much of the script has already passed when playing begins; it goes to book and tape only.
    """

    def __init__(self, script: Script, pace: Pace, *, loop: bool = False, warmup_us: int = 0) -> None:
        self.script = script
        self.symbol = script.symbol
        self.book = script.start.copy()
        self.tape = Tape()
        self.event_us = 0
        self.past_books: deque[tuple[int, Book]] = deque(maxlen=PAST_BOOKS_MAX)
        self._streams = {
            kind: f"{stream_symbol(script.symbol)}@{kind}" for kind in ("trade", "bestBidAsk", "depth", "depth20")
        }
        self._pace = pace
        self._warmup_us = warmup_us
        self._steps = passes(script, loop=loop)
        silent = sum(1 for _ in takewhile(lambda step: step.due_us < warmup_us, script.steps))
        self._index = -silent
        self._jump_trades = 0
        self._jump_factor = 1.0
        self._top_due_us: int | None = None
        self._next: tuple[int, Played] | None = None
        self._fetch()
        self._warm_up(silent)

    @property
    def top_stream(self) -> str:
        """Name of the stream of top-20 messages."""
        return self._streams["depth20"]

    @property
    def next_due_us(self) -> int | None:
        """When the next message is due, wall-clock µs; None after the last."""
        if self._next is None:
            return None
        return self._next[0] if self._top_due_us is None else min(self._next[0], self._top_due_us)

    def advance(self, now_us: int, *, count_max: int, top: bool = False) -> list[MarketEvent]:
        """Give the messages that are due, in order.

        Args:
            now_us: Wall-clock time.
            count_max: At most this many; the rest stays due.
            top: Whether top-20 messages are subscribed to: one every `TOP_EVERY_US`, as long as the market is played.
        """
        events: list[MarketEvent] = []
        # After a pause at most a second of them is sent: each holds the whole top of the book.
        self._top_due_us = max(self._top_due_us or now_us, now_us - TOP_LATE_MAX_US) if top else None
        while self._next is not None and len(events) < count_max:
            due_us, played = self._next
            if self._top_due_us is not None and self._top_due_us <= min(now_us, due_us):
                events.append(self._top(self._top_due_us))
                self._top_due_us += TOP_EVERY_US
                continue
            if due_us > now_us:
                break
            events.append(self._play(played))
            self._fetch()
        self._keep_book(now_us)
        return events

    def jump(self, count: int, percent: float) -> None:
        """Change the prices of the next `count` trade messages by some per cent."""
        self._jump_trades = count
        self._jump_factor = 1 + percent / 100

    def past_book(self, now_us: int, age_us: int) -> Book:
        """Give the newest kept book that is at least so old, else the oldest one."""
        old_enough = [book for at_us, book in self.past_books if at_us <= now_us - age_us]
        if old_enough:
            return old_enough[-1]
        return self.past_books[0][1] if self.past_books else self.book

    def _warm_up(self, count: int) -> None:
        for _ in range(count):
            if self._next is not None:
                self._play(self._next[1])
                self._fetch()

    def _fetch(self) -> None:
        following = next(self._steps, None)
        if following is None:
            self._next = None
            return
        number, step = following
        moved_us = number * self.script.duration_us - self._warmup_us
        recorded_us, happened_us = step.due_us + moved_us, step.event_us + moved_us
        due_us, event_us = self._pace.times(self._index, recorded_us, happened_us)
        # By the pace as well: a lag that stays while distances shrink would put trades before earlier ones.
        _, made_us = self._pace.times(self._index, recorded_us, happened_us - step.lag_us)
        self._index += 1
        self._next = due_us, Played(event_us, made_us, number, step)

    def _play(self, played: Played) -> MarketEvent:
        event_us, made_us, number, step = played
        shift = number * (self.script.trade_shift if step.kind == "trade" else self.script.id_shift)
        frame = moved(step, event_us, made_us, shift)
        if step.kind == "depth":
            self.book.apply(frame, step.last_id + shift)
        elif step.kind == "trade":
            if self._jump_trades > 0:
                self._jump_trades -= 1
                scale_prices(frame, self._jump_factor)
            for trade_id, price, qty, is_buyer_maker in trades_in(frame):
                self.tape.add(TapeTrade(trade_id, price, qty, made_us, bool(is_buyer_maker)))
        self.event_us = max(self.event_us, event_us)
        stream = self._streams[step.kind]
        first_id, last_id = step.first_id + shift, step.last_id + shift
        return MarketEvent(step.kind, self.symbol, stream, first_id, last_id, event_us, bytes(frame))

    def _top(self, at_us: int) -> MarketEvent:
        bids, asks = self.book.top(TOP)
        update_id = self.book.update_id
        message = sbe.DepthSnapshot(
            event_time_us=at_us,
            symbol=self.symbol,
            price_exponent=self.script.price_exponent,
            qty_exponent=self.script.qty_exponent,
            book_update_id=update_id,
            bids=tuple(bids),
            asks=tuple(asks),
        )
        stream = self._streams["depth20"]
        return MarketEvent("depth20", self.symbol, stream, update_id, update_id, at_us, sbe.encode(message))

    def _keep_book(self, now_us: int) -> None:
        if not self.past_books or now_us - self.past_books[-1][0] >= PAST_BOOK_EVERY_US:
            self.past_books.append((now_us, self.book.copy()))
