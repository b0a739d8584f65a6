"""`spec.reanchor`, `spec.failover` and `spec.reliability` of a PredictionPipeline: how it recovers."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Final

from croniter import croniter
from pydantic import AfterValidator

from sheetanchor.policy.reanchor_scheduler import DEFAULT_POLICY, SECOND_US
from sheetanchor_operator.api.fields import Block, field, rule, ruled
from sheetanchor_operator.api.shared_fields import ReanchorResources, matches

_CRON_FIELD: Final = r"([*]|[0-9]{1,2}(-[0-9]{1,2})?(,[0-9]{1,2}(-[0-9]{1,2})?)*)(/[0-9]{1,2})?"
_SCHEDULE: Final = re.compile(rf"{_CRON_FIELD}( {_CRON_FIELD}){{4}}")
_ANY_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)
AGREED_WITHIN_S: Final = 1.0
"""Sentinels miss a peer after 2.5 s, and are asked each second: the second observer agrees a second after the first."""

FAILED_AFTER_S: Final = 4.0
"""Sending readers elsewhere is cheap and heals itself; whatever moves more waits for as long again."""


def _schedule(value: str) -> str:
    """Check a schedule beyond what the API server can: its ranges, and that some date matches it.

    Raises:
        ValueError: Says what was expected.
    """
    try:
        usable = _SCHEDULE.fullmatch(value) is not None and bool(croniter(value, _ANY_TIME).get_next(datetime))
    except ValueError:  # croniter's errors derive from it
        usable = False
    if value and not usable:
        raise ValueError(
            "expected five fields in UTC: minute 0-59, hour 0-23, day 1-31, month 1-12, weekday 0-7; and a day that "
            "exists"
        )
    return value


Schedule = Annotated[str, AfterValidator(_schedule)]


class History(Block):
    """How many finished re-anchors are kept."""

    successful: int = field(10, "Succeeded and skipped ReAnchor objects that are kept per pipeline.", ge=0, le=100)
    failed: int = field(10, "Failed ReAnchor objects that are kept per pipeline.", ge=0, le=100)


class Reanchor(Block):
    """When and how the hot state is rebuilt from the exchange."""

    model_config = ruled(
        rule(
            "self.backoffSeconds <= self.backoffMaxSeconds",
            "reanchor.backoffSeconds must not exceed reanchor.backoffMaxSeconds: lower it or raise the maximum",
        ),
        rule(
            "self.schedule == '' || self.enabled",
            "reanchor.schedule needs reanchor.enabled: set it to true or remove the schedule",
        ),
    )

    enabled: bool = field(True, "False: only requests with force are run. For investigations only.")
    schedule: Schedule = field(
        "",
        "When to rebuild even if the state is sound, as a cron expression in UTC with five fields (minute, hour, "
        "day, month, weekday), for instance 0 4 * * *. If a time was missed by less than an hour, the re-anchor is "
        "started late, once. Empty means never: gaps start re-anchors anyway.",
        max_length=100,
        rules=[
            rule(
                f"self == '' || {matches(_SCHEDULE.pattern)}",
                "reanchor.schedule must be a cron expression of five numeric fields in UTC, for instance 0 4 * * *",
            )
        ],
    )
    depth_limit: int = field(
        5000,
        "Levels on each side of the order book to fetch. 5000, the exchange's maximum, costs 250 of its 6,000 units of "
        "request weight per minute.",
        ge=5,
        le=5000,
    )
    timeout_seconds: int = field(
        120,
        "Seconds after which a run ends without a swap. Well below the 300 s after which its lock expires.",
        ge=10,
        le=140,
    )
    cooldown_seconds: int = field(
        DEFAULT_POLICY.cooldown_us // SECOND_US,
        "Seconds between two rebuilds of a state that is not suspect, at least.",
        ge=0,
        le=3600,
    )
    rebuilds_per_hour: int = field(
        DEFAULT_POLICY.rebuilds_per_hour,
        "Rebuilds of the pipeline within an hour at most, all symbols together. Sixty use a twentieth of the "
        "exchange's request weight. A suspect state is rebuilt once a minute even if the budget is used up.",
        ge=1,
        le=600,
    )
    backoff_seconds: int = field(
        DEFAULT_POLICY.backoff_us // SECOND_US,
        "Seconds before the first retry of a failed run; doubles each time.",
        ge=1,
        le=300,
    )
    backoff_max_seconds: int = field(
        DEFAULT_POLICY.backoff_max_us // SECOND_US, "Seconds between two retries at most.", ge=1, le=3600
    )
    history: History = field(History(), "How many finished ReAnchor objects are kept.")
    resources: ReanchorResources = field(ReanchorResources(), "Resources of a re-anchor's pod.")


class Failover(Block):
    """When a zone that cannot be reached counts as lost.

    The operator polls each second whatever is set here; the fields set how long a zone may go without an answer.
    """

    failure_threshold: int = field(
        3,
        "Checks in a row without an answer from any pod of a zone. Three, since a lost packet or a pause makes one "
        "check fail.",
        ge=3,
        le=10,
    )
    interval_seconds: int = field(
        1,
        "Seconds that one check covers. One: with three of them and a second for a second observer to agree, a "
        "zone is silent after 4 s, and its pods leave the Services; after 4 s more it has failed. With 30 a zone is "
        "silent after 91 s.",
        ge=1,
        le=30,
    )

    @property
    def silent_s(self) -> float:
        """Seconds of silence after which readers are sent elsewhere."""
        return self.failure_threshold * self.interval_seconds + AGREED_WITHIN_S

    @property
    def failed_s(self) -> float:
        """Seconds of silence after which the zone counts as lost."""
        return self.silent_s + FAILED_AFTER_S


class Reliability(Block):
    """Retries and breakers of calls to the exchange's REST interface and to the Kubernetes API, and health checks."""

    retry_max_attempts: int = field(3, "Retries after a failed first attempt.", ge=1, le=10)
    retry_initial_delay_milliseconds: int = field(
        1000, "Milliseconds before the first retry; doubles each time.", ge=100, le=10_000
    )
    circuit_breaker_threshold: int = field(
        10,
        "Failed requests in a row after which the circuit breaker opens: no requests are sent for a time. Those to the "
        "exchange are counted over all re-anchor runs.",
        ge=5,
        le=50,
    )
    circuit_breaker_timeout_seconds: int = field(60, "Seconds that the circuit breaker stays open.", ge=10, le=300)
    health_check_interval_seconds: int = field(5, "Seconds between two rounds of a pod's health checks.", ge=1, le=60)
