"""Blocks of fields that several parts of a pipeline's specification share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from sheetanchor_operator.api.fields import Block, field, rule, ruled

NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"
"""What the API server accepts as the name of a Secret, a ConfigMap or a claim."""

KEY_PATTERN: Final = r"^[-._a-zA-Z0-9]+$"
QUANTITY_PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti)?$"
SIZE_PATTERN: Final = r"^[1-9][0-9]*(Mi|Gi|Ti)$"

PORT_PATTERN: Final = (
    "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"  # 1 to 65535
)
HOST_PATTERN: Final = rf"(\[[0-9a-fA-F:.]+\]|[^\[\]/?#@:,\s]+)(:{PORT_PATTERN})?"
"""A name or an address and perhaps a port; one of IPv6 in brackets."""

QUANTITIES: Final[dict[str, Any]] = {
    "maxProperties": 8,
    "additionalProperties": {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "maxLength": 16,
        "pattern": QUANTITY_PATTERN,
        "x-kubernetes-int-or-string": True,
    },
}

Quantities = dict[str, int | str]

_REQUESTS: Final = (
    "What the scheduler reserves for each pod, by resource (cpu, memory, ephemeral-storage). Small by default, so "
    "that a whole pipeline fits on a test machine: raise it to the usage that the pods' metrics show."
)
_LIMITS: Final = (
    "What each pod may use at most, by resource. There is no CPU limit by default, since a workload that is throttled "
    "for a tenth of a second misses its deadlines."
)


def matches(pattern: str) -> str:
    """Give the CEL expression that says whether a text matches a pattern."""
    text = pattern.replace("\\", "\\\\")
    return f"self.matches('^{text}$')"


def url_of(*schemes: str) -> Callable[[str], str]:
    """Make a check of a URL, as the workloads check it: one that they refuse would keep their pods from starting.

    Args:
        schemes: Those that are accepted, in lowercase.

    Returns:
        A function that returns a valid URL unchanged, or raises ValueError saying what was expected.
    """
    begin = " or ".join(f"{scheme}://" for scheme in schemes)

    def check(value: str) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:  # also of a port that is no number, or beyond 65535
            usable = False
        if not usable:
            raise ValueError(f"expected {begin} with a host, and a port from 1 to 65535 if one is named")
        return value

    return check


def _fits(resource: str, what: str) -> dict[str, str]:
    request, limit = f"self.requests['{resource}']", f"self.limits['{resource}']"
    return rule(
        f"!('{resource}' in self.requests) || !('{resource}' in self.limits) || "
        f"quantity(string({request})).compareTo(quantity(string({limit}))) <= 0",
        f"resources.requests.{resource} must not exceed resources.limits.{resource}: {what}",
    )


class Resources(Block):
    """Resources of each pod of a component."""

    model_config = ruled(
        _fits("memory", "raise the limit or lower the request"),
        _fits("cpu", "raise the limit, lower the request, or leave the limit out"),
    )

    requests: Quantities = field({}, _REQUESTS, schema=QUANTITIES)
    limits: Quantities = field({}, _LIMITS, schema=QUANTITIES)


class IngestResources(Resources):
    """Resources of an ingestor, which holds up to `queueMegabytes` of frames while Redis is away."""

    requests: Quantities = field({"cpu": "50m", "memory": "96Mi"}, _REQUESTS, schema=QUANTITIES)
    limits: Quantities = field({"memory": "512Mi"}, _LIMITS, schema=QUANTITIES)


class ProcessResources(Resources):
    """Resources of a processor, which may run a re-anchor as a child process when the operator does not."""

    requests: Quantities = field({"cpu": "50m", "memory": "128Mi"}, _REQUESTS, schema=QUANTITIES)
    limits: Quantities = field({"memory": "768Mi"}, _LIMITS, schema=QUANTITIES)


class InferResources(Resources):
    """Resources of an inference replica with its model."""

    requests: Quantities = field({"cpu": "50m", "memory": "128Mi"}, _REQUESTS, schema=QUANTITIES)
    limits: Quantities = field({"memory": "768Mi"}, _LIMITS, schema=QUANTITIES)


class RedisResources(Resources):
    """Resources of one Redis node; its memory limit leaves room beside `maxMemory` for a copy while it saves."""

    requests: Quantities = field({"cpu": "50m", "memory": "128Mi"}, _REQUESTS, schema=QUANTITIES)
    limits: Quantities = field({"memory": "1536Mi"}, _LIMITS, schema=QUANTITIES)


class SentinelResources(Resources):
    """Resources of one Sentinel, which holds no data."""

    requests: Quantities = field({"cpu": "20m", "memory": "64Mi"}, _REQUESTS, schema=QUANTITIES)
    limits: Quantities = field({"memory": "192Mi"}, _LIMITS, schema=QUANTITIES)


class ReanchorResources(Resources):
    """Resources of a re-anchor's Job, which lives for some seconds."""

    requests: Quantities = field({"cpu": "50m", "memory": "96Mi"}, _REQUESTS, schema=QUANTITIES)
    limits: Quantities = field({"memory": "512Mi"}, _LIMITS, schema=QUANTITIES)


class NameRef(Block):
    """An object of the pipeline's namespace."""

    name: str = field(
        ..., "Name of the object, in the pipeline's namespace.", min_length=1, max_length=253, pattern=NAME_PATTERN
    )


class SecretKeyRef(NameRef):
    """One entry of a Secret."""

    key: str = field(
        ..., "Entry of the Secret that holds the value.", min_length=1, max_length=253, pattern=KEY_PATTERN
    )


class ApiKeyRef(SecretKeyRef):
    """The entry of a Secret with the exchange's API key."""

    key: str = field(
        "api-key", "Entry of the Secret that holds the key.", min_length=1, max_length=253, pattern=KEY_PATTERN
    )


class PasswordRef(SecretKeyRef):
    """The entry of a Secret with a password."""

    key: str = field(
        "password", "Entry of the Secret that holds the password.", min_length=1, max_length=253, pattern=KEY_PATTERN
    )


class AuthorityRef(SecretKeyRef):
    """The entry of a Secret with a certificate authority."""

    key: str = field(
        "ca.crt",
        "Entry of the Secret that holds the authority's certificates, PEM.",
        min_length=1,
        max_length=253,
        pattern=KEY_PATTERN,
    )


class Toleration(Block):
    """A taint that the pods tolerate, as in a pod's `tolerations`."""

    model_config = ruled(
        rule(
            "self.key != '' || self.operator == 'Exists'",
            "scheduling.tolerations: an empty key tolerates every taint and needs operator Exists; otherwise set key",
        ),
        rule(
            "self.operator != 'Exists' || self.value == ''",
            "scheduling.tolerations: value has no meaning with operator Exists; leave it out or use Equal",
        ),
        rule(
            "!has(self.tolerationSeconds) || self.effect == 'NoExecute'",
            "scheduling.tolerations: tolerationSeconds needs effect NoExecute; set it or leave the seconds out",
        ),
    )

    key: str = field("", "Key of the taint; empty means every taint and needs operator Exists.", max_length=316)
    operator: Literal["Equal", "Exists"] = field("Equal", "Equal compares the value too, Exists only the key.")
    value: str = field("", "Value of the taint, for operator Equal.", max_length=63)
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = field(
        "", "Effect of the taint; empty means every effect."
    )
    toleration_seconds: int | None = field(
        None, "Seconds that a NoExecute taint is tolerated; absent means for ever.", ge=0, le=86_400
    )
