"""`sheetanchor model` as a quant uses it: bring a model, put it in use, go back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sheetanchor.errors import BadModel, BadSettings
from sheetanchor.ml.model_command import add, listing, run, use
from sheetanchor.ml.registry import ModelRegistry, version_of
from sheetanchor.runtime.settings import ModelSettings
from support.onnx_models import manifest, model, promote, put


def bring(folder: Path, onnx_bytes: bytes, **changes: Any) -> Path:
    """Lay out a model as a user provides it, without a hash."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(onnx_bytes)
    (folder / "manifest.json").write_text(json.dumps(manifest(**changes)))
    return folder


def sheetanchor_model(root: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sheetanchor", "model", "--models", str(root), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_a_model_is_brought_put_in_use_and_taken_back(tmp_path: Path) -> None:
    """Three commands; each prints the registry as it is then, the model in use first."""
    root = tmp_path / "models"
    old = promote(root, model(1e-5)).current
    assert old is not None
    folder = bring(tmp_path / "mine", model(2e-5), name="mine", baseline_accuracy=0.51)

    added = sheetanchor_model(root, "--add", str(folder))
    assert (0, "test@") == (added.returncode, added.stdout[:5])
    mine = next(line for line in added.stdout.splitlines() if line.startswith("mine@"))
    assert "stored     BTCUSDT, 2 features, accuracy 0.51 in training" in mine

    used = sheetanchor_model(root, "--use", mine.split()[0])
    assert (0, "mine@") == (used.returncode, used.stdout[:5])
    assert "in use" in used.stdout.splitlines()[0]

    back = sheetanchor_model(root, "--roll-back")
    assert 0 == back.returncode
    assert version_of(*old) == back.stdout.split()[0] == ModelRegistry(root).current().version


def test_what_cannot_serve_is_one_clear_line(tmp_path: Path) -> None:
    """A model of the wrong shape ends the command with 1; the one in use stays."""
    root = tmp_path / "models"
    promote(root, model(1e-5))
    before = ModelRegistry(root).fingerprint()
    folder = bring(tmp_path / "mine", model(features=3))

    ended = sheetanchor_model(root, "--add", str(folder))

    assert (1, "") == (ended.returncode, ended.stdout)
    last = ended.stderr.splitlines()[-1]
    assert "model.onnx: input x: expected tensor(float) of shape [batch, 2]" in last
    assert before == ModelRegistry(root).fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("manifest.json", "{", "manifest.json: expected JSON"),
        ("manifest.json", "[]", "manifest.json: expected a JSON object, found list"),
        ("manifest.json", None, "manifest.json: cannot be read: No such file"),
        ("model.onnx", None, "model.onnx: cannot be read: No such file"),
    ],
)
def test_what_is_brought_is_checked(name: str, content: str | None, expected: str, tmp_path: Path) -> None:
    """The error names the file of the person who brings it."""
    folder = bring(tmp_path / "mine", model())
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)

    with pytest.raises(BadModel, match=expected) as caught:
        add(ModelRegistry(tmp_path / "models"), folder)
    assert str(folder) in str(caught.value)


def test_a_model_that_fails_its_test_is_not_put_in_use(tmp_path: Path) -> None:
    """Using a model checks it again: its files may have been stored by another program."""
    promote(tmp_path, model(1e-5))
    bad = put(tmp_path, model(infinite_at=0.0))
    registry = ModelRegistry(tmp_path)
    before = registry.fingerprint()

    with pytest.raises(BadModel, match="expected a finite output"):
        use(registry, version_of(bad.name, bad.sha256))
    assert before == registry.fingerprint()


def test_a_listing_names_what_cannot_be_used(tmp_path: Path) -> None:
    """A damaged model is listed with its fault, and so is a pointer that cannot be read."""
    promote(tmp_path, model(1e-5))
    next(tmp_path.glob("*/*/model.onnx")).write_bytes(b"")
    (tmp_path / "current.json").write_text("{")

    first, second = listing(ModelRegistry(tmp_path))

    assert "current.json: expected JSON" in first
    assert "CANNOT BE USED" in second


async def test_an_empty_registry_is_listed_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that is not there holds no models."""
    assert 0 == await run(ModelSettings(models=tmp_path / "none"))

    assert "none: no models" in capsys.readouterr().out


async def test_using_and_rolling_back_at_once_is_refused(tmp_path: Path) -> None:
    """One of them, please."""
    with pytest.raises(BadSettings, match="use and roll_back"):
        await run(ModelSettings(models=tmp_path, use="a@1234", roll_back=True))


def test_a_broken_pointer_is_mended_by_using_a_model(tmp_path: Path) -> None:
    """The way out of a damaged registry is the ordinary command."""
    added = put(tmp_path, model(1e-5))
    (tmp_path / "current.json").write_text("{")
    registry = ModelRegistry(tmp_path)

    use(registry, version_of(added.name, added.sha256))

    assert added.sha256 == registry.current().manifest.sha256
