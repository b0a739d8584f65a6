"""For each alert, metrics just above and just below its threshold. One value each 15 s, in promtool's notation."""

from __future__ import annotations

from dataclasses import dataclass

POD = 'namespace="t",pipeline="btc",pod="p0",instance="i0",job="sheetanchor"'
PIPELINE = 'namespace="t",name="btc",pod="o0",instance="o0",job="sheetanchor"'
OPERATOR = 'namespace="ops",pod="o0",instance="o0",job="sheetanchor",service="sheetanchor-operator"'

Series = dict[str, str]


@dataclass(frozen=True, slots=True)
class Case:
    """Metrics, and whether an alert fires at a moment.

    Attributes:
        series: Values by series.
        at: The moment, for instance `2m15s`.
    """

    alert: str
    fires: bool
    at: str
    series: Series


def both(alert: str, at: str, above: Series, below: Series, below_at: str = "") -> list[Case]:
    """Give the case that fires and the one that does not."""
    return [Case(alert, True, at, above), Case(alert, False, below_at or at, below)]


def brief(alert: str, series: Series, at: str, too_soon: str) -> list[Case]:
    """Give one course of metrics that fires, and does not yet at an earlier moment."""
    return [Case(alert, True, at, series), Case(alert, False, too_soon, series)]


def pod(metric: str, values: str, labels: str = "", where: str = POD) -> Series:
    """Give one series of a pod."""
    return {f"{metric}{{{','.join(filter(None, (where, labels)))}}}": values}


def pipe(metric: str, values: str, labels: str = "") -> Series:
    """Give one series that the operator exports about a pipeline."""
    return pod(metric, values, labels, PIPELINE)


def op(metric: str, values: str, labels: str = "") -> Series:
    """Give one series of the operator itself."""
    return pod(metric, values, labels, OPERATOR)


def condition(name: str, values: str) -> Series:
    """Give a condition of the pipeline."""
    return pipe("sheetanchor_pipeline_condition", values, f'condition="{name}"')


SYMBOL = 'symbol="BTCUSDT"'


def committed(increase: float, steps: int = 40, start: float = 0) -> Series:
    """Give predictions committed, so many each 15 s."""
    labels = f'{SYMBOL},mode="model",status="COMMITTED"'
    return pod("sheetanchor_predictions_total", f"{start}+{increase}x{steps}", labels)


def latency(slow_steps: int, le_100ms: float) -> Series:
    """Give 7.5 predictions each 15 s, of which so many within 100 ms for some steps, and sound ones afterwards."""
    slow = f"0+{le_100ms}x{slow_steps}"
    after = f"{le_100ms * slow_steps + 7.5}+7.5x20"
    name = "sheetanchor_prediction_latency_seconds_bucket"
    labels = f"{SYMBOL},le="
    return {
        **pod(name, f"{slow} {after}", f'{labels}"0.1"'),
        **pod(name, "0+7.5x60", f'{labels}"0.25"'),
        **pod(name, "0+7.5x60", f'{labels}"+Inf"'),
    }


def new_counter(metric: str, labels: str, where: str, target: str) -> Series:
    """Give a counter that appears with its first event after 20 minutes of a known target."""
    return {
        **pod(metric, "_x80 1x40", labels, where),
        f"up{{{target}}}": "1x200",
        f"process_start_time_seconds{{{target}}}": "-9999x200",
    }


def old_counter(metric: str, labels: str, where: str, target: str) -> Series:
    """Give a counter that Prometheus sees for the first time, of a process that has run for long."""
    return {
        **pod(metric, "_x80 1x40", labels, where),
        f"up{{{target}}}": "_x80 1x200",
        f"process_start_time_seconds{{{target}}}": "-9999x200",
    }


GAP = f'{SYMBOL},rule="sequence_gap",action="immediate_reanchor"'
SWAPPED = 'trigger="gap",result="swapped"'
REANCHORS = "sheetanchor_reanchors_total"
RUNS, RUN_FAILED = "recovery_attempts_total", 'mechanism="reanchor",result="failure"'
USED, LIMIT = "sheetanchor_memory_used_bytes", "sheetanchor_memory_limit_bytes"
INFER = 'service="sheetanchor-infer"'


