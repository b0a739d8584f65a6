"""Random feeds by the thousand, and an hour of the recorded market: states reported as sound equal the exchange's.

`make soak-feeds` runs it: COUNT feeds from SEED on, each with faults of one kind, of two, or with none. It prints what
was found and exits with 1 if a state that differs from the exchange's was reported as sound beyond the delays that
docs/gaps.md gives, if a clean feed was ever unsound, or if a feed was not sound again at its end.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor

from sheetanchor._decoder import Market
from sheetanchor.contract import pack_frames
from sheetanchor.policy.gap_rules import Thresholds
from sheetanchor.process.market.gap_detector import GapDetector
from sheetanchor.process.market.market_follower import Follower
from sheetanchor.recording import recording_file
from sheetanchor.simulator.playback import market as exchange
from sheetanchor.simulator.playback.playback_clock import RecordedPace
from sheetanchor.simulator.playback.script import prepare
from sheetanchor.store.server_clock import RedisClock
from support.feed_world import SECOND, World

START_US = 1_700_000_000 * SECOND
HOUR_TICK_US = 100_000


def feed_of(seed: int) -> tuple[int, str, list[str], int, int, set[str]]:
    """Play a feed: seed, faults, what was wrong, how long it was unsound, number of comparisons, and the reasons."""
    world = World(seed)
    outcome = world.run()
    told = "; ".join(
        f"{fault.kind} {fault.size:g} of {','.join(sorted(fault.streams))} on {''.join('ab'[n] for n in fault.lines)} "
        f"from {fault.start_us / SECOND:.1f} to {fault.end_us / SECOND:.1f} s"
        for fault in world.faults
    )
    wrong = [f"at {at_s:.1f} s: {what}" for at_s, what in outcome.wrong[:3]]
    if not world.faults and outcome.doubted_us:
        wrong.append(f"doubted without a fault: {sorted(outcome.kinds)}")
    if not outcome.sound_at_end:
        wrong.append(f"not sound at the end: {world.written.unsound if world.written else 'nothing written'}")
    return seed, told or "no fault", wrong, outcome.doubted_us, outcome.looks, outcome.kinds


class Line:
    """One line of the recorded market: entries with ids of Redis' clock, some milliseconds after the sending."""

    def __init__(self, name: str, seed: int) -> None:
        self.line = name
        self.rate = random.Random(seed)
        self.stamp_us = 0
        self.frames = b""

    def bring(self, frames: list[bytes], now_us: int) -> Line:
        self.stamp_us = now_us - self.rate.randrange(30_000)
        self.frames = pack_frames([(0, frame) for frame in frames])
        return self


def clean_doubts(seconds: int) -> tuple[int, Counter[str]]:
    """Play the shipped recording round and round, ids going on from pass to pass as the simulator has them.

    Returns:
        Frames played and how many observations found each reason, after the first three seconds.
    """
    script = prepare(recording_file.load(recording_file.default_path()))
    market = exchange.PlaybackMarket(script, RecordedPace(START_US), loop=True)
    clock = RedisClock()
    clock.learn(0, 0, START_US)
    follower = Follower(Market(script.symbol), GapDetector(Thresholds(), 0), clock)
    rebuilt = Market(script.symbol)
    bids, asks = list(script.start.bids.items()), list(script.start.asks.items())
    rebuilt.load_snapshot(script.start.update_id, script.price_exponent, script.qty_exponent, bids, asks, START_US)
    follower.begin(rebuilt, 0)
    lines = [Line("a", 1), Line("b", 2)]
    found: Counter[str] = Counter()
    frames = 0
    for now_us in range(HOUR_TICK_US, seconds * SECOND, HOUR_TICK_US):
        due = [event.frame for event in market.advance(START_US + now_us - 40_000, count_max=1_000_000)]
        frames += len(due)
        for line in lines:
            if due:
                follower.take(line.bring(due, START_US + now_us), now_us)
        follower.read(now_us, "ab", complete=True)
        for finding in follower.apply_rules(now_us):
            found[f"rule {finding.rule}: {finding.reason}"] += 1
        _, unwritten = follower.hot(now_us)
        verdict = follower.verdict(now_us, unwritten)
        if now_us > 3 * SECOND:
            found.update(str(reason.kind) for reason in verdict.reasons)
    return frames, found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    began_s = time.monotonic()
    bad = compared = doubted = 0
    kinds: Counter[str] = Counter()
    seeds = range(options.seed, options.seed + options.count)
    with ProcessPoolExecutor(options.processes) as pool:
        for seed, faults, wrong, doubted_us, looks, told in pool.map(feed_of, seeds, chunksize=25):
            compared += looks
            doubted += doubted_us > 0
            kinds.update(told)
            if wrong:
                bad += 1
                print(f"seed {seed} ({faults}): {'; '.join(wrong)}", flush=True)
    print(
        f"{options.count} feeds from seed {options.seed}: {bad} wrong, {doubted} doubted at some time "
        f"({', '.join(f'{kind} {count}' for kind, count in kinds.most_common())}); "
        f"{compared} states told as sound and compared, in {time.monotonic() - began_s:.0f} s"
    )
    frames, found = clean_doubts(round(options.hours * 3600)) if options.hours else (0, Counter())
    alarms = sum(count for what, count in found.items() if not what.startswith("rule volume_anomaly"))
    print(f"{options.hours:g} h of the recorded market, {frames} frames on each of two lines: {alarms} false alarms")
    for what, count in found.most_common():
        print(f"  {what}: {count}")
    return 1 if bad or alarms else 0


if __name__ == "__main__":
    sys.exit(main())
