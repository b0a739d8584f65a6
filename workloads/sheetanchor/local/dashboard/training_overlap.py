"""What the model in use knows of the market that is replayed: what may be shown of its skill depends on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sheetanchor.errors import BadModel
from sheetanchor.ml.registry import ModelRegistry, default_root
from sheetanchor.recording import recording_file
from sheetanchor.runtime.settings import LocalSettings

SEEN: Final = "the model has learnt from this very recording: what it gets right here is no skill"
UNSEEN: Final = (
    "the model has learnt from what came before in this recording, not from this part; "
    "so short a part, again and again, is no measure of skill"
)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a replay says about the model.

    Attributes:
        begin_at_s: Moment of the recorder's clock from which on the model has seen nothing, in seconds since the epoch;
            0 to replay everything.
        note: One sentence for people, "" when there is nothing to be said.
    """

    begin_at_s: float = 0.0
    note: str = ""


def lesson_of(settings: LocalSettings, *, replayed: bool) -> Lesson:
    """Compare what the model was trained on with what is replayed.

    Only the recording that ships is cut, and only at its own pace: whoever names a recording or a pace wants all of it.

    Args:
        settings: What the user set.
        replayed: Whether the market is a recording at all.
    """
    if not replayed:
        return Lesson()
    try:
        manifest = ModelRegistry(settings.models or default_root()).current().manifest.content
    except BadModel:
        return Lesson()  # the replicas say so themselves
    data = manifest.get("data")
    if not isinstance(data, dict) or not _learnt(data) & {_digest(path) for path in settings.recording or _default()}:
        return Lesson()
    begin_at_s = _test_from_s(data)
    if settings.recording or settings.rate > 0 or settings.speed != 1 or not begin_at_s:
        return Lesson(note=SEEN)
    return Lesson(begin_at_s, UNSEEN)


def _default() -> list[Path]:
    return [recording_file.default_path()]


def _learnt(data: Mapping[str, Any]) -> set[str]:
    sources = data.get("sources")
    found = sources if isinstance(sources, list) else []
    return {str(source["sha256"]) for source in found if isinstance(source, dict) and "sha256" in source}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""  # the exchange will say so


def _test_from_s(data: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(data["test_from"])).timestamp()
    except (KeyError, ValueError):
        return 0.0
