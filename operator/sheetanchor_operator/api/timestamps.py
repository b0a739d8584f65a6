"""Times as Kubernetes writes them and as µs since the epoch."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micros_of(text: str | None) -> int:
    """Read a time such as 2026-11-21T08:00:00Z; 0 for none."""
    if not text:
        return 0
    return (datetime.fromisoformat(text) - _EPOCH) // timedelta(microseconds=1)


def text_of(at_us: int) -> str:
    """Write a time; whole seconds without a fraction."""
    text = (_EPOCH + timedelta(microseconds=at_us)).isoformat()
    return text.replace("+00:00", "Z")
