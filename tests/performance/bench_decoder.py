"""Measure decode, book and windows per message on the shipped recording, and print them as Markdown tables.

The same messages go through the native market, the reference market in Python, `orjson` on the JSON form of the
streams, and a loop of `struct.unpack_from` that keeps nothing. Each figure is the best of many runs over the whole
recording, or over its first part for the slow ones; the mix of messages is the recording's own. `--against` measures
another build of the native module in the same run, in turns with the installed one.
"""

from __future__ import annotations

import argparse
import os
import platform
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sheetanchor import _decoder, sbe
from sheetanchor.contract import pack_frames
from sheetanchor.recording import recording_file
from support import reference, reference_market
from support.native_builds import Recorded, Work, fastest, installed, memory_kib

# As many frames per stream entry as 5 ms bring at 4,000 messages a second.
ENTRY_FRAMES = 20
# Name, work and runs of what the native market does with the recording.
NATIVE = [
    ("frames read and checked, nothing kept", Work(1000, is_kept=False), 60),
    ("decode + book + windows, 1,000 frames an entry", Work(1000), 60),
    (f"the same, {ENTRY_FRAMES} frames an entry", Work(ENTRY_FRAMES), 60),
    ("the same, 1 frame an entry", Work(1), 30),
    (f"16 markets in turn, {ENTRY_FRAMES} frames an entry", Work(ENTRY_FRAMES, markets=16), 10),
    ("bestBidAsk alone, 1,000 frames an entry", Work(1000, template=10001), 60),
    ("trades alone", Work(1000, template=10000), 60),
    ("depth diffs alone", Work(1000, template=10003), 60),
]
# The slow ways see this many messages; their cost per message does not depend on how many follow.
SLOW_MESSAGES = 4000
# A goal is a hundred symbols on one machine.
MARKETS = 100
NAMES = {10000: "trades", 10001: "bestBidAsk", 10002: "depth20", 10003: "depth diff"}

Frames = Sequence[tuple[int, bytes]]
Row = tuple[str, float, int]


def best_ns(work: Callable[[], object], messages: int, runs: int) -> float:
    """Nanoseconds per message in the fastest of several runs."""
    fastest = float("inf")
    for _ in range(runs):
        start = time.perf_counter_ns()
        work()
        fastest = min(fastest, (time.perf_counter_ns() - start) / messages)
    return fastest


def template(frame: bytes) -> int:
    """Template id of a frame."""
    return int.from_bytes(frame[2:4], "little")


def entries(frames: Frames, size: int) -> list[bytes]:
    """Frames as stream entries of a given number each."""
    return [pack_frames(frames[at : at + size]) for at in range(0, len(frames), size)]


def loaded(kind: Any, taken: recording_file.Recording) -> Any:
    """A market at the recording's first book."""
    market, book = kind(taken.symbol), taken.snapshot
    exponents = book.price_exponent, book.qty_exponent
    market.load_snapshot(book.book_update_id, *exponents, list(book.bids), list(book.asks), 0)
    return market


def feed_all(kind: Any, taken: recording_file.Recording, batches: list[bytes]) -> float:
    """Seconds to feed every entry to a fresh market; making the market does not count."""
    market = loaded(kind, taken)
    start = time.perf_counter_ns()
    for batch in batches:
        market.feed(0, batch, 0)
    return (time.perf_counter_ns() - start) / 1e9


def market_ns(kind: Any, taken: recording_file.Recording, frames: Frames, size: int, runs: int) -> float:
    """Nanoseconds per message of decode, book and windows."""
    batches = entries(frames, size)
    return min(feed_all(kind, taken, batches) for _ in range(runs)) / len(frames) * 1e9


