"""`ReAnchor.status` as it is written: when a run begins, when it fails and is tried again, and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sheetanchor.runtime.plain_text import one_line
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.reanchors.durable_record import Answered
from sheetanchor_operator.reanchors.runs import Ended, ReAnchor

MESSAGE_LENGTH_MAX: Final = 2_000
CHECKS_MAX: Final = 64
CHECK_LENGTH_MAX: Final = 100
PHASES_MAX: Final = 20
PHASE_LENGTH_MAX: Final = 40

Status = dict[str, Any]

OF_A_RUN: Final = (
    "message",
    "nextAttemptAt",
    "exitCode",
    "result",
    "finishedAt",
    "durationSeconds",
    "phases",
    "epochBefore",
    "epochAfter",
    "snapshotID",
    "updateID",
    "checks",
)
"""Fields that a new run sets itself; the failure of an earlier one is in the Events."""


def running(one: ReAnchor, job: str, attempt: int, begun_us: int) -> Status:
    """Record that a run has begun."""
    status: Status = {"phase": "Running", "jobName": job, "attempts": attempt, "answeredBy": None}
    if attempt != one.attempts:
        status |= dict.fromkeys(OF_A_RUN) | {"startedAt": text_of(begun_us)}
    return status


def retried(one: ReAnchor, attempt: int, ended: Ended, next_us: int) -> Status:
    """Record that a run has failed and will be tried again."""
    return {
        **_of_run(ended),
        "phase": "Pending",
        "attempts": attempt,
        "message": one_line(f"run {attempt} failed, it will be tried again: {ended.message}", MESSAGE_LENGTH_MAX),
        "nextAttemptAt": text_of(next_us),
    }


def waiting_for_lock(attempt: int, held: int, ended: Ended, next_us: int) -> Status:
    """Record that a run has found another one in progress, and when the next begins."""
    return {
        **_of_run(ended),
        "phase": "Pending",
        "attempts": attempt,
        "attemptsHeld": held,
        "message": one_line(f"waits: run {attempt} found another run in progress: {ended.message}", MESSAGE_LENGTH_MAX),
        "nextAttemptAt": text_of(next_us),
    }


def answered_again(one: ReAnchor, first: Answered, now_us: int) -> Status:
    """Record the answer that the first request of the same id got."""
    result = "repeated" if first.phase == "Succeeded" else first.result
    message = f"request {one.request_id} was made before, as {first.name}: {first.message or first.result}"
    epochs = {"epochBefore": first.epoch_before, "epochAfter": first.epoch_after}
    return {
        **finished(one, first.phase, Ended(0, result, message, 0, now_us)),
        **{name: epoch for name, epoch in epochs.items() if epoch is not None},
        "exitCode": None,
        "answeredBy": first.name,
    }


def finished(one: ReAnchor, phase: str, ended: Ended, next_us: int = 0) -> Status:
    """Record the final phase.

    Args:
        one: The ReAnchor.
        phase: Succeeded, Failed or Skipped.
        ended: How its last run ended, or why there was none.
        next_us: Time before which no other run of the symbol should begin; 0 for none.
    """
    return {
        **_of_run(ended),
        "phase": phase,
        "message": one_line(ended.message, MESSAGE_LENGTH_MAX),
        "nextAttemptAt": text_of(next_us) if next_us else None,
        "conditions": [_condition(one, phase, ended)],
    }


def _of_run(ended: Ended) -> Status:
    status: Status = {
        "result": ended.result,
        "finishedAt": text_of(ended.finished_us),
        "exitCode": ended.exit_code if 0 <= ended.exit_code <= 255 else None,
    }
    if ended.started_us:
        status["durationSeconds"] = round(max(0, ended.finished_us - ended.started_us) / 1e6, 3)
    receipt = ended.receipt
    if receipt is not None:
        status |= {
            "phases": _phases(receipt.phases),
            "epochBefore": receipt.epoch_before,
            "epochAfter": receipt.epoch_after,
            "snapshotID": receipt.snapshot_id,
            "updateID": receipt.update_id,
            "checks": [one_line(check, CHECK_LENGTH_MAX) for check in receipt.checks[:CHECKS_MAX]],
        }
    return status


def _phases(seconds_of: Mapping[str, float]) -> list[Status]:
    """Give the durations of the steps; two whose shortened names are the same would be refused, so one is kept."""
    cut = {one_line(name, PHASE_LENGTH_MAX): seconds for name, seconds in seconds_of.items()}
    return [{"name": name, "seconds": seconds} for name, seconds in cut.items()][:PHASES_MAX]


def _condition(one: ReAnchor, phase: str, ended: Ended) -> Status:
    """Give the condition that `kubectl wait --for=condition=Complete` waits for; Failed after a failure."""
    return {
        "type": "Failed" if phase == "Failed" else "Complete",
        "status": "True",
        "reason": "".join(part.capitalize() for part in ended.result.split("_")),
        "message": one_line(ended.message, 1_000),
        "lastTransitionTime": text_of(ended.finished_us),
        "observedGeneration": one.generation,
    }
