"""`PredictionPipeline.status`: the meaning of its fields, and the model from which its schema is generated."""

from __future__ import annotations

from typing import Any, Final, Literal

from sheetanchor_operator.api.fields import Block, field, map_by, rule, ruled
from sheetanchor_operator.names import (
    Condition,
    FailoverKind,
    FailoverPhase,
    FailoverStep,
    Phase,
    Reason,
    ZoneHealth,
    ZoneReason,
)

TIME: Final[dict[str, Any]] = {"format": "date-time"}
MESSAGE_LENGTH_MAX: Final = 1024


class ConditionStatus(Block):
    """One aspect of the pipeline's health."""

    type: Condition = field(..., "The aspect of the pipeline's health.")
    status: Literal["True", "False", "Unknown"] = field(..., "Whether it holds.")
    reason: Reason = field(..., "Why, in one word of a closed list.")
    message: str = field("", "What was observed and, if something is wrong, what to do.", max_length=MESSAGE_LENGTH_MAX)
    last_transition_time: str = field(..., "When `status` last changed.", schema=TIME)
    observed_generation: int = field(0, "Generation of the spec that this was judged by.", ge=0)


class LastReanchor(Block):
    """The newest re-anchor that has begun."""

    name: str | None = field(None, "Name of the ReAnchor object.")
    reason: str | None = field(None, "Why it was requested.")
    trigger: str | None = field(None, "What requested it: a gap rule, start, suspect, annotation, schedule or manual.")
    symbol: str | None = field(None, "Trading pair whose state it rebuilds.")
    started_at: str | None = field(None, "When its newest run began.", schema=TIME)
    finished_at: str | None = field(None, "When it ended; absent while it runs.", schema=TIME)
    epoch: int | None = field(None, "Epoch of the state after it.", ge=0)
    result: str | None = field(None, "Its result: swapped, validated, dry_run, failed, skipped and so on.")


class SymbolStatus(Block):
    """The state of one trading pair, as the active processor reports it."""

    name: str = field(..., "Trading pair.", max_length=20)
    state: Literal["anchored", "suspect", "unknown"] = field(
        ..., "Whether its hot state is anchored, so agrees with the exchange as far as is known."
    )
    reason: str | None = field(None, "Why it is suspect.", max_length=512)
    epoch: int | None = field(None, "Which rebuild its state belongs to.", ge=0)
    term: int | None = field(None, "Which processor's writes are accepted: rises with each takeover.", ge=0)
    suspect_since: str | None = field(None, "Since when it is suspect.", schema=TIME)
    rebuilt_micros: tuple[int, ...] = field(
        (),
        "Ends of the rebuilds of the last hour in microseconds since 1970, kept even if their ReAnchor objects are "
        "deleted: the budget of rebuilds counts them.",
        schema={"maxItems": 600, "x-kubernetes-list-type": "atomic"},
    )
    compared_micros: tuple[int, ...] = field(
        (),
        "Ends of its dry runs and validations of the last hour: they use as much request weight as a rebuild, and "
        "count against the same budget.",
        schema={"maxItems": 600, "x-kubernetes-list-type": "atomic"},
    )


class AnsweredRequest(Block):
    """A request with an id, and its result."""

    key: str = field(..., "Hash of symbol and id.", max_length=64)
    name: str = field(..., "Name of its ReAnchor.", max_length=253)
    made_micros: int = field(..., "When the ReAnchor was created, in microseconds since 1970.", ge=0)
    phase: str = field(..., "Phase that it ended in.", max_length=40)
    result: str = field("", "Result of its run.", max_length=40)
    message: str = field("", "The result in words.", max_length=256)
    epoch_before: int | None = field(None, "Epoch before its run.", ge=0)
    epoch_after: int | None = field(None, "Epoch after its run.", ge=0)


class ReanchorRuns(Block):
    """Ends of the re-anchors of the last 24 hours that ran, in microseconds since 1970."""

    succeeded_micros: tuple[int, ...] = field(
        (), "Of those that succeeded.", schema={"maxItems": 1000, "x-kubernetes-list-type": "atomic"}
    )
    failed_micros: tuple[int, ...] = field(
        (), "Of those that failed finally.", schema={"maxItems": 1000, "x-kubernetes-list-type": "atomic"}
    )


class ZoneStatus(Block):
    """One line of ingestors, and the zone that it is bound to."""

    name: str = field(..., "Zone, or name of the line if lines are not bound to zones.", max_length=31)
    ready: bool = field(..., "Whether a pod of the line is ready, which means connected and appending.")
    pods: int = field(..., "Pods of the pipeline on nodes of the zone, of every component.", ge=0)
    health: ZoneHealth | None = field(
        None,
        "Whether its pods can be reached, by the operator and a second observer; absent if zones are not judged.",
    )
    reason: ZoneReason | None = field(None, "Why, in one word of a closed list.")
    since: str | None = field(None, "Since when `health` is what it is.", schema=TIME)


class FailoverStepStatus(Block):
    """One step of a move that was begun."""

    name: FailoverStep = field(..., "The step.")
    started_at: str = field(..., "When it began.", schema=TIME)
    finished_at: str | None = field(None, "When it ended; absent while it is in progress.", schema=TIME)
    message: str | None = field(None, "Its result.", max_length=512)


