"""Whether a live object still agrees with its manifest. Pure.

Only fields that the manifest names count: defaults of the API server and fields of other managers are left alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

from sheetanchor_operator.names import GROUP

_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_FACTORS: Final[Mapping[str, Decimal]] = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate(("K", "M", "G", "T", "P", "E"), 1)},
}
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "env": ("name",),
    "volumes": ("name",),
    "volumeMounts": ("mountPath",),
    "imagePullSecrets": ("name",),
    "ports": ("containerPort", "port"),
    "topologySpreadConstraints": ("topologyKey",),
    "ownerReferences": ("uid",),
}
"""Lists to which others may add, and the fields that identify their items: the first that all have. Other lists are
compared as one value."""

_ALONE: Final = frozenset({"NetworkPolicy", "Role", "RoleBinding"})
"""Kinds whose lists have to agree entirely: an added item would allow traffic or rights that are to be denied."""

APPLIED: Final = f"{GROUP}/applied"
"""Annotation with the digest of the manifest that was applied: it shows that a field was removed from the manifest."""


def stamped(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Give a manifest with its own digest in an annotation."""
    metadata = dict(manifest["metadata"])
    metadata["annotations"] = {**(metadata.get("annotations") or {}), APPLIED: digest(manifest)}
    return {**manifest, "metadata": metadata}


def needs_apply(desired: Mapping[str, Any], live: Mapping[str, Any] | None) -> bool:
    """Say whether a manifest has to be applied.

    Args:
        desired: The manifest.
        live: The object as the API server gave it; None if it does not exist.
    """
    return live is None or not covers(live, desired, shared=desired.get("kind") not in _ALONE)


def covers(live: Any, desired: Any, name: str = "", *, shared: bool = True) -> bool:
    """Say whether a live value has everything that is desired.

    Args:
        live: A value of the object.
        desired: The same value of the manifest.
        name: The field that they are in.
        shared: Whether others may add to lists.
    """
    return next(_differences(live, desired, name, (name,), shared=shared), None) is None


def differences(live: Mapping[str, Any], desired: Mapping[str, Any]) -> dict[str, str]:
    """Give the fields in which an object differs from its manifest, each with the live value.

    What the API server or a policy of the cluster makes of a manifest is no later change: as long as the differences
    are those of the answer to the write, the object has not drifted.
    """
    found = _differences(live, desired, "", (), shared=desired.get("kind") not in _ALONE)
    return {".".join(path): json.dumps(value, sort_keys=True, default=str) for path, value in found}


def _differences(
    live: Any, desired: Any, name: str, path: tuple[str, ...], *, shared: bool
) -> Iterator[tuple[tuple[str, ...], Any]]:
    if isinstance(desired, Mapping):
        if not isinstance(live, Mapping) and not _is_nothing(live):
            yield path, live
            return
        known = live if isinstance(live, Mapping) else {}
        for key, value in desired.items():
            yield from _differences(known.get(key), value, key, (*path, key), shared=shared)
    elif isinstance(desired, (list, tuple)):
        yield from _in_list(live, desired, name, path, shared=shared)
    elif desired is None or live is None:
        if not (_is_nothing(desired) and _is_nothing(live)):
            yield path, live
    elif not (desired == live or _same_quantity(desired, live)):
        yield path, live


def _is_nothing(value: Any) -> bool:
    """The API server drops empty lists, maps and strings of some fields."""
    return value is None or value in ("", [], {}, ())


def _in_list(
    live: Any, desired: Sequence[Any], name: str, path: tuple[str, ...], *, shared: bool
) -> Iterator[tuple[tuple[str, ...], Any]]:
    if not isinstance(live, list):
        if desired or not _is_nothing(live):
            yield path, live
        return
    key = _key_of(name, desired) if shared else None
    if key is None:
        same = len(live) == len(desired) and all(
            covers(one, other, name, shared=shared) for one, other in zip(live, desired, strict=True)
        )
        if not same:
            yield path, live
        return
    by_key = {str(item.get(key)): item for item in live if isinstance(item, Mapping)}
    for item in desired:
        word = str(item[key])
        yield from _differences(by_key.get(word), item, name, (*path, word), shared=shared)


def _key_of(name: str, desired: Sequence[Any]) -> str | None:
    """Choose the field that identifies a list's items, None if none does."""
    if not all(isinstance(item, Mapping) for item in desired):
        return None
    for key in _KEYS.get(name, ()):
        if len({str(item[key]) for item in desired if key in item}) == len(desired):
            return key
    return None


def _same_quantity(one: Any, other: Any) -> bool:
    """`1000m` and `1` are the same amount; the API server writes the shorter one."""
    if isinstance(one, bool) or isinstance(other, bool):
        return False
    amounts = [_QUANTITY.fullmatch(str(value)) for value in (one, other)]
    if None in amounts:
        return False
    first, second = (Decimal(found[1]) * _FACTORS[found[2] or ""] for found in amounts if found is not None)
    return first == second


def digest(manifest: Mapping[str, Any]) -> str:
    """Give a short hash of a manifest."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
