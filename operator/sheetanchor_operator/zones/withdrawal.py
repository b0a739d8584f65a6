"""Which inference pods of an unreachable zone leave their Service, and which have to remain. Pure.

An operator says of them what the node controller would say half a minute later: that they are not ready. Their kubelet
has the last word: one that lives says otherwise within ten seconds, and is left alone for a while then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor_operator.names import ZONE_UNREACHABLE, Component
from sheetanchor_operator.zones.witnesses import Place, PodFacts

OBSERVED_WITHIN_S: Final = 2.0
"""What was observed longer ago than this may be over, for instance because the API server was slow: nothing is done."""

LEFT_ALONE_S: Final = 60.0
"""A kubelet that has overruled an operator is not contradicted for this long."""


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """What a zone's silence means for one pipeline's readers.

    Attributes:
        pods: Pods that leave the Service.
        remaining: Pods in other zones of which at least one has to answer before any leaves.
    """

    zone: str
    pods: tuple[PodFacts, ...]
    remaining: tuple[PodFacts, ...]


def withdrawal(
    owner: Place,
    zone: str,
    zones: Mapping[str, Sequence[PodFacts]],
    answered: Collection[str],
    left_alone: Collection[str],
) -> Withdrawal | None:
    """Decide which pods of a pipeline leave its Service; None if none does.

    Args:
        owner: The pipeline.
        zone: The zone whose silence is confirmed.
        zones: All pods by zone.
        answered: Uids of the pods that answered in the last round.
        left_alone: Uids of those whose kubelets have recently overruled it.
    """

    def readers_in(name: str) -> list[PodFacts]:
        return [pod for pod in zones.get(name, ()) if pod.owner == owner and pod.component == Component.INFER]

    pods = tuple(
        pod
        for pod in readers_in(zone)
        if pod.is_witness and pod.ready and pod.uid not in answered and pod.uid not in left_alone
    )
    remaining = tuple(
        pod for other in zones if other != zone for pod in readers_in(other) if pod.is_witness and pod.ready
    )
    return Withdrawal(zone, pods, remaining) if pods and remaining else None


def unready_condition(zone: str, at: str) -> dict[str, Any]:
    """Give the condition that takes a pod out of its Service.

    Args:
        zone: Its zone.
        at: The moment, as the API server writes times.
    """
    return {
        "type": "Ready",
        "status": "False",
        "reason": ZONE_UNREACHABLE,
        "message": f"neither the operator of Sheet Anchor nor a Sentinel of a third zone reaches zone {zone}",
        "lastTransitionTime": at,
    }
