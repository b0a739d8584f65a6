"""What each reason means for a user on call, and the runbooks' remedies. Data, in the order of what blocks the rest.

The lists are closed: a reason of a condition, a kind of doubt, a gap rule or a health check without an entry here fails
a test. What to do about a reason comes from the condition's own message where that ends with a remedy, else from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sheetanchor_operator.names import COMPONENT_LABEL, PAUSED_ANNOTATION, PIPELINE_LABEL, Component, Condition, Reason

PODS: Final = f"kubectl -n {{namespace}} get pods -l {PIPELINE_LABEL}={{name}} -o wide"
DESCRIBE: Final = "kubectl -n {namespace} describe pp {name}"


def logs_of(component: Component) -> str:
    """Give the command that shows a component's log, as the runbooks have it."""
    labels = f"{PIPELINE_LABEL}={{name}},{COMPONENT_LABEL}={component}"
    return f"kubectl -n {{namespace}} logs -l {labels} --prefix --tail=50"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a reason of a condition means.

    Attributes:
        consequence: What follows from it for predictions, "" where its message says so.
        runbook: Page of docs/runbooks/, without `.md`; "" for none.
        commands: What to run, with the fields `name` and `namespace` to fill in.
        carried: Whether its message ends with the remedy, after the last `; `, else the last `: `.
        spare: Whether predictions stay sound and only redundancy is lost.
    """

    consequence: str
    runbook: str
    commands: tuple[str, ...] = ()
    carried: bool = False
    spare: bool = False


NOT_READY: Final = "SheetAnchorPipelineNotReady"
NOT_ANCHORED: Final = "SheetAnchorNotAnchored"
DEGRADED: Final = "SheetAnchorPredictionsDegraded"
THROTTLED: Final = "SheetAnchorReanchorThrottled"

NOTHING_WRONG: Final[frozenset[str]] = frozenset(
    {
        Reason.AS_EXPECTED,
        Reason.ANCHORED,
        Reason.NOT_PAUSED,
        Reason.IDLE,
        Reason.NOT_THROTTLED,
        Reason.EXTERNAL,
        Reason.ROLLING_OUT,
        Reason.REANCHOR_PENDING,
        Reason.REANCHOR_RUNNING,
        Reason.SINGLE_ZONE,
        Reason.FAILOVER_RUNNING,
        Reason.FAILOVER_ABORTED,
        Reason.FAILOVER_REFUSED,
    }
)
"""Reasons that explain no degradation. What is under way is reported as such."""

_MISSING: Final = "pods that need it do not start"
_UNAPPLIED: Final = "the operator cannot apply the spec to the pipeline's objects"
_NO_POD: Final = "the pods that it concerns do not run"

_PATCH: Final = "kubectl -n {namespace} patch pp {name} --type=merge -p "
_END_MAINTENANCE: Final = _PATCH + """'{{"spec":{{"maintenance":{{"enabled":false}}}}}}'"""
_RESUME: Final = _PATCH + """'{{"spec":{{"suspend":false}}}}'"""

MEANINGS: Final[Mapping[str, Meaning]] = {
    # As a user specified: nothing else matters until that ends.
    Reason.MAINTENANCE: Meaning(
        "no predictions are made while it lasts",
        "SheetAnchorMaintenanceLong",
        (_END_MAINTENANCE,),
    ),
    Reason.SUSPENDED: Meaning(
        "no predictions are made while it lasts",
        "SheetAnchorPipelinePaused",
        (_RESUME,),
    ),
    Reason.PAUSED: Meaning(
        "meanwhile the operator repairs nothing and starts no re-anchors",
        "SheetAnchorPipelinePaused",
        (f"kubectl -n {{namespace}} annotate pp {{name}} {PAUSED_ANNOTATION}-",),
    ),
    # What a person has to fix: the order is that in which the operator reports them.
    Reason.SPEC_REFUSED: Meaning(
        "the operator does nothing for this pipeline; the rest of its status is outdated", NOT_READY, (), True
    ),
    Reason.NAMESPACE_TERMINATING: Meaning("nothing can be created in it", NOT_READY, (), True),
    Reason.WATCH_REFUSED: Meaning(
        "the operator leaves this pipeline as it is", "SheetAnchorOperatorWatchRefused", (), True
    ),
    Reason.APPLY_FORBIDDEN: Meaning(_UNAPPLIED, NOT_READY, (), True),
    Reason.NAME_TAKEN: Meaning(_UNAPPLIED, NOT_READY, (), True),
    Reason.QUOTA_EXCEEDED: Meaning(_NO_POD, NOT_READY, (), True),
    Reason.LIMITS_REFUSED: Meaning(_NO_POD, NOT_READY, (), True),
    Reason.POLICY_REFUSED: Meaning(_UNAPPLIED, NOT_READY, (), True),
    Reason.APPLY_REFUSED: Meaning(_UNAPPLIED, NOT_READY, (), True),
    Reason.SECRET_MISSING: Meaning(_MISSING, NOT_READY, (), True),
    Reason.CONFIG_MAP_MISSING: Meaning(_MISSING, NOT_READY, (), True),
    Reason.VOLUME_CLAIM_MISSING: Meaning(_MISSING, NOT_READY, (), True),
    Reason.IMAGE_UNAVAILABLE: Meaning(_NO_POD, NOT_READY, (), True),
    Reason.POD_REFUSED: Meaning(_NO_POD, NOT_READY, (), True),
    Reason.CONTAINER_REFUSED: Meaning(_NO_POD, NOT_READY, (), True),
    Reason.CRASH_LOOPING: Meaning(_NO_POD, NOT_READY, (), True),
    Reason.UNSCHEDULABLE: Meaning(_NO_POD, NOT_READY, (), True),
    Reason.PODS_NOT_READY: Meaning("fewer pods serve than there should be", "SheetAnchorReplicaMissing", (PODS,)),
    # A zone takes lines, processors and Redis nodes with it; the others carry the pipeline.
    Reason.ZONE_LOST: Meaning(
        "there is less redundancy until it returns", "SheetAnchorZoneLost", (PODS,), carried=True, spare=True
    ),
    # Everything else rests on Redis, then on the exchange.
    Reason.NO_MASTER: Meaning("nothing can be written: predictions degrade", "SheetAnchorRedisNoMaster", (), True),
    Reason.REDIS_UNREACHABLE: Meaning(
        "nothing can be read or written: predictions degrade", "SheetAnchorRedisDown", (), True
    ),
    Reason.EXCHANGE_UNREACHABLE: Meaning(
        "no market data arrives: predictions degrade within 5 s", "SheetAnchorExchangeUnreachable", (), True
    ),
    Reason.STARTING: Meaning("there are no sound predictions yet", NOT_READY, (PODS,)),
    Reason.UNKNOWN: Meaning(
        "whether predictions are sound is not known", NOT_ANCHORED, (PODS, logs_of(Component.PROCESS))
    ),
    # Why a state that is to be rebuilt is not.
    Reason.DISABLED: Meaning("nothing is rebuilt", THROTTLED, (), True),
    Reason.EXCHANGE_LIMIT: Meaning("the exchange bans an address that does not wait", THROTTLED),
    Reason.BACKING_OFF: Meaning(
        "the state stays as it is so much longer",
        "SheetAnchorReanchorFailing",
        ("kubectl reanchor history {name} -n {namespace}",),
    ),
    Reason.BUDGET_USED_UP: Meaning("a suspect state is still rebuilt once a minute", THROTTLED),
    Reason.COOLDOWN: Meaning("the state stays as it is so much longer", THROTTLED),
    Reason.LOCK_HELD: Meaning(
        "the state stays as it is until that run ends",
        THROTTLED,
        ("kubectl reanchor history {name} -n {namespace}",),
    ),
    # The state, and what is made of it.
    Reason.AWAITING_FIRST_ANCHOR: Meaning("its predictions are degraded until a re-anchor is swapped in", NOT_ANCHORED),
    Reason.SUSPECT: Meaning("its predictions are degraded until a re-anchor is swapped in", NOT_ANCHORED),
    Reason.NO_PREDICTIONS: Meaning(
        "readers get old predictions", "SheetAnchorPredictionsMissing", (logs_of(Component.INFER),)
    ),
    Reason.PREDICTIONS_DEGRADED: Meaning("readers should not act on them", DEGRADED),
    # What costs redundancy only.
    Reason.LINE_LOST: Meaning(
        "predictions stay sound, but no line is redundant",
        "SheetAnchorLineDown",
        (logs_of(Component.INGEST),),
        spare=True,
    ),
    Reason.NOT_SPREAD: Meaning(
        "predictions stay sound; the loss of one zone may take all pods of a component", "", carried=True, spare=True
    ),
}
"""Every reason that can explain why a pipeline is not sound; what comes first blocks what comes after."""

NOT_TRUE: Final = frozenset({"False", "Unknown"})
PROBLEM_STATUSES: Final[Mapping[str, frozenset[str]]] = {
    Condition.READY: NOT_TRUE,
    Condition.ANCHORED: NOT_TRUE,
    Condition.INGESTION_HEALTHY: NOT_TRUE,
    Condition.REDIS_HEALTHY: NOT_TRUE,
    Condition.INFERENCE_READY: NOT_TRUE,
    Condition.REANCHOR_IN_PROGRESS: frozenset({"Unknown"}),
    Condition.REANCHOR_THROTTLED: frozenset({"Unknown"}),
    Condition.PAUSED: frozenset({"True", "Unknown"}),
    Condition.FAILOVER_IN_PROGRESS: frozenset(),  # a move that goes on or was given up costs nothing
    Condition.TOPOLOGY_SATISFIED: frozenset({"False"}),  # Unknown where there is nothing to spread over
}
"""The values of a condition that report a problem."""

ABOUT_WORK: Final[frozenset[str]] = frozenset(
    {Condition.REANCHOR_IN_PROGRESS, Condition.REANCHOR_THROTTLED, Condition.FAILOVER_IN_PROGRESS}
)
"""Conditions whose reasons say what is done about a problem, or why it waits; others' may name one by themselves."""