def as_json(message: sbe.Message) -> bytes:
    """The message in the JSON form of the same stream, as the exchange writes it."""

    def text(mantissa: int) -> str:
        return f"{mantissa // 10**8}.{mantissa % 10**8:08}"

    def levels(side: tuple[tuple[int, int], ...]) -> list[list[str]]:
        return [[text(price), text(qty)] for price, qty in side]

    m = message
    common: dict[str, Any] = {"s": m.symbol, "E": m.event_time_us // 1000}
    if isinstance(m, sbe.Trades):
        trade_id, price, qty, maker = m.trades[0]
        common |= {"e": "trade", "t": trade_id, "p": text(price), "q": text(qty), "T": m.transact_time_us // 1000}
        common |= {"m": maker, "M": True}
    elif isinstance(m, sbe.BestBidAsk):
        prices = {"b": m.bid_price, "B": m.bid_qty, "a": m.ask_price, "A": m.ask_qty}
        common |= {"u": m.book_update_id, **{name: text(value) for name, value in prices.items()}}
    elif isinstance(m, sbe.DepthDiff):
        common |= {"e": "depthUpdate", "U": m.first_update_id, "u": m.last_update_id}
        common |= {"b": levels(m.bids), "a": levels(m.asks)}
    return orjson.dumps({"stream": "btcusdt@any", "data": common})


def numbers_of(raw: bytes) -> list[tuple[float, float]]:
    """Parse one JSON message and turn its prices and quantities into numbers, which any use of them needs."""
    data = orjson.loads(raw)["data"]
    if "U" in data:
        return [(float(price), float(qty)) for price, qty in data["b"] + data["a"]]
    if "t" in data:
        return [(float(data["p"]), float(data["q"]))]
    return [(float(data["b"]), float(data["B"])), (float(data["a"]), float(data["A"]))]


def unpack(frame: bytes) -> list[tuple[int, ...]]:
    """Read the fields of one frame with `struct`, without checks, state or objects other than tuples."""
    kind = template(frame)
    if kind == 10001:
        return [struct.unpack_from("<qqbbqqqq", frame, 8)]
    if kind == 10000:
        (count,) = struct.unpack_from("<I", frame, 28)
        return [struct.unpack_from("<qqqB", frame, 32 + 25 * entry) for entry in range(count)]
    out, at = [struct.unpack_from("<qqqbb", frame, 8)], 34
    for _ in range(2):
        (count,) = struct.unpack_from("<H", frame, at + 2)
        out += struct.iter_unpack("<qq", frame[at + 4 : at + 4 + 16 * count])
        at += 4 + 16 * count
    return out


def each(work: Callable[[bytes], object], items: Sequence[bytes]) -> Callable[[], None]:
    """A run that gives every item to the work."""

    def run() -> None:
        for item in items:
            work(item)

    return run


def repeat(call: Callable[[], object], times: int) -> None:
    """Make the same call so many times."""
    for _ in range(times):
        call()


def rows(taken: recording_file.Recording) -> Iterator[Row]:
    """What was measured: name, nanoseconds per message, messages."""
    frames = taken.events
    count, slow = len(frames), frames[:SLOW_MESSAGES]
    raw = [frame for _, frame in frames]
    json = [as_json(sbe.decode(frame)) for frame in raw]
    yield "C++: check one frame (`validate_frame`)", best_ns(each(_decoder.validate_frame, raw), count, 10), count
    yield "C++: `sbe.decode` to Python records", best_ns(each(sbe.decode, raw), count, 3), count
    yield "`struct` loop: fields only, no checks, no state", best_ns(each(unpack, raw), count, 3), count
    yield "`orjson` on the JSON form: parse and floats, no state", best_ns(each(numbers_of, json), count, 3), count
    yield "Python twin: decode only", best_ns(each(reference.decode, raw[:SLOW_MESSAGES]), len(slow), 2), len(slow)
    twin = market_ns(reference_market.Market, taken, slow, 1000, 1)
    yield "Python twin: decode + book + windows", twin, len(slow)


def recorded_of(taken: recording_file.Recording) -> Recorded:
    """A recording as what builds are fed with."""
    book = taken.snapshot
    levels = list(book.bids), list(book.asks)
    snapshot = book.book_update_id, book.price_exponent, book.qty_exponent, *levels
    return Recorded(taken.symbol, snapshot, taken.events)


def native_rows(builds: Sequence[Path], scale: float, market: Recorded) -> Iterator[str]:
    """Table rows of the native market: nanoseconds, and as a multiple of reading the frames; then the other builds'."""
    reading: list[float] = []
    for name, work, runs in NATIVE:
        found = fastest(builds, work, max(1, round(runs * scale)), market)
        reading = reading or found
        ratios = [ns / bare for ns, bare in zip(found, reading, strict=True)]
        others = "".join(f" {ns:,.1f} | {found[0] / ns:.2f} |" for ns in found[1:])
        yield f"| {name} | {found[0]:,.1f} | {ratios[0]:.1f} | {1e9 / found[0]:,.0f} |{others}"


def reads(taken: recording_file.Recording) -> Iterator[tuple[str, float]]:
    """What reading a market costs: name and microseconds per call."""
    market = loaded(_decoder.Market, taken)
    for batch in entries(taken.events, 1000):
        market.feed(0, batch, 0)
    packed = market.pack_book(1, {"a": "1-0"})
    other = _decoder.Market(taken.symbol)
    levels = sum(len(side) for side in market.levels())
    calls: list[tuple[str, Callable[[], object]]] = [
        ("`hot_state`: all fields of the four hot hashes", lambda: market.hot_state(0)),
        (f"`pack_book` of {levels:,} levels, {len(packed):,} bytes", lambda: market.pack_book(1, {"a": "1-0"})),
        ("`load_book` of the same", lambda: other.load_book(packed)),
    ]
    for name, call in calls:
        yield name, best_ns(partial(repeat, call, 200), 200, 5) / 1000


def machine() -> str:
    """Processor, cores and versions."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "a file _decoder*.so of another build, to be measured in turns with the installed one"
    parser.add_argument("--against", type=Path, nargs="*", default=[], metavar="FILE", help=text)
    parser.add_argument("--native-only", action="store_true", help="leave the slow ways out")
    parser.add_argument("--scale", type=float, default=1.0, help="so many times as many runs of the native module")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    args = arguments()
    taken = recording_file.load(recording_file.default_path())
    mix = Counter(NAMES[template(frame)] for _, frame in taken.events)
    parts = ", ".join(f"{count:,} {name}" for name, count in mix.most_common())
    print("## Decoder\n")
    print(f"Machine: {machine()}.  \nCommand: `.venv/bin/python tests/performance/bench_decoder.py`.  ")
    print(f"Messages: {len(taken.events):,} of the shipped recording ({parts}).\n")
    columns = ["", "ns per message", "of reading", "messages per second"]
    for build in args.against:
        columns += [f"ns, {build.name}", "ratio"]
    print(f"| C++{' | '.join(columns)} |\n|---|{'---:|' * (len(columns) - 1)}")
    builds, market = [installed(), *args.against], recorded_of(taken)
    for row in native_rows(builds, args.scale, market):
        print(row, flush=True)
    memory = [f"{memory_kib(build, MARKETS, market):,.0f} KiB ({build.name})" for build in builds]
    print(f"\nMemory of each of {MARKETS} markets that were fed with the recording: {', '.join(memory)}.")
    if args.native_only:
        return
    print("\n| way | ns per message | messages per second | messages measured |\n|---|---:|---:|---:|")
    for name, ns, count in rows(taken):
        print(f"| {name} | {ns:,.0f} | {1e9 / ns:,.0f} | {count:,} |", flush=True)
    print("\n| reading a market | µs per call |\n|---|---:|")
    for name, us in reads(taken):
        print(f"| {name} | {us:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
