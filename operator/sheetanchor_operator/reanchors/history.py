"""The history of a symbol's re-anchors, computed from its ReAnchor objects each time it is needed.

None of it is kept in a process: an operator that has just become the leader knows what its predecessor did.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sheetanchor.policy.reanchor_object import digest
from sheetanchor.policy.reanchor_scheduler import DEFAULT_POLICY, HOUR_US, Policy, State, backoff_us
from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.reanchors.durable_record import comparisons
from sheetanchor_operator.reanchors.runs import SECOND_US, ReAnchor

REBUILDS_KEPT_MAX: Final = 600
"""The largest budget there is."""


def policy_of(pipeline: Pipeline) -> Policy:
    """Give the limits for the scheduler from a pipeline's specification."""
    wanted = pipeline.spec.reanchor
    return Policy(
        cooldown_us=wanted.cooldown_seconds * SECOND_US,
        rebuilds_per_hour=wanted.rebuilds_per_hour,
        # Past the budget the pipeline has one such rebuild a minute, whatever the number of its symbols.
        suspect_interval_us=DEFAULT_POLICY.suspect_interval_us * len(pipeline.spec.symbols),
        backoff_us=wanted.backoff_seconds * SECOND_US,
        backoff_max_us=wanted.backoff_max_seconds * SECOND_US,
        suppressed=frozenset(pipeline.spec.processor.gaps.suppress),
        enabled=wanted.enabled,
    )


def jitter_of(name: str, attempt: int) -> float:
    """Give a number in [0, 1) that spreads retries; the same in every operator."""
    return int(digest(name, attempt), 16) / 2**32


def rebuilds_of(symbol: str, known: Iterable[ReAnchor], status: Mapping[str, Any], now_us: int) -> tuple[int, ...]:
    """Give the ends of the rebuilds of the last hour, also of those whose objects are deleted."""
    return tuple(at_us for of, at_us in _rebuilds(known, status, now_us) if of == symbol)[-REBUILDS_KEPT_MAX:]


def _rebuilds(known: Iterable[ReAnchor], status: Mapping[str, Any], now_us: int) -> list[tuple[str, int]]:
    """Give symbol and end of every rebuild of the last hour, in their order."""
    found = {
        (str(entry.get("name")), int(at_us))
        for entry in status.get("symbols") or ()
        for at_us in entry.get("rebuiltMicros") or ()
    }
    found.update((one.symbol, one.finished_us) for one in known if one.result == "swapped")
    return sorted((one for one in found if one[1] > now_us - HOUR_US), key=lambda one: one[1])


def history_of(symbol: str, known: Sequence[ReAnchor], status: Mapping[str, Any], now_us: int) -> State:
    """Rebuild the scheduler's state of a symbol from its objects; without what is pending or running.

    Args:
        symbol: Trading pair.
        known: The pipeline's ReAnchors, those of its other symbols too.
        status: The pipeline's status.
        now_us: The time.
    """
    others = [at_us for of, at_us in _rebuilds(known, status, now_us) if of != symbol]
    others += [at_us for ends in comparisons(known, status, now_us).values() for at_us in ends]
    ran = sorted(
        (one for one in known if one.symbol == symbol and one.attempts and one.finished_us and not one.dry_run),
        key=lambda one: (one.finished_us, one.name),
    )
    covered_us = failures = retry_us = 0
    for one in ran:
        if one.phase == "Succeeded":
            covered_us = max(covered_us, one.finished_us - one.duration_us)
        if one.phase in ("Succeeded", "Skipped"):
            failures = retry_us = 0
        else:
            failures += one.attempts - one.held
            retry_us = max(retry_us, one.next_us)
    return State(
        rebuilt_us=rebuilds_of(symbol, known, status, now_us),
        others_us=tuple(sorted(others)[-REBUILDS_KEPT_MAX:]),
        covered_us=covered_us,
        ended_us=ran[-1].finished_us if ran else 0,
        failures=failures,
        retry_us=retry_us,
    )


def next_try_us(one: ReAnchor, attempt: int, failures: int, finished_us: int, asked_us: int, policy: Policy) -> int:
    """Compute the time of the next attempt after a failed run.

    Args:
        one: The ReAnchor.
        attempt: The number of the run that failed.
        failures: Failed runs in a row, this one included.
        finished_us: When it ended.
        asked_us: Time before which the exchange asked for no requests; 0 for none.
        policy: The delays.
    """
    return max(finished_us + backoff_us(failures, jitter_of(one.name, attempt), policy), asked_us)
