"""The model registry on a real file system: what is refused, what stays, and who wins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sheetanchor.errors import BadModel, ModelConflict
from sheetanchor.ml.onnx_model import OnnxModel
from sheetanchor.ml.registry import PREVIOUS_MAX, ModelRecord, ModelRegistry, default_root, parse_manifest
from support.onnx_models import FEATURES, model, promote, put


def _answer(record: ModelRecord) -> float:
    return OnnxModel(record).run(np.zeros(len(FEATURES), dtype=np.float32))


async def test_the_shipped_model_is_sound() -> None:
    """It is small, its files agree with its manifest, it loads, passes its test, and says how little it proves."""
    record = await ModelRegistry(default_root()).get_current_model()

    loaded = OnnxModel(record)
    loaded.test()

    assert record.version == loaded.version
    assert len(record.onnx) < 50_000
    assert record.manifest.symbols == ("BTCUSDT",)
    assert "no skill" in record.manifest.content["remark"]


async def test_a_promoted_model_is_current_and_the_one_before_it_the_first_fallback(tmp_path: Path) -> None:
    """Fallbacks are newest first, without the current one, and each has a version."""
    for value in (1e-5, 2e-5, 3e-5):
        promote(tmp_path, model(value))
    registry = ModelRegistry(tmp_path)

    current = await registry.get_current_model()
    fallbacks = await registry.get_fallback_models()

    values = [_answer(record) for record in (current, *fallbacks)]
    assert [3e-5, 2e-5, 1e-5] == pytest.approx(values)
    assert len({record.version for record in (current, *fallbacks)}) == 3
    assert all(record.version.startswith("test@") for record in fallbacks)


def test_an_empty_registry_says_so(tmp_path: Path) -> None:
    """There is no model in use and nothing to fall back on; the folder need not exist."""
    registry = ModelRegistry(tmp_path / "none")

    with pytest.raises(BadModel, match=r"current\.json: no model is in use"):
        registry.current()
    assert [] == registry.fallbacks()
    assert b"" == registry.fingerprint()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"name": "../up"}, r"field name: expected .*, found '\.\./up'"),
        ({"name": None}, "field name: expected .*, found None"),
        ({"features": []}, r"field features: expected a list of at least one name, found \[\]"),
        ({"features": ["feat.ret_1s", "feat.ret_1s"]}, "field features: expected different names"),
        ({"features": ["feat.magic"]}, "field features: expected names of known features, found 'feat.magic'"),
        ({"features": "feat.ret_1s"}, "field features: expected a list"),
        ({"symbols": ["btc"]}, "field symbols: expected trading pairs, found 'btc'"),
        ({"symbols": None}, "field symbols: expected a list"),
        ({"horizon_ms": 60_000}, "field horizon_ms: expected 10000, found 60000"),
        ({"horizon_ms": None}, "field horizon_ms: expected 10000, found None"),
        ({"opset": 3}, "field opset: expected 9 to 29, found 3"),
        ({"opset": "17"}, "field opset: expected 9 to 29, found '17'"),
        ({"residual_std": -1.0}, r"field residual_std: expected a number from 0 to inf, found -1\.0"),
        ({"residual_std": True}, "field residual_std: expected a number"),
        ({"baseline_accuracy": 55}, "field baseline_accuracy: expected a number from 0 to 1, found 55"),
    ],
)
def test_a_manifest_error_names_the_field(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    """A wrong manifest is refused before anything is written; one line says field, expected and found."""
    with pytest.raises(BadModel, match=expected):
        put(tmp_path, model(), **changes)
    assert [] == list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["[]", "1", "null"])
def test_a_manifest_has_to_be_an_object(content: str) -> None:
    """Any other JSON is named for what it is."""
    with pytest.raises(BadModel, match="expected a JSON object"):
        parse_manifest(Path("manifest.json"), json.loads(content))


@pytest.mark.parametrize(
    ("onnx_bytes", "expected"),
    [
        (b"no model at all", "cannot be loaded"),
        (model(features=3), r"input x: expected tensor\(float\) of shape \[batch, 2\] .*, found .*3"),
        (model(element=11), r"input x: expected tensor\(float\) .* found tensor\(double\)"),
        (model(output_width=2), r"output y: expected tensor\(float\) of shape \[batch, 1\], found .*2"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(onnx_bytes: bytes, expected: str, tmp_path: Path) -> None:
    """The error names the file, what was expected and what was found."""
    added = put(tmp_path, onnx_bytes)
    record = ModelRegistry(tmp_path).record(added.name, added.sha256)

    with pytest.raises(BadModel, match=expected) as caught:
        OnnxModel(record)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_survive_zeros_is_refused(tmp_path: Path) -> None:
    """A window without trades is all zeros; the answer has to be a number."""
    promote(tmp_path, model(infinite_at=0.0))
    loaded = OnnxModel(ModelRegistry(tmp_path).current())

    with pytest.raises(BadModel, match=r"expected a finite output for inputs of 0, found (inf|nan)"):
        loaded.test()


def test_a_model_whose_bytes_changed_is_refused(tmp_path: Path) -> None:
    """A flipped bit is found by the hash before the runtime sees the file."""
    promote(tmp_path, model())
    path = next(tmp_path.glob("*/*/model.onnx"))
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)

    with pytest.raises(BadModel, match=r"model\.onnx: sha256: expected [0-9a-f]{64}, found [0-9a-f]{64}"):
        ModelRegistry(tmp_path).current()


@pytest.mark.parametrize("missing", ["model.onnx", "manifest.json"])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    """Half a model is no model."""
    promote(tmp_path, model())
    next(tmp_path.glob(f"*/*/{missing}")).unlink()

    with pytest.raises(BadModel, match=rf"{missing}: cannot be read: No such file"):
        ModelRegistry(tmp_path).current()


def test_a_corrupt_model_never_becomes_current(tmp_path: Path) -> None:
    """Promotion checks the files first; the last known good one stays, and so does the pointer's content."""
    promote(tmp_path, model(1e-5))
    registry = ModelRegistry(tmp_path)
    before = registry.fingerprint()
    bad = put(tmp_path, model(2e-5))
    (tmp_path / bad.name / bad.sha256 / "model.onnx").write_bytes(b"")

    with pytest.raises(BadModel, match="sha256"):
        registry.promote(bad.name, bad.sha256, registry.pointer().number)
    assert before == registry.fingerprint()
    assert _answer(registry.current()) == pytest.approx(1e-5)


