"""Training as its user runs it: from a recording to a model that serves."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sheetanchor.errors import BadRecording, BadSettings
from sheetanchor.ml.dataset import label, rows
from sheetanchor.ml.feature_vector import extract
from sheetanchor.ml.onnx_model import OnnxModel
from sheetanchor.ml.registry import ModelRecord, ModelRegistry, default_root
from sheetanchor.ml.train import Gate, _store, run, score
from sheetanchor.recording import recording_file
from sheetanchor.recording.recording_file import Recording
from sheetanchor.runtime.settings import TrainSettings
from support.onnx_models import model, promote


@pytest.fixture(scope="module")
def whole() -> Recording:
    """The recording that ships."""
    return recording_file.load(recording_file.default_path())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry with what training makes of the recording that ships."""
    root = tmp_path_factory.mktemp("registry") / "models"
    assert train(out=root) == 0
    return root


def train(**settings: Any) -> int:
    return asyncio.run(run(TrainSettings(**settings)))


def sheetanchor_train(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sheetanchor", "train", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)


def content_of(record: ModelRecord) -> dict[str, Any]:
    return dict(record.manifest.content)


def predictions(record: ModelRecord, of: Recording) -> list[float]:
    loaded = OnnxModel(record)
    return [loaded.run(extract(record.manifest.features, example.groups)) for example in label(rows(of))]


def test_the_shipped_model_is_what_the_command_makes(trained: Path, whole: Recording) -> None:
    """Trained again: the same features, data and number of examples, and the same predictions to a hundredth bp."""
    shipped, again = ModelRegistry(default_root()).current(), ModelRegistry(trained).current()

    assert shipped.manifest.features == again.manifest.features
    assert content_of(shipped)["data"] == content_of(again)["data"]
    assert content_of(shipped)["seed"] == content_of(again)["seed"]
    assert predictions(shipped, whole) == pytest.approx(predictions(again, whole), abs=1e-6)


def test_the_manifest_has_what_a_reviewer_needs(trained: Path, whole: Recording) -> None:
    """Source and its hash, parts, every candidate, naive baselines on the same test part, and an honest remark."""
    manifest = content_of(ModelRegistry(trained).current())

    [source] = manifest["data"]["sources"]
    parts = manifest["data"]["examples"]
    assert (recording_file.default_path().name, 64) == (source["file"], len(source["sha256"]))
    assert source["examples"] == len(label(rows(whole)))
    assert 10 >= source["examples"] - sum(parts.values()) > 0  # what lies within ten seconds of a border
    assert len(manifest["search"]) >= 2
    assert manifest["search"] == sorted(manifest["search"], key=lambda found: found["validation_mse"])
    assert {"no_change", "last_direction", "majority_direction"} == set(manifest["metrics"]["baselines"])
    assert manifest["gate"]["passed"] is True
    assert str(parts["test"]) in manifest["remark"]
    assert "no skill" in manifest["remark"]
    assert 0 < manifest["residual_std"] < 0.01


def test_training_again_changes_nothing(trained: Path) -> None:
    """The same seed gives the same bytes: the registry stays as it is, to the last byte of its pointer."""
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}

    assert 0 == train(out=trained)

    assert before == {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}


def test_another_seed_gives_another_model(trained: Path) -> None:
    """It is stored beside the first one; without promotion the one in use stays."""
    before = ModelRegistry(trained).fingerprint()

    train(out=trained, seed=8, name="other", promote=False)

    assert before == ModelRegistry(trained).fingerprint()
    assert [path.parent.name for path in trained.glob("other/*/model.onnx")] != [
        path.parent.name for path in trained.glob("mlp/*/model.onnx")
    ]


