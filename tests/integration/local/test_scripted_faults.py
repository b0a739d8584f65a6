"""Each fault that the exchange can script, on a whole pipeline: its rule applies, it recovers, no slot is missed.

One pipeline serves the whole file; every test begins by waiting until it is sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sheetanchor.contract import STALE_AFTER_US
from support.pipeline import Pipeline, missing_slots, pipeline, quiet_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running() -> Iterator[Pipeline]:
    """A pipeline that is anchored and predicting."""
    with pipeline(exchange_flags=("--warmup-s", "15")) as started:
        yield started


class Watch:
    """What happens from now on."""

    def __init__(self, running: Pipeline) -> None:
        running.wait(lambda: running.anchored, 60, "the state is anchored before the fault")
        running.wait(lambda: running.predictions()[-1]["degraded"] == "0", 30, "predictions are sound before the fault")
        self.running = running
        self.epoch = running.epoch
        self._gaps = running.last_id(running.keys.gaps)
        self._receipts = running.last_id(running.keys.receipts)
        self._predictions = running.last_id(running.keys.preds)

    def rules(self) -> list[str]:
        return [gap.rule for gap in self.running.gaps(self._gaps)]

    def rebuilds(self) -> list[str]:
        """Rules that called for a rebuild."""
        return [gap.rule for gap in self.running.gaps(self._gaps) if gap.action != "validation_reanchor"]

    def results(self) -> list[str]:
        return [receipt.result for receipt in self.running.receipts(self._receipts)]

    def predictions(self) -> list[dict[str, str]]:
        return self.running.predictions(self._predictions)

    def healed(self, within_s: float) -> None:
        """Wait until the state is anchored in a later epoch and predictions are sound again."""
        running = self.running
        running.wait(lambda: running.anchored and running.epoch > self.epoch, within_s, "anchored in a later epoch")
        running.wait(lambda: running.predictions()[-1]["degraded"] == "0", 15, "predictions are sound again")
        # A run writes its receipt last, after it has read back what it swapped in.
        running.wait(lambda: bool(self.results()), 15, "the run's receipt is written")

    def check_beat(self) -> None:
        """No slot is missing, and none that is not degraded is made from stale state."""
        predictions = self.predictions()

        assert [] == missing_slots(predictions)
        assert [] == [
            prediction
            for prediction in predictions
            if prediction["degraded"] == "0"
            and int(prediction["slot"]) * 2_000_000 - int(float(prediction["feature_ts"])) > STALE_AFTER_US + 3_000_000
        ]


def test_lost_book_updates_are_a_sequence_gap(running: Pipeline) -> None:
    """Three diffs lost on both lines: suspect, rebuilt within five seconds, no slot missed."""
    watch = Watch(running)

    running.fault(kind="drop", n=3)

    running.wait(lambda: "sequence_gap" in watch.rules(), 10, "a sequence gap")
    watch.healed(within_s=15)
    assert ["sequence_gap"] == watch.rebuilds()
    assert ["swapped"] == watch.results()
    watch.check_beat()


def test_lost_trades_are_a_sequence_gap(running: Pipeline) -> None:
    """Trade ids are consecutive: a lost trade is detected although the book is complete."""
    watch = Watch(running)

    running.fault(kind="drop", n=3, what="trade")

    running.wait(lambda: "sequence_gap" in watch.rules(), 30, "a sequence gap")
    watch.healed(within_s=15)
    watch.check_beat()


def test_what_one_line_loses_the_other_has(running: Pipeline) -> None:
    """Losses on one line only are no gap at all."""
    watch = Watch(running)

    running.fault(kind="drop", n=20, line="a")

    quiet_until(running, 6)
    assert [] == watch.rebuilds()
    assert (True, watch.epoch) == (running.anchored, running.epoch)
    watch.check_beat()


def test_duplicates_change_nothing(running: Pipeline) -> None:
    """Repeated frames are recognised by their ids."""
    watch = Watch(running)

    running.fault(kind="duplicate", n=50)

    quiet_until(running, 5)
    assert [] == watch.rebuilds()
    assert watch.epoch == running.epoch
    watch.check_beat()


def test_a_garbage_frame_stops_nothing(running: Pipeline) -> None:
    """A frame that is none is counted and passed over."""
    watch = Watch(running)

    running.fault(kind="garbage")

    quiet_until(running, 5)
    assert [] == watch.rebuilds()
    watch.check_beat()


def test_an_announced_shutdown_costs_nothing(running: Pipeline) -> None:
    """serverShutdown: the lines reconnect before the old connection ends."""
    watch = Watch(running)

    running.fault(kind="shutdown")

    quiet_until(running, 8)
    assert (True, watch.epoch) == (running.anchored, running.epoch)
    watch.check_beat()


def test_silence_of_one_line_costs_nothing(running: Pipeline) -> None:
    """The other line carries on."""
    watch = Watch(running)

    running.fault(kind="silence", seconds=8, line="b")

    quiet_until(running, 10)
    assert [] == watch.rebuilds()
    assert [] == [p for p in watch.predictions() if p["degraded"] == "1"]
    watch.check_beat()


def test_silence_of_all_lines_is_a_time_gap(running: Pipeline) -> None:
    """No event for five seconds: predictions say that they are stale, and the state is rebuilt."""
    watch = Watch(running)

    running.fault(kind="silence", seconds=12)

    running.wait(lambda: "time_gap" in watch.rules(), 15, "a time gap")
    watch.healed(within_s=40)
    assert [] != [p for p in watch.predictions() if p["degraded"] == "1"]
    watch.check_beat()


def test_a_cut_connection_comes_back_at_once(running: Pipeline) -> None:
    """Both lines are cut: they return within seconds, and whatever was lost in between is rebuilt."""
    watch = Watch(running)

    running.fault(kind="disconnect")

    quiet_until(running, 3)
    running.wait(lambda: running.anchored, 20, "anchored")
    running.wait(lambda: running.predictions()[-1]["degraded"] == "0", 15, "predictions are sound again")
    assert set(watch.rebuilds()) <= {"sequence_gap"}
    watch.check_beat()


@pytest.mark.parametrize(
    "rest_fault",
    [
        {"kind": "slow_rest", "seconds": 2, "for": 4},
        {"kind": "rest_status", "code": 500, "n": 4},
        {"kind": "rest_status", "code": 429, "retry_after": 2, "n": 1},
        {"kind": "stale_snapshot", "seconds": 3, "for": 3},
    ],
    ids=lambda fault: f"{fault['kind']}-{fault.get('code', '')}",
)
def test_a_rebuild_outlasts_a_bad_rest_interface(running: Pipeline, rest_fault: dict[str, Any]) -> None:
    """Whatever REST answers for a while, the state stays suspect until a good rebuild, and no slot is missed."""
    watch = Watch(running)

    running.fault(**rest_fault)
    running.fault(kind="drop", n=3)

    running.wait(lambda: "sequence_gap" in watch.rules(), 10, "a sequence gap")
    watch.healed(within_s=60)
    watch.check_beat()


def test_a_refusing_exchange_is_a_connection_loss(running: Pipeline) -> None:
    """After 30 s without a connection the emergency re-anchor is asked for while reconnecting goes on."""
    watch = Watch(running)

    refusing = running.fault(kind="refuse", seconds=3_600)
    running.fault(kind="disconnect")

    running.wait(lambda: "connection_loss" in watch.rules(), 60, "a connection loss")
    running.end_fault(refusing["id"])
    running.wait(lambda: running.predictions()[-1]["degraded"] == "0", 90, "predictions are sound again")
    running.wait(lambda: running.anchored, 30, "anchored")
    watch.check_beat()


def test_the_summary_reports_what_happened(running: Pipeline) -> None:
    """At the end: exit code 0, no slot missed, and each number counted."""
    Watch(running)

    ended = running.stop()

    assert 0 == ended.code
    assert 0 == ended.summary["missed"]
    assert ended.summary["gaps"] >= 6
    assert ended.summary["reanchors"] >= 6
    assert ended.summary["slots"] == ended.summary["predictions"] > 40
