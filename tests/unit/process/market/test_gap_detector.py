"""What the processor's rules make of a replay after a rebuild."""

from __future__ import annotations

from sheetanchor._decoder import Market
from sheetanchor.policy.gap_rules import Thresholds
from sheetanchor.process.market.gap_detector import DetectorContext, GapDetector

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND
LEVEL = [(100, 1)]


def rules_found(*, caught_up: bool) -> set[str]:
    """Give a rebuilt market ten seconds of frames whose ids it knows, and name the rules that apply."""
    market = Market("BTCUSDT")
    market.load_snapshot(1000, -2, -2, LEVEL, [(101, 1)], NOW)
    detector = GapDetector(Thresholds(), NOW)
    detector.reload(market, NOW)
    found: set[str] = set()
    for second in range(10):
        context = DetectorContext(NOW, NOW - (10 - second) * SECOND, live_lines=1, caught_up=caught_up)
        found |= {finding.rule for finding in detector.apply_rules(market, context)}
    return found


def test_replay_is_no_reset_of_ids() -> None:
    """A replay delivers seconds of known frames at once, which does not mean that the exchange restarted its ids."""
    assert set() == rules_found(caught_up=False)


def test_known_ids_without_a_replay_are_a_reset() -> None:
    """The same frames, arriving live, do."""
    assert {"sequence_reset"} == rules_found(caught_up=True)