def test_unsound_fallbacks_are_left_out(tmp_path: Path) -> None:
    """A damaged model in the middle of the chain does not end it."""
    for value in (1e-5, 2e-5, 3e-5):
        promote(tmp_path, model(value))
    registry = ModelRegistry(tmp_path)
    newest, oldest = registry.fallbacks()
    (newest.path / "model.onnx").write_bytes(b"")

    assert [oldest.version] == [record.version for record in registry.fallbacks()]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 0}', '{"version": 1, "name": "x"}'])
def test_without_a_pointer_any_model_that_passed_its_gate_will_do(content: str, tmp_path: Path) -> None:
    """A broken pointer is an error, but the models are still there: newest first, those that never passed left out."""
    put(tmp_path, model(1e-5), created_at="2026-01-01T00:00:00+00:00")
    put(tmp_path, model(2e-5), created_at="2026-01-02T00:00:00+00:00")
    put(tmp_path, model(3e-5), created_at="2026-01-03T00:00:00+00:00", gate={"passed": False})
    (tmp_path / "current.json").write_text(content)
    registry = ModelRegistry(tmp_path)

    with pytest.raises(BadModel, match=r"current\.json"):
        registry.current()
    found = [_answer(record) for record in registry.fallbacks()]

    assert [2e-5, 1e-5] == pytest.approx(found)