@dataclass(frozen=True, slots=True)
class DoubtMeaning:
    """What a kind of doubt in a prediction's `reason` means.

    Attributes:
        consequence: What it means and when it ends.
        runbook: Page of docs/runbooks/, without `.md`.
        follows: Conditions that bring it about when they do not hold.
        commands: As of `Meaning`.
    """

    consequence: str
    runbook: str
    follows: tuple[Condition, ...] = ()
    commands: tuple[str, ...] = ()


_PROCESS_LOG: Final = (logs_of(Component.PROCESS),)
_INGEST_LOG: Final = (logs_of(Component.INGEST),)
_INFER_LOG: Final = (logs_of(Component.INFER),)

DOUBTS: Final[Mapping[str, DoubtMeaning]] = {
    "redis": DoubtMeaning(
        "inference cannot read the state and repeats what it read before",
        "SheetAnchorRedisDown",
        (Condition.REDIS_HEALTHY,),
        _INFER_LOG,
    ),
    "writer": DoubtMeaning(
        "no processor keeps the state up to date", "SheetAnchorWriterMissing", (Condition.REDIS_HEALTHY,), _PROCESS_LOG
    ),
    "behind": DoubtMeaning("the processor does not keep up with what arrives", DEGRADED, (), _PROCESS_LOG),
    "unwritten": DoubtMeaning("what was received is not in the state yet", DEGRADED, (), _PROCESS_LOG),
    "incomplete": DoubtMeaning(
        "keys of the state are missing or of another rebuild",
        NOT_ANCHORED,
        (Condition.ANCHORED, Condition.REDIS_HEALTHY),
    ),
    "suspect": DoubtMeaning(
        "the state may be wrong until a re-anchor is swapped in", NOT_ANCHORED, (Condition.ANCHORED,)
    ),
    "missing": DoubtMeaning(
        "a stream is silent on every line while others continue", DEGRADED, (Condition.INGESTION_HEALTHY,), _INGEST_LOG
    ),
    "stale": DoubtMeaning(
        "nothing has arrived for over 5 s", "SheetAnchorFeatureStale", (Condition.INGESTION_HEALTHY,), _INGEST_LOG
    ),
    "late": DoubtMeaning(
        "something between the exchange and Redis queues", DEGRADED, (Condition.INGESTION_HEALTHY,), _INGEST_LOG
    ),
    "clock": DoubtMeaning("a clock was set; windows refill within 8 s", DEGRADED),
    "windows": DoubtMeaning("some trades of the last 5 s are missing; ends 5 s after the last loss", DEGRADED),
    "disagree": DoubtMeaning("parts of the state contradict each other", DEGRADED, (Condition.ANCHORED,)),
    "unvalidated": DoubtMeaning("trades are silent, and no validation has confirmed that yet", DEGRADED),
    "unproven": DoubtMeaning(
        "no processor declares the state sound", DEGRADED, (Condition.REDIS_HEALTHY,), _PROCESS_LOG
    ),
    "symbols": DoubtMeaning("the model was trained on other symbols: give the pipeline its own model", DEGRADED),
    "model": DoubtMeaning("a fallback answers instead of the model", "SheetAnchorModelFallback", (), _INFER_LOG),
    "features": DoubtMeaning(
        "an input that the model was trained with is missing", "SheetAnchorModelFallback", (), _INFER_LOG
    ),
}
"""Every kind of doubt; what comes first brings about what comes after."""