def test_a_model_worse_than_the_one_in_use_is_not_promoted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The model in use predicts no change, which beats five minutes of learning: it stays, and the log says so."""
    promote(tmp_path, model(0.0), name="calm")

    assert 1 == train(out=tmp_path)

    assert "is not promoted" in caplog.text
    assert "calm@" in ModelRegistry(tmp_path).current().version
    [stored] = tmp_path.glob("mlp/*/manifest.json")
    assert json.loads(stored.read_text())["gate"]["passed"] is False


def test_two_recordings_of_frames_train_one_model(tmp_path: Path, whole: Recording) -> None:
    """Captured frames serve as well as JSON; the second file is the same market a day later."""
    day_us = 86_400_000_000
    first, second = tmp_path / "first.frames.gz", tmp_path / "second.frames.gz"
    recording_file.save(whole, first)
    later = [(at_us + day_us, frame) for at_us, frame in whole.events]
    recording_file.save(replace(whole, snapshot_us=whole.snapshot_us + day_us, events=later), second)

    root = tmp_path / "models"
    train(recording=[first, second], out=root)

    [stored] = root.glob("mlp/*/manifest.json")
    data = json.loads(stored.read_text())["data"]
    assert ["first.frames.gz", "second.frames.gz"] == [source["file"] for source in data["sources"]]
    assert sum(data["examples"].values()) > 300


def test_a_bad_recording_is_one_clear_line(tmp_path: Path) -> None:
    """The command ends with an error code, names the file, and stores nothing."""
    path = tmp_path / "bad.gz"
    path.write_bytes(b"")

    ended = sheetanchor_train("--recording", str(path), "--out", str(tmp_path / "models"))

    assert 0 != ended.returncode
    assert f"sheetanchor train: {path}: the file is empty" == ended.stderr.splitlines()[-1]
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"\x1f\x8bnot gzip", "cannot be read"), (gzip.compress(b"1723161253937085768 {}\n"), "line 1: field 'stream'")],
    ids=["no gzip", "no stream"],
)
def test_what_is_wrong_with_a_recording_is_named(content: bytes, expected: str, tmp_path: Path) -> None:
    """File, place in it, and what was expected."""
    path = tmp_path / "bad.gz"
    path.write_bytes(content)

    with pytest.raises(BadRecording, match=rf"bad\.gz: {expected}"):
        train(recording=[path], out=tmp_path / "models")


def test_too_short_a_recording_is_reported(tmp_path: Path, whole: Recording) -> None:
    """Half a minute gives rows, but no parts: one line says what is missing."""
    path = tmp_path / "short.frames"
    end_us = whole.snapshot_us + 30_000_000
    recording_file.save(replace(whole, events=[event for event in whole.events if event[0] < end_us]), path)

    with pytest.raises(BadSettings, match=r"recording: .* expected at least 2 examples"):
        train(recording=[path], out=tmp_path / "models")


def test_the_score_of_directions_leaves_flat_outcomes_out() -> None:
    """Where the price did not move there was no direction to be right about."""
    found = score(np.array([0.1, -0.1, 0.1, 0.1]), np.array([0.2, 0.2, 0.0, 0.3]))

    assert found["directional_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("good", [True, False])
@pytest.mark.parametrize("others", [True, False])
def test_a_broken_pointer_is_mended_by_a_promotion(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, good: bool, others: bool
) -> None:
    """As `model --use` does; but a model that did not pass the gate does not replace those that did."""
    shipped = ModelRegistry(trained).current()
    root = tmp_path / "models"
    if others:
        promote(root, model(1e-5))
    root.mkdir(exist_ok=True)
    (root / "current.json").write_text("[" * 100_000)
    settings = TrainSettings(out=root)

    code = _store(settings, shipped.onnx, content_of(shipped), Gate(sound=True, good=good, findings={}))

    if good or not others:
        assert (0, shipped.version) == (code, ModelRegistry(root).current().version)
    else:
        assert (1, "test@") == (code, ModelRegistry(root).fallbacks()[-1].version[:5])
        assert "is not promoted: it did not pass the gate" in caplog.text
    assert "pointer is damaged and counts as missing" in caplog.text
