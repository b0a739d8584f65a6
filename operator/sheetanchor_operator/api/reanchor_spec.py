"""`ReAnchor`, the request for a rebuild and its durable receipt: the model that its schema is generated from."""

from __future__ import annotations

from typing import Final, Literal

from sheetanchor.contract import SYMBOL_PATTERN
from sheetanchor_operator.api.fields import Block, field, map_by, one_line_rule, rule, ruled
from sheetanchor_operator.api.pipeline_status import MESSAGE_LENGTH_MAX, TIME

TERMINAL_PHASES: Final = ("Succeeded", "Failed", "Skipped")
_MICROSECONDS_MIN: Final = 1_500_000_000_000_000
"""July 2017; a smaller number is in seconds or milliseconds."""


class ReanchorSpec(Block):
    """The request. It cannot be changed: a second request is a second object."""

    model_config = ruled(
        rule(
            "self == oldSelf",
            "spec of a ReAnchor cannot be changed: create another ReAnchor, or use kubectl reanchor",
        ),
    )

    pipeline: str = field(
        ...,
        "Name of the PredictionPipeline, in the same namespace.",
        min_length=1,
        max_length=40,
        pattern="^[a-z]([-a-z0-9]*[a-z0-9])?$",
    )
    symbol: str = field(
        ...,
        "Trading pair to rebuild; one of the pipeline's.",
        max_length=20,
        pattern=f"^{SYMBOL_PATTERN.pattern}$",
    )
    reason: str = field(
        "",
        "Reason in one line; kept in the receipt.",
        max_length=512,
        rules=[one_line_rule("reason")],
    )
    trigger: str = field(
        "manual",
        "What requests it: a gap rule's name, start, suspect, annotation, schedule or manual.",
        max_length=64,
        pattern="^[a-z][a-z0-9_]*$",
    )
    action: Literal["immediate_reanchor", "scheduled_reanchor", "validation_reanchor", "emergency_reanchor"] = field(
        "immediate_reanchor",
        "How urgent it is: emergency goes before all others, immediate starts now, scheduled waits two seconds for "
        "other requests to join it, validation compares the state with the exchange and rebuilds it only if they "
        "differ.",
    )
    requested_by: str = field(
        "",
        "Name of the user or program that requests it. With the chart's admission policy a user can set only their "
        "own name; a processor's is not verified.",
        max_length=253,
        rules=[one_line_rule("requestedBy")],
    )
    request_id: str = field(
        "",
        "Id of the request: requests for a symbol with the same id count once in 24 hours, even if the first ReAnchor "
        "is already deleted: a later one gets the same result. The last 500 ids of a pipeline are kept.",
        alias="requestID",
        max_length=253,
        rules=[one_line_rule("requestID")],
    )
    dry_run: bool = field(False, "Do everything but the swap.")
    force: bool = field(
        False,
        "Ignore cool-down, budget, suspension, maintenance and reanchor.enabled; a validation rebuilds without "
        "comparing.",
    )
    epoch: int = field(0, "Epoch of the suspect state; 0 if it is not known.", ge=0)
    at_micros: int = field(
        0,
        "Time of the gap that it is about, in microseconds since 1970; 0 means the time of creation. A rebuild that "
        "began later answers it.",
        ge=0,
        rules=[
            rule(
                f"self == 0 || self >= {_MICROSECONDS_MIN}",
                "atMicros must be in microseconds since 1970, not seconds or milliseconds: multiply it, or "
                "leave it out",
            )
        ],
    )


class PhaseDuration(Block):
    """How long one step of the run took."""

    name: str = field(
        ..., "Step: lock, probe, fetch, compare, build, catch_up, stage, validate, swap or verify.", max_length=40
    )
    seconds: float = field(..., "Its duration.", ge=0)


class ReanchorCondition(Block):
    """One aspect of a re-anchor."""

    type: str = field(..., "The aspect of the re-anchor.", max_length=64, pattern="^[A-Z][A-Za-z]*$")
    status: Literal["True", "False", "Unknown"] = field(..., "Whether it holds.")
    reason: str = field(..., "Why, in one word.", max_length=64, pattern="^[A-Z][A-Za-z]*$")
    message: str = field("", "What was observed and what to do.", max_length=MESSAGE_LENGTH_MAX)
    last_transition_time: str = field(..., "When `status` last changed.", schema=TIME)
    observed_generation: int = field(0, "Generation of the spec that this was judged by.", ge=0)


class ReanchorStatus(Block):
    """The result: the receipt."""

    model_config = ruled(
        rule(
            "!has(oldSelf.phase) || !(oldSelf.phase in ['Succeeded', 'Failed', 'Skipped']) || "
            "(has(self.phase) && self.phase == oldSelf.phase)",
            "status.phase of a finished ReAnchor cannot be changed: create another ReAnchor",
        ),
        rule(
            "!has(oldSelf.attempts) || (has(self.attempts) && self.attempts >= oldSelf.attempts)",
            "status.attempts must not decrease: a run that was started stays counted",
        ),
    )

    phase: Literal["Pending", "Running", "Succeeded", "Failed", "Skipped"] | None = field(
        None, "Its progress; Succeeded, Failed and Skipped are final."
    )
    result: str | None = field(
        None,
        "Its result: swapped, validated (nothing to do), dry_run, repeated, failed, lock_held, "
        "superseded, skipped or coalesced.",
        max_length=40,
    )
    job_name: str | None = field(None, "Job of the newest run.", max_length=253)
    attempts: int | None = field(None, "Runs that were started.", ge=0)
    attempts_held: int | None = field(
        None, "Of these, runs that found the lock held by another run and changed nothing: they are not failures.", ge=0
    )
    started_at: str | None = field(None, "When the newest run began.", schema=TIME)
    finished_at: str | None = field(None, "When it became final.", schema=TIME)
    duration_seconds: float | None = field(None, "Duration of the run that gave the result.", ge=0)
    phases: tuple[PhaseDuration, ...] = field((), "How long each step took.", schema=map_by(20, "name"))
    epoch_before: int | None = field(None, "Epoch before the run.", ge=0)
    epoch_after: int | None = field(None, "Epoch after the run.", ge=0)
    snapshot_id: int | None = field(None, "Update id of the exchange's snapshot.", alias="snapshotID", ge=0)
    update_id: int | None = field(None, "Update id that the state was swapped at.", alias="updateID", ge=0)
    checks: tuple[str, ...] = field(
        (), "Checks that passed.", schema={"maxItems": 64, "items": {"type": "string", "maxLength": 100}}
    )
    exit_code: int | None = field(None, "Exit code of the run's process; 0 is success.", ge=0, le=255)
    message: str | None = field(None, "What happened, or why it waits, in one line.", max_length=2048)
    next_attempt_at: str | None = field(None, "When the next run begins at the earliest.", schema=TIME)
    answered_by: str | None = field(
        None, "ReAnchor whose run answered this request as well, if they were merged.", max_length=253
    )
    observed_generation: int | None = field(None, "Generation of the spec that this status describes.", ge=0)
    conditions: tuple[ReanchorCondition, ...] = field((), "Conditions, one of each type.", schema=map_by(8, "type"))