def reanchors(values: str, labels: str) -> Series:
    """Give a counter of re-anchors of a known operator."""
    return {
        **pipe(REANCHORS, values, labels),
        'up{instance="o0",job="sheetanchor"}': "1x200",
        'process_start_time_seconds{instance="o0",job="sheetanchor"}': "-9999x200",
    }


def failed_runs(values: str, labels: str = RUN_FAILED) -> Series:
    """Give a counter of a pipeline's runs that a known operator exports."""
    return {**pipe(RUNS, values, labels), **op("up", "1x200"), **op("process_start_time_seconds", "-9999x200")}


def other_runs(values: str) -> Series:
    """Give the same counter of another pipeline."""
    return pod(RUNS, values, RUN_FAILED, PIPELINE.replace('name="btc"', 'name="eth"'))


def redis(values: dict[str, tuple[str, str, str]]) -> Series:
    """Give metrics of three nodes."""
    return {
        f'{metric}{{namespace="t",pipeline="btc",pod="r{i}",node="r{i}"}}': one
        for metric, nodes in values.items()
        for i, one in enumerate(nodes)
    }


def duration(over: int, at_first: str = "_x80", known: str = "1x200") -> Series:
    """Give an operator's first re-anchors after 20 minutes, of which so many took longer than a minute."""
    name, result = "sheetanchor_reanchor_duration_seconds", 'result="swapped"'
    return {
        **op(f"{name}_count", f"{at_first} 5x40", result),
        **op(f"{name}_bucket", f"{at_first} {5 - over}x40", f'{result},le="60.0"'),
        **op(f"{name}_bucket", f"{at_first} 5x40", f'{result},le="+Inf"'),
        **op("up", known),
        **op("process_start_time_seconds", "-9999x200"),
    }


def errors(share: float) -> Series:
    """Give HTTP answers of which a share are errors, and health checks that all are."""
    name = "http_requests_total"
    return {
        **pod(name, f"0+{1000 * (1 - share)}x60", f'{INFER},endpoint="/predictions/{{symbol}}",status="200"'),
        **pod(name, f"0+{1000 * share}x60", f'{INFER},endpoint="/predictions/{{symbol}}",status="500"'),
        **pod(name, "0+1000x60", f'{INFER},endpoint="/health/ready",status="503"'),
    }


def degraded(each: float) -> Series:
    """Give degraded predictions, so many of 100 each 15 s."""
    return {
        **pod("sheetanchor_degraded_predictions_total", f"0+{each}x40", f'{SYMBOL},reason="suspect"'),
        **pod("sheetanchor_predictions_total", "0+100x40", f'{SYMBOL},mode="model",status="EXISTS"'),
    }


def accuracy(now: float, decided: int = 100) -> Series:
    """Give a model that was right in half the cases in training; all predictions of the hour were always wrong."""
    return {
        **pod("sheetanchor_model_directional_accuracy", f"{now}x100", SYMBOL),
        **pod("sheetanchor_model_decided_predictions", f"{decided}x100", SYMBOL),
        **pod("sheetanchor_model_baseline_accuracy", "0.5x100", SYMBOL),
        **pod("sheetanchor_directional_accuracy", "0x100", f'{SYMBOL},window="1h"'),
        **pod("sheetanchor_decided_predictions", "1800x100", f'{SYMBOL},window="1h"'),
    }


def objective(day: float, *, decided: int = 1_000, trained: float = 0.56) -> Series:
    """Give a day's accuracy beside what the model reached in training."""
    return {
        **pod("sheetanchor_directional_accuracy", f"{day}x400", f'{SYMBOL},window="24h"'),
        **pod("sheetanchor_decided_predictions", f"{decided}x400", f'{SYMBOL},window="24h"'),
        **pod("sheetanchor_model_baseline_accuracy", f"{trained}x400", SYMBOL),
    }


def late(each: float, status: str) -> Series:
    """Give commits, of which so many of 100 each 15 s have a status."""
    name, labels = "sheetanchor_predictions_total", f'{SYMBOL},mode="model"'
    return {
        **pod(name, f"0+{each}x60", f'{labels},status="{status}"'),
        **pod(name, f"0+{100 - each}x60", f'{labels},status="COMMITTED"'),
    }


