"""Values of the annotation that the watch delivered between two reconciles."""

from __future__ import annotations

from typing import Any

from sheetanchor_operator.controller.seen_requests import KEPT_MAX, SeenRequests
from sheetanchor_operator.names import REANCHOR_ANNOTATION

KEY = ("market", "btc")


def pipeline(value: str | None, taken: str = "") -> dict[str, Any]:
    notes = {} if value is None else {REANCHOR_ANNOTATION: value}
    return {
        "metadata": {"namespace": KEY[0], "name": KEY[1], "annotations": notes},
        "status": {"lastReanchorRequest": taken},
    }


def seen(*versions: dict[str, Any]) -> SeenRequests:
    seen_requests = SeenRequests()
    for before, after in zip((None, *versions), versions, strict=False):
        seen_requests.note(before, after)
    return seen_requests


def test_what_is_replaced_before_a_look_is_kept() -> None:
    """Replaced or removed; what stands there still is read from the pipeline itself."""
    assert ("a", "b") == seen(pipeline(None), pipeline("a"), pipeline("b"), pipeline(None)).of(KEY)
    assert () == seen(pipeline("a"), pipeline("a"), pipeline("a", taken="a"), pipeline("b", taken="a")).of(KEY)
    assert ("{broken",) == seen(pipeline("{broken"), pipeline("x")).of(KEY)
    assert () == seen(pipeline('{"id": "7"}', taken="7"), pipeline("x", taken="7")).of(KEY)


def test_it_is_kept_until_it_is_acted_upon() -> None:
    """And no longer than there is a pipeline, nor in any number."""
    seen_requests = seen(*(pipeline(str(number)) for number in range(KEPT_MAX + 5)))
    kept = seen_requests.of(KEY)

    seen_requests.done(KEY, kept[:3])
    rest = seen_requests.of(KEY)
    seen_requests.forget(KEY)

    assert (KEPT_MAX, kept[3:], ()) == (len(kept), rest, seen_requests.of(KEY))
