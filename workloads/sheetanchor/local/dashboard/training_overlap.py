"""Whether the model was trained on the market that is replayed: a share of right directions then shows no skill."""

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

SEEN: Final = "the model was trained on this recording: its accuracy here shows no skill"
UNSEEN: Final = (
    "the model was trained on an earlier part of this recording; this part is short and repeats, so its accuracy "
    "here is no measure of skill"
)


@dataclass(frozen=True, slots=True)
class TrainingOverlap:
    """What a replay may show of the model.

    Attributes:
        begin_at_s: Time on the recorder's clock after which nothing was used for training, in seconds since 1970;
            0 to replay everything.
        note: Caveat about the accuracy in one sentence, "" for none.
    """

    begin_at_s: float = 0.0
    note: str = ""


def training_overlap_of(settings: LocalSettings, *, replayed: bool) -> TrainingOverlap:
    """Compare what the model was trained on with what is replayed.

    Only the recording that ships is cut, and only at its own pace: a recording or pace set by the user is played as a
    whole.

    Args:
        settings: Settings of the run.
        replayed: Whether the market is a recording at all.
    """
    if not replayed:
        return TrainingOverlap()
    try:
        manifest = ModelRegistry(settings.models or default_root()).current().manifest.content
    except BadModel:
        return TrainingOverlap()  # the replicas report a missing or broken model themselves
    data = manifest.get("data")
    if not isinstance(data, dict) or not _trained_on(data) & {
        _digest(path) for path in settings.recording or _default()
    }:
        return TrainingOverlap()
    begin_at_s = _test_from_s(data)
    if settings.recording or settings.rate > 0 or settings.speed != 1 or not begin_at_s:
        return TrainingOverlap(note=SEEN)
    return TrainingOverlap(begin_at_s, UNSEEN)


def _default() -> list[Path]:
    return [recording_file.default_path()]


def _trained_on(data: Mapping[str, Any]) -> set[str]:
    sources = data.get("sources")
    found = sources if isinstance(sources, list) else []
    return {str(source["sha256"]) for source in found if isinstance(source, dict) and "sha256" in source}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""  # the simulator reports an unreadable recording itself


def _test_from_s(data: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(data["test_from"])).timestamp()
    except (KeyError, ValueError):
        return 0.0