def lines(connected: int) -> Series:
    """Give two lines, of which so many are connected."""
    return {
        **pod("ingestor_sbe_connection_status", f"{int(connected > 0)}x40", 'line="a"'),
        **pod("ingestor_sbe_connection_status", f"{int(connected > 1)}x40", 'line="b"'),
    }


def repeated(each: float) -> Series:
    """Give the operator's reconciles of pipelines, of which so many of 100 each 15 s are put off."""
    return {
        **op("sheetanchor_operator_queue_retries_total", f"0+{each}x60"),
        **op("sheetanchor_operator_reconciles_total", f"0+{each}x60", 'result="error"'),
        **op("sheetanchor_operator_reconciles_total", f"0+{100 - each}x60", 'result="ok"'),
    }


def unready(minutes: int, afterwards: str = "1x2880", phase: str = "Degraded") -> Series:
    """Give a pipeline that is not ready for some minutes, and then ready for twelve hours by default."""
    steps = 4 * minutes - 1
    return {
        **condition("Ready", f"0x{steps} {afterwards}"),
        **pipe("sheetanchor_pipeline_phase", f"1x{steps} 0x2880", f'phase="{phase}"'),
    }


def outage(samples: int) -> Series:
    """Give a pipeline that is not ready for some samples after ten minutes."""
    return condition("Ready", f"1x39 0x{samples - 1} 1x240")


def memory(share: float) -> Series:
    """Give a process that uses a share of its limit."""
    return {**pod(USED, f"{share * 1000}x60", INFER), **pod(LIMIT, "1000x60", INFER)}


def replicas(ready: int) -> Series:
    """Give so many of two inference pods."""
    return {
        **pipe("sheetanchor_pipeline_replicas", "2x40", 'component="infer"'),
        **pipe("sheetanchor_pipeline_ready_replicas", f"{ready}x40", 'component="infer"'),
    }


RUNNING = pipe("sheetanchor_pipeline_phase", "1x40", 'phase="Running"')
STATUS = "ingestor_sbe_connection_status"