RULES: Final[Mapping[str, str]] = {
    "sequence_gap": "if it repeats, compare the ingestors' networks: both lines lost the same messages",
    "sequence_reset": "",
    "price_discontinuity": "if such jumps are usual for the symbol, raise spec.processor.gaps.priceJump",
    "book_crossed": "",
    "book_mismatch": "",
    "book_beyond": "if it repeats, raise spec.reanchor.depthLimit",
    "book_unreadable": "",
    "redis_failover": "find out why Redis failed over; the state is restored without you",
    "connection_loss": "see the health of the ingestors",
    "book_edge": "if it repeats, raise spec.reanchor.depthLimit",
    "time_gap": "see the health of the ingestors",
    "stream_missing": "see the health of the ingestors, and restart the one that does not deliver the stream",
    "feed_late": "see the network, the ingestors' queues (ingestor_queue_bytes) and Redis' latency",
    "clock_jump": "if it repeats, see the nodes' time synchronisation",
    "trades_quiet": "",
    "volume_anomaly": "if it repeats, raise spec.processor.gaps.volumeSigmas",
}
"""What docs/gaps.md advises about each gap rule; "" where there is nothing to do but wait for the rebuild."""


@dataclass(frozen=True, slots=True)
class CheckMeaning:
    """What a failing health check of a pod means.

    Attributes:
        text: What is the case; "" for a check that only repeats what predictions report.
        runbook: Page of docs/runbooks/, without `.md`.
        explains: Conditions that it explains.
        doubts: Kinds of doubt that it explains.
    """

    text: str
    runbook: str = ""
    explains: tuple[Condition, ...] = ()
    doubts: tuple[str, ...] = ()


