"""Whether a live object still is as its manifest says. Pure.

Only what the manifest names counts: what the API server adds by default and what others own is left alone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, Final

_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_FACTORS: Final[Mapping[str, Decimal]] = {
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{unit: Decimal(1000) ** power for power, unit in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{f"{unit}i": Decimal(1024) ** power for power, unit in enumerate(("K", "M", "G", "T", "P", "E"), 1)},
}
_KEYS: Final = ("name", "mountPath", "containerPort", "port", "topologyKey", "uid", "key", "type", "path")
"""What tells the items of a list apart, the first that all of them have."""


def needs_apply(desired: Mapping[str, Any], live: Mapping[str, Any] | None) -> bool:
    """Say whether a manifest has to be applied.

    Args:
        desired: The manifest.
        live: The object as the API server gave it; None if it does not exist.
    """
    return live is None or not covers(live, desired)


def covers(live: Any, desired: Any) -> bool:
    """Say whether everything that is desired is there."""
    if isinstance(desired, Mapping):
        known = live if isinstance(live, Mapping) else {}
        return (isinstance(live, Mapping) or _is_nothing(live)) and all(
            covers(known.get(name), value) for name, value in desired.items()
        )
    if isinstance(desired, (list, tuple)):
        return _covers_list(live, desired)
    if desired is None or live is None:
        return _is_nothing(desired) and _is_nothing(live)
    return bool(desired == live) or _same_quantity(desired, live)


def _is_nothing(value: Any) -> bool:
    """The API server drops empty lists, maps and strings here and there."""
    return value is None or value in ("", [], {}, False, ())


def _covers_list(live: Any, desired: Sequence[Any]) -> bool:
    if not desired:
        return _is_nothing(live)
    if not isinstance(live, list):
        return False
    key = next((key for key in _KEYS if all(isinstance(item, Mapping) and key in item for item in desired)), None)
    if key is None or len({str(item[key]) for item in desired}) < len(desired):
        return len(live) == len(desired) and all(map(covers, live, desired))
    by_key = {str(item.get(key)): item for item in live if isinstance(item, Mapping)}
    return all(covers(by_key.get(str(item[key])), item) for item in desired)


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
