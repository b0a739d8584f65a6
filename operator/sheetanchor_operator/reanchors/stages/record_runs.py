"""The progress and results of runs, recorded in the statuses of their ReAnchors. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sheetanchor.contract import EXIT_LOCK_HELD, EXIT_SUPERSEDED
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.names import EventReason
from sheetanchor_operator.reanchors.history import history_of, next_try_us
from sheetanchor_operator.reanchors.runs import SECOND_US, Ended, ReAnchor
from sheetanchor_operator.reanchors.situation import Changes, Situation, Stage
from sheetanchor_operator.reanchors.stages.merged import attach
from sheetanchor_operator.reanchors.status_patch import finished, retried, running, waiting_for_lock

JOB_MISSING_GRACE_US: Final = 15 * SECOND_US
"""A Job that was just created may not be seen yet; one that is not seen for longer counts as deleted."""

HELD_MAX: Final = 20
"""Runs that may find another one in progress: with their delays they outlast the lifetime of any lock."""


def record_runs(before: Situation) -> Changes:
    """Acknowledge new requests, and record the state of every ReAnchor's newest run."""
    stage = Stage(before)
    for one in before.known.values():
        if one.name not in before.passed_over:
            _acknowledge(stage, one)
            _record_run(stage, one)
    return stage.changes()


def _acknowledge(stage: Stage, one: ReAnchor) -> None:
    """Record that a request has been seen."""
    if "phase" in one.raw or not stage.may_write(3):
        return
    stage.write(one.name, {"phase": "Pending"})
    if one.trigger in GAP_DETECTION_RULES:
        stage.emit(one, "Warning", EventReason.GAP_FOUND, f"{one.trigger}: {one.reason}", both=True)


def _record_run(stage: Stage, one: ReAnchor) -> None:
    """Record the state of a ReAnchor's newest run."""
    runs = stage.before.runs[one.name]
    if one.final:
        # A reconcile that ran out of time or was interrupted may have recorded its end without the requests that it
        # answers.
        for name in runs[-1].answers if runs else ():
            attach(stage, name, one.name)
        return
    run = runs[-1] if runs and runs[-1].attempt >= one.attempts else None
    if run is None:
        if one.phase == "Running" and stage.now_us - one.started_us > JOB_MISSING_GRACE_US:
            gone = Ended(-1, "failed", "the run's Job no longer exists", one.started_us, stage.now_us)
            _record_end(stage, one, one.attempts, gone)
        return
    if run.attempt > one.attempts or one.phase == "Running":
        stage.write(one.name, running(one, run.name, run.attempt, run.created_us))
        for name in run.answers:
            attach(stage, name, one.name)
        if run.ended is not None:
            _record_end(stage, stage.known[one.name], run.attempt, run.ended)
        elif run.message:
            stage.write(one.name, {"message": run.message})


def _record_end(stage: Stage, one: ReAnchor, attempt: int, ended: Ended) -> None:
    if ended.receipt is not None:
        stage.receipts[one.name] = (ended.receipt,)
    if ended.exit_code == 0 or ended.exit_code == EXIT_SUPERSEDED:
        phase = "Succeeded" if ended.exit_code == 0 else "Skipped"
        stage.write(one.name, finished(one, phase, ended))
        good = EventReason.REANCHOR_SUCCEEDED if phase == "Succeeded" else EventReason.REANCHOR_SKIPPED
        stage.emit(one, "Normal", good, f"{ended.result}: {ended.message}", both=phase == "Succeeded")
        return
    if ended.exit_code == EXIT_LOCK_HELD:
        _record_lock_wait(stage, one, attempt, ended)
        return
    before = history_of(one.symbol, [k for k in stage.known.values() if k.name != one.name], {}, stage.now_us)
    asked_us = ended.receipt.retry_at_us if ended.receipt is not None else 0
    failed = attempt - one.held
    if ended.zone_lost:
        next_us = ended.finished_us
    else:
        next_us = next_try_us(one, attempt, before.failures + failed, ended.finished_us, asked_us, stage.before.policy)
    if one.dry_run or failed >= stage.before.policy.tries_max:
        stage.write(one.name, finished(one, "Failed", ended, next_us))
        stage.emit(one, "Warning", EventReason.REANCHOR_FAILED, _failure_message(attempt, ended), both=True)
        return
    stage.write(one.name, retried(one, attempt, ended, next_us))
    again = f"{_failure_message(attempt, ended)}; next attempt at {text_of(next_us - next_us % SECOND_US)}"
    stage.emit(one, "Warning", EventReason.REANCHOR_FAILED, again, both=True)


def _record_lock_wait(stage: Stage, one: ReAnchor, attempt: int, ended: Ended) -> None:
    """Wait for the run that holds the lock: finding another run in progress is no failure, for metrics and alerts."""
    held = one.held + 1
    if held >= HELD_MAX:
        ended = replace(ended, message=f"{held} runs found another run in progress: {ended.message}")
        stage.write(one.name, finished(one, "Skipped", ended) | {"attempts": attempt, "attemptsHeld": held})
        stage.emit(one, "Normal", EventReason.REANCHOR_SKIPPED, ended.message, both=False)
        return
    next_us = next_try_us(one, attempt, held, ended.finished_us, 0, stage.before.policy)
    stage.write(one.name, waiting_for_lock(attempt, held, ended, next_us))
    next_text = text_of(next_us - next_us % SECOND_US)
    words = f"run {attempt} found another run in progress; next attempt at {next_text}: {ended.message}"
    stage.emit(one, "Normal", EventReason.REANCHOR_THROTTLED, words, both=False)


def _failure_message(attempt: int, ended: Ended) -> str:
    code = f" (exit code {ended.exit_code})" if ended.exit_code >= 0 else ""
    return f"run {attempt} failed{code}: {ended.message}"
