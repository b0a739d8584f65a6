"""`PredictionPipeline.status`: what its fields mean, and as its schema is generated from."""

from __future__ import annotations

from typing import Any, Final, Literal

from sheetanchor_operator.api.fields import Block, field, map_by, rule, ruled
from sheetanchor_operator.names import Condition, Phase, Reason

TIME: Final[dict[str, Any]] = {"format": "date-time"}
MESSAGE_LENGTH_MAX: Final = 1024


class ConditionStatus(Block):
    """One aspect of the pipeline's health."""

    type: Condition = field(..., "What it speaks of.")
    status: Literal["True", "False", "Unknown"] = field(..., "Whether it holds.")
    reason: Reason = field(..., "Why, in one word of a closed list.")
    message: str = field("", "What is the case and, if something is wrong, what to do.", max_length=MESSAGE_LENGTH_MAX)
    last_transition_time: str = field(..., "When `status` last changed.", schema=TIME)
    observed_generation: int = field(0, "Generation of the spec that this was judged by.", ge=0)


class LastReanchor(Block):
    """The newest re-anchor that has begun."""

    name: str | None = field(None, "Name of the ReAnchor object.")
    reason: str | None = field(None, "Why it was wanted.")
    trigger: str | None = field(None, "What asked for it: a gap rule, start, suspect, annotation, schedule or manual.")
    symbol: str | None = field(None, "Trading pair whose state it rebuilds.")
    started_at: str | None = field(None, "When its newest run began.", schema=TIME)
    finished_at: str | None = field(None, "When it ended; absent while it runs.", schema=TIME)
    epoch: int | None = field(None, "Epoch of the state after it.", ge=0)
    result: str | None = field(None, "What came of it: swapped, validated, dry_run, failed, skipped and so on.")


class SymbolStatus(Block):
    """The state of one trading pair, as the active processor reports it."""

    name: str = field(..., "Trading pair.", max_length=20)
    state: Literal["anchored", "suspect", "unknown"] = field(..., "Whether its hot state is what the exchange says.")
    reason: str | None = field(None, "Why it is suspect.", max_length=512)
    epoch: int | None = field(None, "Which rebuild its state belongs to.", ge=0)
    term: int | None = field(None, "Who may write it.", ge=0)
    suspect_since: str | None = field(None, "Since when it is suspect.", schema=TIME)
    rebuilt_micros: tuple[int, ...] = field(
        (),
        "Ends of the rebuilds of the last hour in microseconds since 1970: what the budget of rebuilds counts, "
        "also when their ReAnchor objects are deleted.",
        schema={"maxItems": 600, "x-kubernetes-list-type": "atomic"},
    )
    compared_micros: tuple[int, ...] = field(
        (),
        "Ends of its dry runs and validations of the last hour: they ask the exchange for as much as a rebuild, and "
        "count against the same budget.",
        schema={"maxItems": 600, "x-kubernetes-list-type": "atomic"},
    )


class AnsweredRequest(Block):
    """A request that had an id, and its answer."""

    key: str = field(..., "Hash of symbol and id.", max_length=64)
    name: str = field(..., "ReAnchor that it was.", max_length=253)
    made_micros: int = field(..., "When that was created, in microseconds since 1970.", ge=0)
    phase: str = field(..., "Phase that it ended in.", max_length=40)
    result: str = field("", "What came of it.", max_length=40)
    message: str = field("", "The same for people.", max_length=256)
    epoch_before: int | None = field(None, "Epoch that its run found.", ge=0)
    epoch_after: int | None = field(None, "Epoch that it left.", ge=0)


class ReanchorRuns(Block):
    """Ends of the re-anchors of the last 24 hours that ran, in microseconds since 1970."""

    succeeded_micros: tuple[int, ...] = field(
        (), "Of those that succeeded.", schema={"maxItems": 1000, "x-kubernetes-list-type": "atomic"}
    )
    failed_micros: tuple[int, ...] = field(
        (), "Of those that failed for good.", schema={"maxItems": 1000, "x-kubernetes-list-type": "atomic"}
    )