def test_a_promotion_mends_a_broken_pointer(tmp_path: Path) -> None:
    """If there is no usable pointer, a promotion may write the first one."""
    added = put(tmp_path, model())
    (tmp_path / "current.json").write_text("{")

    ModelRegistry(tmp_path).promote(added.name, added.sha256, 0)

    assert added.sha256 == ModelRegistry(tmp_path).current().manifest.sha256


def test_of_two_promotions_on_the_same_ground_one_fails(tmp_path: Path) -> None:
    """The second one has not seen what the first one did: no update is lost."""
    promote(tmp_path, model(1e-5))
    registry = ModelRegistry(tmp_path)
    seen = registry.pointer().number
    first, second = put(tmp_path, model(2e-5)), put(tmp_path, model(3e-5))

    registry.promote(first.name, first.sha256, seen)
    with pytest.raises(ModelConflict, match=rf"current\.json: expected version {seen}, found {seen + 1}"):
        registry.promote(second.name, second.sha256, seen)

    assert first.sha256 == registry.current().manifest.sha256


def test_of_many_processes_that_promote_at_once_exactly_one_wins(tmp_path: Path) -> None:
    """Four processes promote from the same version at the same moment."""
    promote(tmp_path, model(1e-5))
    seen = ModelRegistry(tmp_path).pointer().number
    added = [put(tmp_path, model(value)) for value in (2e-5, 3e-5, 4e-5, 5e-5)]
    program = (
        "import sys, pathlib\n"
        "from sheetanchor.errors import ModelConflict\n"
        "from sheetanchor.ml.registry import ModelRegistry\n"
        "registry = ModelRegistry(pathlib.Path(sys.argv[1]))\n"
        "sys.stdin.readline()\n"
        "try:\n    registry.promote(sys.argv[2], sys.argv[3], int(sys.argv[4]))\n"
        "except ModelConflict:\n    sys.exit(7)\n"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path), one.name, one.sha256, str(seen)], stdin=subprocess.PIPE
        )
        for one in added
    ]

    for child in children:
        assert child.stdin
        child.stdin.write(b"go\n")
        child.stdin.close()
    codes = sorted(child.wait(60) for child in children)

    assert [0, 7, 7, 7] == codes
    assert seen + 1 == ModelRegistry(tmp_path).pointer().number


def test_rolling_back_leaves_the_bad_model_out_of_the_chain(tmp_path: Path) -> None:
    """The one before is in use again; what was left is neither current nor a fallback, and can be promoted again."""
    for value in (1e-5, 2e-5, 3e-5):
        promote(tmp_path, model(value))
    registry = ModelRegistry(tmp_path)
    bad = registry.current().version
    good, oldest = (record.version for record in registry.fallbacks())

    registry.roll_back(registry.pointer().number)

    assert good == registry.current().version
    assert [oldest] == [record.version for record in registry.fallbacks()]
    pointer = registry.promote(*registry.find(bad), registry.pointer().number)
    assert (5, bad) == (pointer.number, registry.current().version)


def test_there_is_no_way_back_from_the_first_model(tmp_path: Path) -> None:
    """One line says so and nothing changes."""
    promote(tmp_path, model())
    registry = ModelRegistry(tmp_path)

    with pytest.raises(BadModel, match="no earlier model to roll back to"):
        registry.roll_back(registry.pointer().number)
    assert registry.pointer().number == 1


@pytest.mark.parametrize("version", ["test", "test@", "test@zz", "other@1234", "../x@1234", "test@*"])
def test_a_version_has_to_name_one_model(version: str, tmp_path: Path) -> None:
    """Neither patterns nor paths are taken for a version."""
    put(tmp_path, model())

    with pytest.raises(BadModel, match="expected NAME@HASH of one model"):
        ModelRegistry(tmp_path).find(version)


