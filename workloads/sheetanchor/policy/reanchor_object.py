"""The `ReAnchor` object: what every client that requests a re-anchor on Kubernetes creates, and how it is named.

Names are made from what is asked for, so that asking twice is asking once: the second creation finds the first.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Final

from sheetanchor.runtime.plain_text import one_line

_PLAIN_SYMBOL: Final = re.compile(r"[A-Z0-9]{2,20}")
"""Symbols that can be part of names and labels as they are."""

GROUP: Final = "sheetanchor.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

NAME_LENGTH_MAX: Final = 57
"""A run's Job adds `-` and the number of its try; names of Jobs end up in labels, which hold 63 characters."""

REASON_LENGTH_MAX: Final = 512
REQUESTED_BY_LENGTH_MAX: Final = 253

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Owner:
    """The pipeline that a request belongs to.

    Attributes:
        uid: "" where it is not known; the operator adds the owner reference then.
    """

    name: str
    namespace: str
    uid: str = ""


@dataclass(frozen=True, slots=True)
class ReAnchorRequest:
    """What is asked for.

    Attributes:
        suffix: Last part of the object's name, the same for the same request.
        action: One of the four actions of the gap rules.
        trigger: Gap rule, start, suspect, annotation, schedule, failover or manual.
        at_us: When what it is about happened.
        epoch: Epoch of the state that is in doubt; 0 where that is not known.
    """

    symbol: str
    suffix: str
    action: str
    reason: str
    trigger: str
    requested_by: str
    at_us: int
    epoch: int = 0
    request_id: str = ""
    dry_run: bool = False
    force: bool = False


def digest(*parts: object) -> str:
    """Make eight hexadecimal digits of some values."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:8]


def gap_suffix(rule: str, at_us: int, symbol: str) -> str:
    """Make the suffix of a request that a gap record stands for."""
    return digest(rule, at_us, symbol)


def bounded_name(name: str, length_max: int = NAME_LENGTH_MAX) -> str:
    """Shorten a name that is too long; it stays as unique as it was."""
    if len(name) <= length_max:
        return name
    return f"{name[: length_max - 9].rstrip('-.')}-{digest(name)}"


def symbol_label(symbol: str) -> str:
    """Give a symbol as the value of a label: itself, or a digest where its characters may not stand in one."""
    return symbol if _PLAIN_SYMBOL.fullmatch(symbol) else f"u-{digest(symbol)}"


def object_name(pipeline: str, symbol: str, suffix: str) -> str:
    """Name the request of a pipeline."""
    return bounded_name(f"{pipeline}-{symbol_label(symbol).lower()}-{suffix}")


def owner_reference(owner: Owner) -> Manifest:
    """Make a pipeline the owner of a request: the request is deleted with it."""
    return {
        "apiVersion": API_VERSION,
        "kind": "PredictionPipeline",
        "name": owner.name,
        "uid": owner.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def labels_of(pipeline: str, symbol: str) -> dict[str, str]:
    """Give the labels of a request."""
    return {
        "app.kubernetes.io/name": "sheetanchor",
        "app.kubernetes.io/instance": pipeline,
        "app.kubernetes.io/component": "reanchor",
        "app.kubernetes.io/part-of": "sheetanchor",
        "sheetanchor.dev/pipeline": pipeline,
        "sheetanchor.dev/symbol": symbol_label(symbol),
    }


def reanchor_object(owner: Owner, request: ReAnchorRequest) -> Manifest:
    """Render a request as the object to create."""
    reason = one_line(request.reason, REASON_LENGTH_MAX)
    metadata: Manifest = {
        "name": object_name(owner.name, request.symbol, request.suffix),
        "namespace": owner.namespace,
        "labels": labels_of(owner.name, request.symbol),
    }
    if owner.uid:
        metadata["ownerReferences"] = [owner_reference(owner)]
    spec: Manifest = {
        "pipeline": owner.name,
        "symbol": request.symbol,
        "reason": reason,
        "trigger": request.trigger,
        "action": request.action,
        "requestedBy": one_line(request.requested_by, REQUESTED_BY_LENGTH_MAX),
        "atMicros": request.at_us,
    }
    optional = {
        "epoch": request.epoch,
        "requestID": request.request_id,
        "dryRun": request.dry_run,
        "force": request.force,
    }
    spec.update({name: value for name, value in optional.items() if value})
    return {"apiVersion": API_VERSION, "kind": "ReAnchor", "metadata": metadata, "spec": spec}