SOUND_CHECKS: Final = frozenset({"healthy", "connected", "loaded"})
"""What checks report as their status when they find nothing wrong: parts of an ingestor have words of their own."""

CHECKS: Final[Mapping[str, Mapping[str, CheckMeaning]]] = {
    Component.INGEST: {
        "sbe_websocket": CheckMeaning(
            "its connection to the exchange",
            "SheetAnchorSbeDisconnected",
            (Condition.INGESTION_HEALTHY,),
            ("stale", "missing", "late"),
        ),
        "kinesis_producer": CheckMeaning(
            "appending to Redis",
            "SheetAnchorRedisDown",
            (Condition.REDIS_HEALTHY, Condition.INGESTION_HEALTHY),
            ("stale",),
        ),
        "sbe_decoder": CheckMeaning(
            "decoding frames", "SheetAnchorDecodeErrors", (Condition.INGESTION_HEALTHY,), ("stale",)
        ),
    },
    Component.INFER: {
        "redis": CheckMeaning(
            "its connection to Redis", "SheetAnchorRedisDown", (Condition.REDIS_HEALTHY,), ("redis",)
        ),
        "models": CheckMeaning("its model", "SheetAnchorModelFallback", (), ("model", "features", "symbols")),
        "features": CheckMeaning(""),
        "predictions": CheckMeaning(""),
    },
}
"""Health checks of the pods that are asked, by component."""
