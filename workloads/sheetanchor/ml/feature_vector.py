"""From the hot state's fields to a model's input. Pure, and the same code in training and in serving.

A feature is named `<hash>.<field>`, for instance `feat.ret_1s`, `tr_5s.signed_vol` or `ob.bid1_q`. Which ones a
model uses, and in which order, is in its manifest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_BOOK_LEVELS: Final = 10
_TRADE_FIELDS: Final = [
    "count",
    "vol",
    "volume",
    "signed_vol",
    "signed_volume",
    "notional",
    "buy_volume",
    "sell_volume",
    "vwap",
    "vwap_minus_mid",
    "trade_intensity",
    "avg_trade_size",
    "interarr_mean",
    "interarr_var",
]
_BOOK_FIELDS: Final = ["best_bid", "best_ask", "spread", "spread_bp", "bid_value_sum", "ask_value_sum", "ob_imbalance"]
_FEATURE_FIELDS: Final = ["ret_1s", "ret_5s", "vol_imbalance", "spread_bp", "ob_imbalance", "trade_intensity"]

FEATURES: Final = frozenset(
    [f"ob.{name}" for name in _BOOK_FIELDS]
    + [f"ob.{side}{i}_{part}" for side in ("bid", "ask") for i in range(1, _BOOK_LEVELS + 1) for part in ("p", "q")]
    + [f"{window}.{name}" for window in ("tr_1s", "tr_5s") for name in _TRADE_FIELDS]
    + [f"feat.{name}" for name in _FEATURE_FIELDS]
)
"""Every name that a manifest may use; ids and times are left out, since a model would overfit to them."""

Fields = Mapping[str, str]


class FeatureMissing(ValueError):
    """A feature is not available in this state; the text names it."""


def unknown_features(names: Sequence[str]) -> list[str]:
    """Give the names that are no features."""
    return [name for name in names if name not in FEATURES]


def extract(names: Sequence[str], hashes: Mapping[str, Fields]) -> NDArray[np.float32]:
    """Build the input of a model.

    Args:
        names: Features in the model's order.
        hashes: The fields of `ob`, `tr_1s`, `tr_5s` and `feat`.

    Returns:
        float32 of shape (len(names),), all finite.

    Raises:
        FeatureMissing: A feature is absent, no number or not finite; names the feature and what was found.
    """
    return np.array([_value(name, hashes) for name in names], dtype=np.float32)


def _value(name: str, hashes: Mapping[str, Fields]) -> float:
    group, _, field = name.partition(".")
    text = hashes.get(group, {}).get(field)
    if text is None:
        raise FeatureMissing(f"feature {name}: not in the state")
    try:
        value = float(text)
    except ValueError:
        raise FeatureMissing(f"feature {name}: expected a number, found {text!r}") from None
    # A number beyond float32 would reach the model as infinity.
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max):
        raise FeatureMissing(f"feature {name}: expected a finite number, found {text!r}")
    return value


def mid_of(ob: Fields) -> float | None:
    """Give the middle of the best bid and ask; None when the book has none."""
    try:
        mid = (float(ob["best_bid"]) + float(ob["best_ask"])) / 2
    except (KeyError, ValueError):
        return None
    # Prices have eight decimals, so a mid has nine: further digits are rounding errors of the float.
    return round(mid, 9) if math.isfinite(mid) and mid > 0 else None