class FailoverStatus(Block):
    """The newest move of the pipeline out of a zone; a new leader of the operator continues it from here."""

    request: str = field(..., "Value of the annotation that requested it.", max_length=253)
    kind: FailoverKind = field(
        ..., "Switchover: writer and Redis master move. Evacuation: readers too, and all stay out."
    )
    phase: FailoverPhase = field(..., "Whether it is running, or how it has ended.")
    step: FailoverStep = field(..., "The step that it is at, or has ended at.")
    from_zone: str | None = field(None, "Zone that is left.", max_length=200)
    to_zone: str | None = field(None, "Zone that was requested; absent for any other zone.", max_length=200)
    term: int | None = field(
        None, "Term that the standby is requested to take; written before the request is sent.", ge=0
    )
    target: str | None = field(None, "Pod of the standby that is to become the writer.", max_length=253)
    attempts: int | None = field(None, "How often the present step has failed.", ge=0)
    rounds: int | None = field(
        None, "How often it was restarted because writer or master had returned to the zone.", ge=0
    )
    after_slot: int | None = field(
        None, "Newest slot when verifying began: sound predictions of later ones count.", ge=0
    )
    message: str | None = field(None, "Progress, or why it has ended.", max_length=512)
    steps: tuple[FailoverStepStatus, ...] = field(
        (), "Steps that have begun, in order.", schema={"maxItems": 20, "x-kubernetes-list-type": "atomic"}
    )


class ComponentStatus(Block):
    """Pods of one component."""

    replicas: int = field(..., "Desired pods.", ge=0)
    ready: int = field(..., "Pods that are ready.", ge=0)


class InferenceStatus(ComponentStatus):
    """Pods of inference, as the scale subresource reads them."""

    selector: str | None = field(None, "Label selector of the pods, for autoscalers.")


class RedisStatus(ComponentStatus):
    """Pods of the managed Redis; zeros for an external one."""

    master: str | None = field(None, "Pod of the master.")


class OperatorStatus(Block):
    """Which installation of the operator manages the pipeline: no other acts on it."""

    name: str = field(
        ..., "Namespace and name of its Lease, for instance sheetanchor-system/sheetanchor-operator.", max_length=512
    )
    seen_at: str = field(..., "When it last renewed this claim; it does so every two minutes.", schema=TIME)


class PipelineStatus(Block):
    """What the operator observes; `kubectl get pp` shows most of it."""

    model_config = ruled(
        rule(
            "!has(oldSelf.term) || (has(self.term) && self.term >= oldSelf.term)",
            "status.term must not decrease: keep the largest term that was seen",
        )
    )

    operator: OperatorStatus | None = field(None, "Which installation of the operator manages the pipeline.")
    phase: Phase | None = field(None, "The state of the whole pipeline in one word.")
    ready: str | None = field(None, "Ready and desired pods, for instance 11/11.")
    observed_generation: int | None = field(None, "Generation of the spec that this status describes.", ge=0)
    conditions: tuple[ConditionStatus, ...] = field(
        (), "Aspects of the pipeline's health, one of each type.", schema=map_by(len(Condition), "type")
    )
    active_zone: str | None = field(None, "Zone of the node that the active processor runs on.")
    epoch: int | None = field(None, "Lowest epoch of the symbols: which rebuild their state belongs to.", ge=0)
    term: int | None = field(None, "Largest term that was seen; rises with each takeover and never decreases.", ge=0)
    model: str | None = field(None, "Model that the newest prediction was made with, for instance mlp@1a2b3c4d.")
    last_prediction_at: str | None = field(
        None,
        "Time of the newest prediction that is not degraded, of several symbols the oldest such time; written at most "
        "every 15 seconds.",
        schema=TIME,
    )
    last_reanchor: LastReanchor | None = field(None, "The newest re-anchor that has begun.")
    last_reanchor_request: str | None = field(
        None, "Last value of the annotation sheetanchor.dev/reanchor that was acted on.", max_length=2048
    )
    reanchor_requests: tuple[AnsweredRequest, ...] = field(
        (),
        "Requests with an id of the last 24 hours and their results, kept even if their ReAnchor objects are deleted.",
        schema=map_by(500, "key"),
    )
    reanchor_runs: ReanchorRuns | None = field(
        None, "Results of the re-anchors of the last 24 hours, from which reanchor_success_rate is computed."
    )
    symbols: tuple[SymbolStatus, ...] = field((), "State of each trading pair.", schema=map_by(10, "name"))
    zones: tuple[ZoneStatus, ...] = field((), "State of each line.", schema=map_by(10, "name"))
    failover: FailoverStatus | None = field(None, "The newest move of the pipeline out of a zone.")
    last_switchover_request: str | None = field(
        None, "Last value of the annotation sheetanchor.dev/switchover that was acted on.", max_length=253
    )
    evacuated_zone: str | None = field(
        None, "Zone that processors and inference are kept out of, as an annotation requests.", max_length=63
    )
    ingestion: ComponentStatus | None = field(None, "Pods of the ingestors.")
    processor: ComponentStatus | None = field(None, "Pods of the processors.")
    inference: InferenceStatus | None = field(None, "Pods of inference.")
    redis: RedisStatus | None = field(None, "Pods of Redis.")