def test_adding_the_same_model_again_changes_nothing(tmp_path: Path) -> None:
    """A folder is immutable once it is there: its first manifest stays."""
    first = put(tmp_path, model(), created_at="2026-01-01T00:00:00+00:00")
    again = put(tmp_path, model(), created_at="2026-02-02T00:00:00+00:00")

    assert first == again
    assert 2 == len(list(tmp_path.glob("*/*/*")))


def test_the_chain_is_bounded(tmp_path: Path) -> None:
    """However often models change, no more are kept as fallbacks than can be tried in time."""
    for step in range(PREVIOUS_MAX + 3):
        promote(tmp_path, model(1e-6 * (step + 1)))

    assert PREVIOUS_MAX == len(ModelRegistry(tmp_path).fallbacks())


def test_promoting_what_is_current_keeps_the_chain(tmp_path: Path) -> None:
    """Nothing changes: a model is never its own fallback, and the pointer keeps its number."""
    promote(tmp_path, model(1e-5))
    promote(tmp_path, model(2e-5))
    promote(tmp_path, model(2e-5))
    registry = ModelRegistry(tmp_path)

    assert 2 == registry.pointer().number
    assert registry.current().version not in [record.version for record in registry.fallbacks()]
    assert 1 == len(registry.fallbacks())


def test_an_interrupted_write_leaves_no_model(tmp_path: Path) -> None:
    """The manifest comes last: a folder that has only the model's bytes is not a model, and is completed later."""
    sha256 = put(tmp_path / "elsewhere", model()).sha256
    folder = tmp_path / "test" / sha256
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model()[:10])

    with pytest.raises(BadModel, match=r"manifest\.json: cannot be read"):
        ModelRegistry(tmp_path).record("test", sha256)
    put(tmp_path, model())
    assert sha256 == ModelRegistry(tmp_path).record("test", sha256).manifest.sha256


def _single(folder: Path) -> ModelRegistry:
    """Lay out the shipped model as a ConfigMap's mount does: links to a hidden folder that is replaced as a whole."""
    shipped = ModelRegistry(default_root()).current().path
    hidden = folder / "..2026"
    hidden.mkdir(parents=True)
    for name in ("model.onnx", "manifest.json"):
        (hidden / name).write_bytes((shipped / name).read_bytes())
        (folder / name).symlink_to(f"..2026/{name}")
    return ModelRegistry(folder)


def test_a_folder_that_is_a_model_is_a_registry_of_one(tmp_path: Path) -> None:
    """A mounted ConfigMap with both files serves its model; there is nothing to fall back on."""
    registry = _single(tmp_path)

    record = registry.current()

    assert ModelRegistry(default_root()).current().version == record.version
    assert [] == registry.fallbacks()
    assert (tmp_path / "manifest.json").read_bytes() == registry.fingerprint()


def test_a_registry_of_one_is_checked_like_any_other(tmp_path: Path) -> None:
    """Bytes that are not the manifest's are refused, with the file's name."""
    registry = _single(tmp_path)

    (tmp_path / "..2026" / "model.onnx").write_bytes(b"something else")

    with pytest.raises(BadModel, match=r"model\.onnx: sha256: expected"):
        registry.current()


def test_nothing_is_added_to_a_registry_of_one(tmp_path: Path) -> None:
    """Adding, promoting and rolling back are refused; the folder stays as it was."""
    registry = _single(tmp_path)
    record = registry.current()
    before = sorted(path.name for path in tmp_path.iterdir())

    with pytest.raises(BadModel, match="is itself a single model"):
        registry.add(record.onnx, record.manifest.content)
    with pytest.raises(BadModel, match="is itself a single model"):
        registry.promote(record.manifest.name, record.manifest.sha256, 1)
    with pytest.raises(BadModel, match="is itself a single model"):
        registry.roll_back(1)

    assert before == sorted(path.name for path in tmp_path.iterdir())