class ZoneStatus(Block):
    """One line of ingestors."""

    name: str = field(..., "Zone, or name of the line where lines are not bound to zones.", max_length=31)
    ready: bool = field(..., "Whether a pod of the line is ready, which means connected and appending.")
    pods: int = field(..., "Pods of the pipeline on nodes of the zone, of every component.", ge=0)


class ComponentStatus(Block):
    """Pods of one component."""

    replicas: int = field(..., "Pods that are wanted.", ge=0)
    ready: int = field(..., "Pods that are ready.", ge=0)


class InferenceStatus(ComponentStatus):
    """Pods of inference, as the scale subresource reads them."""

    selector: str | None = field(None, "Label selector of the pods, for autoscalers.")


class RedisStatus(ComponentStatus):
    """Pods of the managed Redis; zeros for an external one."""

    master: str | None = field(None, "Pod that takes writes.")


class OperatorStatus(Block):
    """Which installation of the operator looks after the pipeline: no other acts on it."""

    name: str = field(
        ..., "Namespace and name of its Lease, for instance sheetanchor-system/sheetanchor.", max_length=512
    )
    seen_at: str = field(..., "When it last said so; it does every two minutes while it is at work.", schema=TIME)


class PipelineStatus(Block):
    """What the operator observes; `kubectl get pp` shows the most of it."""

    model_config = ruled(
        rule(
            "!has(oldSelf.term) || (has(self.term) && self.term >= oldSelf.term)",
            "status.term must not go back: keep the largest term that was seen",
        )
    )

    operator: OperatorStatus | None = field(None, "Which installation of the operator looks after the pipeline.")
    phase: Phase | None = field(None, "The whole in one word.")
    ready: str | None = field(None, "Ready and wanted pods, for instance 9/9.")
    observed_generation: int | None = field(None, "Generation of the spec that this status speaks of.", ge=0)
    conditions: tuple[ConditionStatus, ...] = field(
        (), "Aspects of the pipeline's health, one of each type.", schema=map_by(len(Condition), "type")
    )
    active_zone: str | None = field(None, "Zone of the node that the active processor runs on.")
    epoch: int | None = field(None, "Lowest epoch of the symbols: which rebuild their state belongs to.", ge=0)
    term: int | None = field(None, "Largest term that was seen: who may write. Never goes back.", ge=0)
    model: str | None = field(None, "Model that the newest prediction was made with, for instance mlp@1a2b3c4d.")
    last_prediction_at: str | None = field(
        None,
        "Time of the oldest of the symbols' newest sound predictions; written at most every 15 seconds.",
        schema=TIME,
    )
    last_reanchor: LastReanchor | None = field(None, "The newest re-anchor that has begun.")
    last_reanchor_request: str | None = field(
        None, "Last value of the annotation sheetanchor.dev/reanchor that was acted on.", max_length=2048
    )
    reanchor_requests: tuple[AnsweredRequest, ...] = field(
        (),
        "Requests with an id of the last 24 hours and their answers, also when their ReAnchor objects are deleted.",
        schema=map_by(500, "key"),
    )
    reanchor_runs: ReanchorRuns | None = field(
        None, "How the re-anchors of the last 24 hours have ended: what reanchor_success_rate is made from."
    )
    symbols: tuple[SymbolStatus, ...] = field((), "State of each trading pair.", schema=map_by(10, "name"))
    zones: tuple[ZoneStatus, ...] = field((), "State of each line.", schema=map_by(10, "name"))
    ingestion: ComponentStatus | None = field(None, "Pods of the ingestors.")
    processor: ComponentStatus | None = field(None, "Pods of the processors.")
    inference: InferenceStatus | None = field(None, "Pods of inference.")
    redis: RedisStatus | None = field(None, "Pods of Redis.")
