"""Types of the native module built from `decoder/`."""

from typing import Any

TRADES: int
BEST_BID_ASK: int
DEPTH_SNAPSHOT: int
DEPTH_DIFF: int
ERROR_KINDS: tuple[str, ...]

def decode(frame: bytes | bytearray | memoryview) -> tuple[int, tuple[Any, ...]]: ...
def encode(template_id: int, message: object) -> bytes: ...
def validate_frame(frame: bytes | bytearray | memoryview) -> tuple[int, str, int, int, int, int]:
    """Check one frame completely without making objects of its entries.

    Returns:
        Template id, symbol, event time in microseconds, first and last id (trade ids, or book update ids; both 0 when a
        trades message is empty), and the number of entries (trades, or levels of both sides; 1 for bestBidAsk).

    Raises:
        sheetanchor.sbe.DecodeError: The frame is none of the four messages.
    """

IdGap = tuple[int, int, int, int]
Levels = list[tuple[int, int]]
NewestMessageTuple = tuple[int, int, int, int, list[int]]

class Market:
    """One symbol's market: lines of frames merged by id into an order book, trade windows and the hot state.

    A diff is next when `first_update_id <= update_id + 1 <= last_update_id`; a trade when its id is `trade_id + 1`.
    What lies further ahead waits (at most 4,096 diffs with 2**20 levels, and 65,536 trades) until some line brings
    what is missing. Prices and quantities are kept at the finest exponents met so far. Times on the market's clock are
    called `event`; those on Redis' clock `stamp` or `now`. All are microseconds since 1970 UTC.
    """

    def __init__(self, symbol: str) -> None: ...
    def feed(self, line: int, batch: bytes | bytearray | memoryview, stamp_us: int, stop_at_update_id: int = 0) -> int:
        """Take the frames of one stream entry: per frame u32 length, i64 receive time, frame; little-endian.

        A bad frame is counted and left out; nothing of it is applied.

        Args:
            line: Which line it came by, 0..15.
            batch: The entry's field `f`.
            stamp_us: When the entry was appended, on Redis' clock.
            stop_at_update_id: Stop right after the diff that makes `update_id` equal to this; 0 for never.

        Returns:
            The number of frames consumed.

        Raises:
            ValueError: The framing is broken (nothing was applied), or `line` or `stamp_us` is out of range.
        """

    def load_snapshot(
        self,
        last_update_id: int,
        price_exponent: int,
        qty_exponent: int,
        bids: list[tuple[int, int]],
        asks: list[tuple[int, int]],
        stamp_us: int,
        cut_off: int = 0,
    ) -> None:
        """Start the book afresh at a snapshot, in any order of levels; trades and best prices stay.

        A side with `cut_off` levels or more was cut off there: what lies beyond is unknown until it changes. 0 for a
        snapshot that holds every level.

        Use a new Market where update ids may have gone back.

        Raises:
            ValueError: A level is not a price and a quantity above 0, or a price comes twice.
        """

    def seed_trades(
        self, trades: list[tuple[int, int, int, int, bool]], price_exponent: int, qty_exponent: int
    ) -> None:
        """Merge trades from elsewhere: tuples `(id, price, qty, time_us, is_buyer_maker)`, each id once.

        Raises:
            ValueError: A trade has no price or quantity above 0, or an id or time out of range.
        """

    def pack_book(self, epoch: int, line_ids: dict[str, str]) -> bytes:
        """Pack book, best prices and positions, with a checksum.

        Raises:
            ValueError: There is no book yet.
        """

    def load_book(self, blob: bytes) -> tuple[int, dict[str, str]]:
        """Take over a packed book; everything but the counters starts afresh.

        Replayed trades up to the packed trade id and best prices up to the packed id fill the windows again; the first
        trade beyond them has to be the next id, or one is missing.

        Returns:
            Epoch and stream id per line, as packed.

        Raises:
            ValueError: It is not a sound packed book of this symbol; the market is as before.
        """

    @property
    def depth_gap(self) -> IdGap | None:
        """`(expected id, id found, stamp of the first frame beyond, bit per line that has gone beyond)`."""

    @property
    def trade_gap(self) -> IdGap | None:
        """The same for trade ids."""

    def skip_depth_gap(self) -> None:
        """Go on with the diffs that wait; the caller has declared the gap."""

    def skip_trade_gap(self) -> None:
        """Go on with the trades that wait; the caller has declared the gap."""

    def hot_state(self, now_us: int) -> tuple[list[str], list[str], list[str], list[str]]:
        """Fields of `ob`, `tr:1s`, `tr:5s` and `feat`, each as `[field, value, field, value, …]`.

        Windows end at the newest event time plus the time since its frame came. `epoch` and `source` are the caller's.

        Raises:
            ValueError: `Empty order book data`: there is no book, or a side of it is empty.
        """

    def top(self, depth: int) -> tuple[Levels, Levels]:
        """Return the best `depth` levels of bids and asks as mantissas, best first."""

    def levels(self) -> tuple[Levels, Levels]:
        """Return all levels of bids and asks as mantissas, best first."""

    def known_levels(self, depth: int) -> int:
        """Return how many of a side's best `depth` levels are known, of the side that has fewer; `depth` if all are."""

    def volume_between(self, start_event_us: int, end_event_us: int) -> float:
        """Return the quantity traded after the start up to and including the end; two minutes are kept."""

    def counters(self) -> dict[str, int]:
        """Return what has been counted since the market was made."""

    def newest_messages(self) -> dict[str, NewestMessageTuple]:
        """Return the newest message by id of `trade`, `bestBidAsk` and `depth`.

        Each is `(messages that brought a new highest id, id, event time, stamp of its entry, [per line the stamp of its
        last message, new or not; 0 for none])`; id and event time are -1 before the first. A load begins again.
        """

    @property
    def quoted_best(self) -> tuple[int, int] | None:
        """Best bid and ask of the newest bestBidAsk, as mantissas; None before the first."""

    @property
    def clock_steps(self) -> int:
        """How often the exchange's clock was found to have been set."""

    @property
    def misdated_trades(self) -> int:
        """Frames of new trades whose time is over two seconds from the feed's: windows hold them where that time is."""

    @property
    def clock_untrusted(self) -> bool:
        """Whether the newest event times are not believed, yet or at all."""

    @property
    def best_confirmed(self) -> int:
        """How many bestBidAsk the book has agreed with, each compared once, when the book reaches its update."""

    def missing_trades(self, now_us: int, span_us: int) -> int:
        """Return how many trades a window of so long, ending now, lacks, or holds though others are nearer; 0 if whole.

        Its ids have to be consecutive up to the newest, or some were lost or are dated by a clock that was wrong.
        """

    @property
    def symbol(self) -> str: ...
    @property
    def price_exponent(self) -> int: ...
    @property
    def qty_exponent(self) -> int: ...
    @property
    def update_id(self) -> int:
        """Update that the book's levels belong to; 0 without a book."""

    @property
    def bba_id(self) -> int:
        """Update of the newest bestBidAsk; -1 before the first."""

    @property
    def trade_id(self) -> int:
        """Newest trade without a missing one before it; -1 before the first."""

    @property
    def last_seen_update_id(self) -> int:
        """Highest update seen in any diff, applied or not."""

    @property
    def event_us(self) -> int:
        """Newest event time seen and believed; -1 before the first frame."""

    @property
    def stamp_us(self) -> int:
        """Stamp of the entry that carried the newest event time."""

    @property
    def has_book(self) -> bool: ...
    @property
    def crossed(self) -> bool:
        """Whether the depth book's best bid is at or above its best ask."""

    @property
    def cut_off(self) -> int:
        """Levels a side that the snapshot was asked for; 0 if that is not known."""

    @property
    def bid_edge(self) -> int:
        """Price of the last bid that is known, as a mantissa; 0 if all are. Further out only what has changed is."""

    @property
    def ask_edge(self) -> int:
        """The same for asks."""

    @property
    def mid(self) -> float | None: ...
    @property
    def last_trade_price(self) -> float | None: ...
