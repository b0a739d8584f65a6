"""A model's input from the hot state's fields."""

from __future__ import annotations

import numpy as np
import pytest

from sheetanchor._decoder import Market
from sheetanchor.ml.feature_vector import FEATURES, FeatureMissing, extract, mid_of, unknown_features
from sheetanchor.recording import recording_file

HASHES = {
    "ob": {"best_bid": "100.00000000", "best_ask": "101.00000000", "bid1_q": "2.50000000"},
    "tr_1s": {"signed_vol": "-0.5"},
    "tr_5s": {"signed_vol": "1.25"},
    "feat": {"ret_1s": "1e-05"},
}


def test_values_come_in_the_order_of_the_names() -> None:
    """The vector is float32 and follows the manifest, not the hashes."""
    vector = extract(["tr_5s.signed_vol", "feat.ret_1s", "ob.bid1_q", "tr_1s.signed_vol"], HASHES)

    assert (np.dtype("float32"), (4,)) == (vector.dtype, vector.shape)
    assert np.array([1.25, 1e-05, 2.5, -0.5], dtype=np.float32).tolist() == vector.tolist()


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e39", "", "twelve"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    """The error names the feature and what was found; infinity is also what does not fit a float32."""
    with pytest.raises(FeatureMissing, match=r"feature feat\.ret_1s: .*" + (f"'{text}'")):
        extract(["feat.ret_1s"], {**HASHES, "feat": {"ret_1s": text}})


@pytest.mark.parametrize("name", ["feat.ret_5s", "nothing.ret_1s", "ret_1s"])
def test_what_is_absent_is_named(name: str) -> None:
    """A feature that the state lacks is never taken as 0."""
    with pytest.raises(FeatureMissing, match=f"feature {name}: not in the state"):
        extract([name], HASHES)


def test_every_known_feature_is_in_a_real_hot_state() -> None:
    """The names that a manifest may use are all there in what the processor writes, and finite."""
    recorded = recording_file.load(recording_file.default_path())
    snapshot = recorded.snapshot
    market = Market(recorded.symbol)
    market.load_snapshot(
        snapshot.book_update_id, -8, -8, list(snapshot.bids), list(snapshot.asks), recorded.snapshot_us
    )

    lists = market.hot_state(recorded.snapshot_us)
    groups = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in lists]
    vector = extract(sorted(FEATURES), dict(zip(("ob", "tr_1s", "tr_5s", "feat"), groups, strict=True)))

    assert np.isfinite(vector).all()


def test_unknown_names_are_found_before_a_model_serves() -> None:
    """Ids and times are no features: a model would learn them by heart."""
    assert ["feat.ts", "ob.update_id", "x"] == unknown_features(["feat.ret_1s", "feat.ts", "ob.update_id", "x"])


@pytest.mark.parametrize(
    ("ob", "expected"),
    [
        (HASHES["ob"], 100.5),
        ({}, None),
        ({"best_bid": "1"}, None),
        ({"best_bid": "x", "best_ask": "1"}, None),
        ({"best_bid": "nan", "best_ask": "1"}, None),
        ({"best_bid": "0", "best_ask": "0"}, None),
    ],
)
def test_the_mid_is_a_positive_number_or_nothing(ob: dict[str, str], expected: float | None) -> None:
    """A book that does not say gives no price."""
    assert expected == mid_of(ob)