CASES: list[Case] = [
    # operator.yaml
    Case("SheetAnchorOperatorDown", True, "2m15s", {}),
    Case("SheetAnchorOperatorDown", False, "1m45s", {}),
    Case("SheetAnchorOperatorDown", False, "5m", op("up", "1x40")),
    *both(
        "SheetAnchorOperatorNoLeader",
        "1m15s",
        op("sheetanchor_operator_leader", "0x40"),
        op("sheetanchor_operator_leader", "0x40") | {'sheetanchor_operator_leader{namespace="ops",pod="o1"}': "1x40"},
    ),
    *both(
        "SheetAnchorOperatorTwoLeaders",
        "1m15s",
        op("sheetanchor_operator_leader", "1x40") | {'sheetanchor_operator_leader{namespace="ops",pod="o1"}': "1x40"},
        op("sheetanchor_operator_leader", "1x40") | {'sheetanchor_operator_leader{namespace="ops",pod="o1"}': "0x40"},
    ),
    *both(
        "SheetAnchorOperatorReconcileErrors",
        "12m",
        op("sheetanchor_operator_reconciles_total", "0+1x60", 'result="error"'),
        op("sheetanchor_operator_reconciles_total", "0+1x60", 'result="ok"'),
    ),
    *both(
        "SheetAnchorOperatorWatchDeaf",
        "1m15s",
        op("sheetanchor_operator_watch_age_seconds", "31x40", 'kind="Pod"'),
        op("sheetanchor_operator_watch_age_seconds", "30x40", 'kind="Pod"'),
    ),
    # As it goes: looks 35 s apart, scraped when a quarter of a minute begins; at 80 s the pod is restarted.
    Case(
        "SheetAnchorOperatorWatchDeaf",
        True,
        "1m15s",
        op("sheetanchor_operator_watch_age_seconds", "0 0 0 35 35 70", 'kind="Pod"'),
    ),
    *both(
        "SheetAnchorOperatorWatchRefused",
        "2m15s",
        op("sheetanchor_operator_watch_refused", "1x40", 'kind="Pod",watched_namespace="t"'),
        op("sheetanchor_operator_watch_refused", "0x40", 'kind="Pod",watched_namespace="t"'),
    ),
    *brief(
        "SheetAnchorRedisLibraryReplaced",
        pod("redis_library_repairs_total", "0x8 1x60", 'node="btc-redis-0"'),
        "3m",
        "1m30s",
    ),
    *both(
        "SheetAnchorMoveGivenUp",
        "11m",
        pipe("sheetanchor_failovers_total", "0x20 1x40", 'kind="Evacuation",result="Aborted"'),
        pipe("sheetanchor_failovers_total", "0x20 1x40", 'kind="Evacuation",result="Done"'),
    ),
    *both(
        "SheetAnchorZoneLost",
        "45s",
        op("sheetanchor_zone_healthy", "0x40", 'zone="zone-c"'),
        op("sheetanchor_zone_healthy", "1x40", 'zone="zone-c"'),
    ),
    *both("SheetAnchorOperatorRetries", "11m", repeated(5.1), repeated(4.9)),
    *both(
        "SheetAnchorOperatorQueueLong",
        "5m15s",
        op("sheetanchor_operator_queue_depth", "51x40"),
        op("sheetanchor_operator_queue_depth", "50x40"),
    ),
    *both(
        "SheetAnchorOperatorApiErrors",
        "11m",
        op("sheetanchor_operator_api_errors_total", "0+1.6x60", 'code="403"'),
        op("sheetanchor_operator_api_errors_total", "0+1.4x60", 'code="403"'),
    ),
    # pipeline.yaml
    *brief("SheetAnchorPipelineNotReady", condition("Ready", "0x40"), "5m15s", "4m45s"),
    Case("SheetAnchorPipelineNotReady", False, "6m", condition("Ready", "1x40")),
    # 99.4 % of 30 days and 99.6 %; 98.9 % and 99.1 %.
    *both("SheetAnchorUptimeLow", "7h", unready(259), unready(173)),
    *both("SheetAnchorUptimeCritical", "9h", unready(475), unready(389)),
    # Hours of rest are no outage, neither are those before the first prediction, nor those of a pipeline that is gone.
    Case("SheetAnchorUptimeLow", False, "7h", unready(259, phase="Maintenance")),
    Case("SheetAnchorUptimeLow", False, "7h", unready(259, phase="Suspended")),
    Case("SheetAnchorUptimeLow", False, "7h", unready(259, phase="Pending")),
    Case("SheetAnchorUptimeLow", False, "7h", unready(259, "1x20 stale")),
    # 315 s and 300 s; two of 315 s and 240 s; one of 240 s and one that lasts; one that lasts.
    *both("SheetAnchorRecoverySlow", "20m", outage(21), outage(20)),
    Case("SheetAnchorRecoverySlow", False, "25m", condition("Ready", "1x19 0x20 1x19 0x15 1x99")),
    Case("SheetAnchorRecoverySlow", False, "20m", condition("Ready", "1x9 0x15 1x9 0x100")),
    Case("SheetAnchorRecoverySlow", False, "20m", outage(100)),
    Case("SheetAnchorRecoverySlow", False, "1h20m", outage(21)),
    *both(
        "SheetAnchorPipelineDegraded",
        "1m15s",
        pipe("sheetanchor_pipeline_phase", "1x40", 'phase="Degraded"'),
        pipe("sheetanchor_pipeline_phase", "0x40", 'phase="Degraded"') | RUNNING,
    ),
    *both(
        "SheetAnchorNotAnchored",
        "2m15s",
        pod("sheetanchor_anchored", "0x40", SYMBOL) | pod("sheetanchor_writer", "1x40", SYMBOL),
        pod("sheetanchor_anchored", "1x40", SYMBOL) | pod("sheetanchor_writer", "1x40", SYMBOL),
    ),
    # An earlier writer still reports anchored, but no processor writes.
    Case(
        "SheetAnchorNotAnchored",
        True,
        "2m15s",
        pod("sheetanchor_anchored", "1x40", SYMBOL) | pod("sheetanchor_writer", "0x40", SYMBOL),
    ),
    *both(
        "SheetAnchorWriterMissing",
        "1m15s",
        pod("sheetanchor_writer", "0x40", SYMBOL),
        pod("sheetanchor_writer", "1x40", SYMBOL),
    ),
    *both("SheetAnchorReplicaMissing", "3m15s", replicas(1), replicas(2)),
    *brief("SheetAnchorPipelinePaused", condition("Paused", "1x970"), "4h1m", "3h59m"),
    *brief("SheetAnchorMaintenanceLong", pipe("sheetanchor_pipeline_maintenance", "1x500"), "2h1m", "1h59m"),
    # predictions.yaml
    *brief("SheetAnchorPredictionsMissing", RUNNING, "1m15s", "45s"),
    Case("SheetAnchorPredictionsMissing", False, "5m", RUNNING | committed(7.5)),
    # A symbol that processors know and that has never been committed has no series of its own to be seen by.
    Case(
        "SheetAnchorPredictionsMissing",
        False,
        "5m",
        RUNNING | committed(7.5) | pod("sheetanchor_anchored", "1x40", SYMBOL),
    ),
    *(
        Case(
            "SheetAnchorPredictionsMissing",
            True,
            "5m",
            RUNNING | committed(7.5) | pod("sheetanchor_anchored", anchored, 'symbol="ETHUSDT"'),
        )
        for anchored in ("1x40", "0x40")
    ),
    Case("SheetAnchorPredictionsMissing", False, "5m", pipe("sheetanchor_pipeline_phase", "1x40", 'phase="Pending"')),
    *both("SheetAnchorPredictionFrequency", "6m15s", committed(0.44 * 15), committed(0.46 * 15)),
    Case("SheetAnchorPredictionFrequency", False, "4m", committed(0.44 * 15)),
    Case("SheetAnchorPredictionFrequency", True, "6m15s", committed(0.56 * 15)),
    # 2 min 15 s of slow predictions fire, 1 min 45 s do not.
    Case("SheetAnchorPredictionLatencyHigh", True, "3m", latency(9, 3)),
    Case("SheetAnchorPredictionLatencyHigh", False, "2m45s", latency(7, 3)),
    Case("SheetAnchorPredictionLatencyHigh", False, "3m", latency(7, 3)),
    Case("SheetAnchorPredictionLatencyHigh", True, "5m", latency(40, 7.4)),
    Case("SheetAnchorPredictionLatencyHigh", False, "5m", latency(40, 7.45)),
    *both("SheetAnchorPredictionsTimedOut", "11m", late(2.1, "UNREACHABLE"), late(1.9, "UNREACHABLE")),
    *both("SheetAnchorPredictionsTimedOut", "11m", late(2.1, "REFUSED"), late(2.1, "EXISTS")),
    *both("SheetAnchorPredictionsDegraded", "3m", degraded(11), degraded(9)),
    *both(
        "SheetAnchorModelFallback",
        "5m15s",
        pod("sheetanchor_model_info", "1x40", 'model="",mode="linear_trend"'),
        pod("sheetanchor_model_info", "1x40", 'model="m",mode="model"'),
    ),
    *both("SheetAnchorModelAccuracyLow", "16m", accuracy(0.395), accuracy(0.405)),
    Case("SheetAnchorModelAccuracyLow", False, "16m", accuracy(0.1, decided=99)),
    *both("SheetAnchorAccuracyObjectiveMissed", "62m", objective(0.549), objective(0.551)),
    Case("SheetAnchorAccuracyObjectiveMissed", False, "62m", objective(0.3, decided=999)),
    Case("SheetAnchorAccuracyObjectiveMissed", False, "62m", objective(0.3, trained=0.5)),
    # ingestion.yaml
    *brief(
        "SheetAnchorSbeDisconnected",
        pod(STATUS, "0x40", 'line="a"') | pod(STATUS, "0x40", 'line="b"'),
        "1m",
        "59s",
    ),
    Case("SheetAnchorSbeDisconnected", False, "5m", pod(STATUS, "0x40", 'line="a"') | pod(STATUS, "1x40", 'line="b"')),
    *brief("SheetAnchorExchangeUnreachable", lines(0) | condition("ReanchorThrottled", "1x40"), "1m", "45s"),
    Case("SheetAnchorExchangeUnreachable", False, "5m", lines(1) | condition("ReanchorThrottled", "1x40")),
    Case("SheetAnchorExchangeUnreachable", False, "5m", lines(0) | condition("ReanchorThrottled", "0x40")),
    *brief("SheetAnchorLineDown", pod(STATUS, "0x40", 'line="a"') | pod(STATUS, "1x40", 'line="b"'), "1m", "59s"),
    *both(
        "SheetAnchorFeatureStale",
        "45s",
        pod("sheetanchor_feature_age_seconds", "5.1x40", SYMBOL),
        pod("sheetanchor_feature_age_seconds", "4.9x40", SYMBOL),
    ),
    *both(
        "SheetAnchorFramesShed",
        "6m",
        pod("ingestor_frames_shed_total", "5x20 6x20", f'{SYMBOL},stream="other"'),
        pod("ingestor_frames_shed_total", "5x40", f'{SYMBOL},stream="other"'),
    ),
    *both(
        "SheetAnchorDecodeErrors",
        "6m",
        pod("ingestor_sbe_decode_errors_total", "5x20 6x20", 'kind="template"'),
        pod("ingestor_sbe_decode_errors_total", "5x40", 'kind="template"'),
    ),
    *both(
        "SheetAnchorReconnectionFailed",
        "6m",
        pod("sheetanchor_alerts_total", "1x20 2x20", 'code="SBE_RECONNECTION_FAILED"'),
        pod("sheetanchor_alerts_total", "1x20 2x20", 'code="MODEL_FAILURE"'),
    ),
    # reanchor.yaml
    Case("SheetAnchorGapFound", True, "20m15s", new_counter("sheetanchor_gaps_total", GAP, POD, POD)),
    Case("SheetAnchorGapFound", False, "20m15s", old_counter("sheetanchor_gaps_total", GAP, POD, POD)),
    Case("SheetAnchorGapFound", True, "6m", pod("sheetanchor_gaps_total", "3x20 4x20", GAP)),
    Case("SheetAnchorGapFound", False, "6m", pod("sheetanchor_gaps_total", "3x40", GAP)),
    *both("SheetAnchorReanchorSlow", "20m15s", duration(1), duration(0)),
    Case("SheetAnchorReanchorSlow", True, "20m15s", duration(1, "4x80")),
    Case("SheetAnchorReanchorSlow", False, "20m15s", duration(1, "_x80", "_x80 1x100")),
    Case("SheetAnchorReanchorFailing", True, "20m15s", new_counter(RUNS, RUN_FAILED, PIPELINE, OPERATOR)),
    Case("SheetAnchorReanchorFailing", False, "20m15s", old_counter(RUNS, RUN_FAILED, PIPELINE, OPERATOR)),
    Case("SheetAnchorReanchorFailing", True, "12m", failed_runs("3x20 4x40")),
    Case("SheetAnchorReanchorFailing", False, "12m", failed_runs("0x20 1x40", 'mechanism="reanchor",result="success"')),
    *both("SheetAnchorReanchorFailingAgain", "21m30s", failed_runs("_x80 2x40"), failed_runs("_x80 1x40")),
    # One run each of two pipelines is not the same one failing again.
    Case("SheetAnchorReanchorFailingAgain", False, "12m", failed_runs("3x20 4x40") | other_runs("3x20 4x40")),
    *both("SheetAnchorReanchorFailingAgain", "12m", failed_runs("3x20 4x4 5x40"), failed_runs("3x20 4x40")),
    *both(
        "SheetAnchorReanchorThrottled",
        "2m15s",
        condition("ReanchorThrottled", "1x40"),
        condition("ReanchorThrottled", "0x40"),
    ),
    *both(
        "SheetAnchorReanchorRequestsRefused",
        "12m",
        pod("sheetanchor_reanchor_requests_total", "1+1x60", f'{SYMBOL},result="forbidden"'),
        pod("sheetanchor_reanchor_requests_total", "1+1x60", f'{SYMBOL},result="created"'),
    ),
    *both(
        "SheetAnchorReanchorSucceeded",
        "20m15s",
        reanchors("_x80 1x40", SWAPPED),
        reanchors("_x80 1x40", 'trigger="gap",result="validated"'),
    ),
    # redis.yaml
    *both(
        "SheetAnchorRedisDown",
        "1m15s",
        pod("health_status", "0x40", 'service="sheetanchor-infer",dependency="redis"'),
        pod("health_status", "0x40", 'service="sheetanchor-infer",dependency="redis"')
        | pod("health_status", "1x40", 'service="sheetanchor-process",dependency="redis"'),
    ),
    *both(
        "SheetAnchorRedisNoMaster",
        "45s",
        redis({"redis_up": ("0x40", "1x40", "1x40"), "redis_master": ("1x40", "0x40", "0x40")}),
        redis({"redis_up": ("1x40", "1x40", "1x40"), "redis_master": ("1x40", "0x40", "0x40")}),
    ),
    *both(
        "SheetAnchorRedisTwoMasters",
        "45s",
        redis({"redis_up": ("1x40", "1x40", "1x40"), "redis_master": ("1x40", "1x40", "0x40")}),
        redis({"redis_up": ("1x40", "1x40", "1x40"), "redis_master": ("1x40", "0x40", "0x40")}),
    ),
    *both(
        "SheetAnchorRedisReplicaMissing",
        "2m15s",
        redis(
            {
                "redis_up": ("1x40", "1x40", "1x40"),
                "redis_master": ("1x40", "0x40", "0x40"),
                "redis_connected_replicas": ("1x40", "0x40", "0x40"),
            }
        ),
        redis(
            {
                "redis_up": ("1x40", "1x40", "1x40"),
                "redis_master": ("1x40", "0x40", "0x40"),
                "redis_connected_replicas": ("2x40", "0x40", "0x40"),
            }
        ),
    ),
    *both(
        "SheetAnchorRedisLinkDown",
        "2m15s",
        redis({"redis_up": ("1x40", "1x40", "1x40"), "redis_master_link_up": ("1x40", "0x40", "1x40")}),
        redis({"redis_up": ("1x40", "1x40", "1x40"), "redis_master_link_up": ("1x40", "1x40", "1x40")}),
    ),
    *both(
        "SheetAnchorRedisFailover",
        "6m",
        redis({"redis_sentinel_config_epoch": ("0x20 1x20", "0x20 1x20", "0x20 1x20")}),
        redis({"redis_sentinel_config_epoch": ("1x40", "1x40", "1x40")}),
    ),
    *both(
        "SheetAnchorRedisMemory",
        "5m15s",
        redis({"redis_memory_used_bytes": ("81x40", "1x40", "1x40"), "redis_memory_max_bytes": ("100x40",) * 3}),
        redis({"redis_memory_used_bytes": ("79x40", "1x40", "1x40"), "redis_memory_max_bytes": ("100x40",) * 3}),
    ),
    Case(
        "SheetAnchorRedisMemory",
        False,
        "5m15s",
        redis({"redis_memory_used_bytes": ("81x40",) * 3, "redis_memory_max_bytes": ("0x40",) * 3}),
    ),
    # services.yaml
    *brief("SheetAnchorServiceUnhealthy", pod("up", "0x40", INFER), "1m", "45s"),
    *brief("SheetAnchorServiceDown", pod("up", "0x40", INFER), "5m", "4m45s"),
    Case(
        "SheetAnchorServiceDown",
        False,
        "6m",
        pod("up", "0x40", INFER) | {'up{namespace="t",pipeline="btc",pod="p1",service="sheetanchor-infer"}': "1x40"},
    ),
    *both(
        "SheetAnchorServiceRestarted",
        "10m",
        pod("process_start_time_seconds", "301x60", INFER),
        pod("process_start_time_seconds", "299x60", INFER),
    ),
    *both("SheetAnchorHttpErrors", "11m", errors(0.011), errors(0.009)),
    *both("SheetAnchorHttpErrorsMany", "8m", errors(0.11), errors(0.09)),
    *both("SheetAnchorMemoryHigh", "5m15s", memory(0.81), memory(0.79)),
    *both("SheetAnchorMemoryCritical", "2m15s", memory(0.91), memory(0.89)),
]
