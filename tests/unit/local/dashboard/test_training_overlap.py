"""What a replay says about the skill of a model that has learnt from it."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from sheetanchor.local.dashboard.training_overlap import SEEN, UNSEEN, TrainingOverlap, training_overlap_of
from sheetanchor.local.roles import LocalPlan, MarketSource
from sheetanchor.ml.dataset import label, rows, split
from sheetanchor.ml.registry import ModelRegistry, default_root
from sheetanchor.recording import recording_file
from sheetanchor.runtime.settings import LocalSettings


def overlap(*, replayed: bool = True, **given: Any) -> TrainingOverlap:
    return training_overlap_of(LocalSettings(**given), replayed=replayed)


def edited(tmp_path: Path, **changes: Any) -> Path:
    """The registry that ships, with another description of its data."""
    root = tmp_path / "models"
    shutil.copytree(default_root(), root)
    [path] = root.glob("mlp/*/manifest.json")
    content = json.loads(path.read_text())
    content["data"] = {**content["data"], **changes}
    path.write_text(json.dumps(content))
    return root


def test_make_run_replays_what_the_shipped_model_has_not_seen() -> None:
    """From the first of the outcomes that judged it on: nothing was learnt from them, nothing chosen by them."""
    found = overlap()
    judged = split(label(rows(recording_file.load(recording_file.default_path())))).test

    assert (judged[0].at_us / 1e6, UNSEEN) == (found.begin_at_s, found.note)
    manifest = ModelRegistry(default_root()).current().manifest.content
    assert datetime.fromisoformat(manifest["data"]["test_from"]).timestamp() == found.begin_at_s


@pytest.mark.parametrize(
    "given",
    [{"speed": 2.0}, {"rate": 100.0}, {"recording": [recording_file.default_path()]}],
    ids=["speed", "rate", "named"],
)
def test_a_whole_replay_says_that_the_model_was_trained_on_it(given: dict[str, Any]) -> None:
    """Another pace, or the same recording named: it is played whole, and the note says what that means."""
    assert TrainingOverlap(0.0, SEEN) == overlap(**given)


def test_an_older_manifest_is_reported_too(tmp_path: Path) -> None:
    """One that does not say where its test began."""
    for test_from in (None, "soon", 7):
        root = edited(tmp_path / str(test_from), test_from=test_from)

        assert TrainingOverlap(0.0, SEEN) == overlap(models=root)


@pytest.mark.parametrize("sources", [[], None, [{"sha256": "0" * 64}], ["x"], "x"])
def test_of_a_market_it_has_not_learnt_from_nothing_is_said(tmp_path: Path, sources: Any) -> None:
    """Another recording, a real market, a registry without a model."""
    assert TrainingOverlap() == overlap(models=edited(tmp_path, sources=sources))
    assert TrainingOverlap() == overlap(replayed=False)
    assert TrainingOverlap() == overlap(models=tmp_path / "none")


def test_the_exchange_gets_the_time_to_begin_at() -> None:
    """The moment reaches its command line, and only when there is one."""
    market = MarketSource("local", "ws://127.0.0.1:1", "http://127.0.0.1:1", "local", 1)
    whole, part = (
        LocalPlan(LocalSettings(), market, "", {}, 0.0, at_s).exchange().command for at_s in (0.0, 1723161524.0)
    )

    assert "--begin-at" not in whole
    assert "1723161524.000" == part[part.index("--begin-at") + 1]
