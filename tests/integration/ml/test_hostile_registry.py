"""Registries that hold anything at all: each is one clear error or a model, never the end of who reads it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import RedisServer
from sheetanchor.errors import BadModel
from sheetanchor.infer.model_fallback import ModelCache, ModelFallbackChain
from sheetanchor.infer.prediction import SlotState
from sheetanchor.ml.onnx_model import OnnxModel
from sheetanchor.ml.registry import ModelRegistry, parse_manifest, read_json
from support.inference_parts import replicas
from support.onnx_models import FEATURES, manifest, model, promote

NOW = 1_700_000_000_000_000
STATE = SlotState(
    NOW, 1, True, "", "", NOW, {"ob": {"best_bid": "99", "best_ask": "101"}, "feat": dict.fromkeys(FEATURES, "0")}
)
NESTED = "[" * 200_000
MESSAGE_MAX = 1_500
"""A message is for people: the log holds it every half minute, and a prediction's reason part of it."""


def nested(depth: int) -> Any:
    """A list in a list in a list …"""
    made: Any = []
    for _ in range(depth):
        made = [made]
    return made


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def of_another_kind(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


SPOILT: dict[str, Callable[[Path], object]] = {
    "empty": text(""),
    "nested lists": text(NESTED),
    "nested objects": text('{"a":' * 200_000),
    "nested and closed": text('{"version": 1, "name": ' + "[" * 900 + "]" * 900 + "}"),
    "a number of 5,000 digits": text('{"version": ' + "9" * 5_000 + "}"),
    "a number that is no float": text('{"version": 1e999}'),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00" * 100),
    "2 MB": text(" " * 2_000_000),
    "a pipe": pipe,
    "a folder": folder,
    "a link to itself": link_to_itself,
    "a device without end": of_another_kind,
    "a list": text("[]"),
    "null": text("null"),
}


@pytest.mark.parametrize("name", ["current.json", "manifest.json", "model.onnx"])
@pytest.mark.parametrize("spoilt", SPOILT)
async def test_a_spoilt_file_costs_its_model_and_nothing_else(tmp_path: Path, name: str, spoilt: str) -> None:
    """Whichever file it is: the model before it serves, or the trend, and the message is one short line."""
    promote(tmp_path, model(1e-5))
    promote(tmp_path, model(2e-5))
    registry = ModelRegistry(tmp_path)
    current, sha256 = registry.in_use()
    SPOILT[spoilt](tmp_path / name if name == "current.json" else tmp_path / current / sha256 / name)
    chain = ModelFallbackChain(registry, "BTCUSDT", ModelCache(registry))

    await chain.start()
    answer = await chain.answer(STATE, 0.0001, 0.6)
    await chain.refresh()
    await chain.close()

    assert answer.mode in ("fallback", "linear_trend")
    assert chain.problem
    assert len(chain.problem) <= MESSAGE_MAX
    assert "\n" not in chain.problem


@pytest.mark.parametrize("spoilt", ["nested lists", "nested objects", "a pipe"])
def test_a_replica_goes_on_with_a_spoilt_pointer(redis_server: RedisServer, tmp_path: Path, spoilt: str) -> None:
    """The process serves slot after slot by a model that has passed its gate."""
    promote(tmp_path / "models", model(1e-5))
    SPOILT[spoilt](tmp_path / "models" / "current.json")

    with replicas(redis_server.url, tmp_path / "models", tmp_path, "a") as [replica]:
        slot = replica.wait_for(lambda found: found["committed"], "a committed prediction")["slot"]
        replica.wait_for(lambda found: found["slot"] > slot, "the next one")

        assert replica.get("/health")[1]["checks"]["models"]["symbols"]["BTCUSDT"]["mode"] == "fallback"


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.just(10**400)
    | st.just("x" * 5_000),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
) | st.just(nested(300))


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(st.sampled_from([*manifest(), "sha256", "baseline_accuracy", "gate"]), JSON, max_size=3))
def test_any_manifest_is_sound_or_refused_by_name(changes: dict[str, Any]) -> None:
    """A field may hold anything that JSON can: one error names it, in a line of bounded length."""
    content = {**manifest(sha256="0" * 64), **changes}

    try:
        parse_manifest(Path("manifest.json"), content)
    except BadModel as error:
        said = str(error)
    else:
        said = ""

    assert len(said) <= MESSAGE_MAX
    assert said == "" or any(f"field {name}" in said for name in changes)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(st.sampled_from('[]{}":,0e-9 nul'), max_size=200).map(str.encode))
def test_any_pointer_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """Bytes of any kind give a pointer or one kind of error; so do all the commands that look at it."""
    root = tmp_path_factory.mktemp("registry")
    (root / "current.json").write_bytes(content)
    registry = ModelRegistry(root)

    registry.fingerprint()
    registry.fallbacks()
    registry.pointer_or_none()
    for look in (registry.pointer, registry.current, lambda: registry.find("test@0000"), lambda: registry.roll_back(1)):
        with contextlib.suppress(BadModel):
            look()


def test_nesting_is_reported(tmp_path: Path) -> None:
    """The message says what is wrong with the file."""
    (tmp_path / "manifest.json").write_text(NESTED)

    with pytest.raises(BadModel, match=r"manifest\.json: expected JSON that is not nested so deeply"):
        read_json(tmp_path / "manifest.json")


def test_weights_beside_the_model_are_refused(tmp_path: Path) -> None:
    """By its path within the folder, a way out of it, or an absolute one: nothing but the model's own file is read."""
    for number, location in enumerate(("weights.bin", "../weights.bin", "/etc/hostname")):
        made = onnx.load_from_string(model())
        [tensor] = [one for one in made.graph.initializer if one.name == "weights"]
        onnx.external_data_helper.set_external_data(tensor, location)
        tensor.ClearField("raw_data")
        root = tmp_path / str(number)
        promote(root, made.SerializeToString())

        with pytest.raises(BadModel, match="tensor 'weights': expected all tensors within the file"):
            OnnxModel(ModelRegistry(root).current())


@pytest.mark.parametrize(
    ("change", "decisive"),
    [
        (
            lambda made: setattr(made, "ir_version", 99),
            r"Unsupported model IR version: 99, max supported IR version: \d+",
        ),
        (lambda made: setattr(made.opset_import[0], "version", 99), r"domain ai\.onnx is till opset \d+"),
        (lambda made: setattr(made.graph.node[0], "op_type", "NoSuchOperator"), "NoSuchOperator"),
    ],
    ids=["IR version", "opset", "operator"],
)
def test_what_the_runtime_does_not_know_is_reported_to_the_end(
    tmp_path: Path, change: Callable[[Any], None], decisive: str
) -> None:
    """The end of the library's message is the decisive part."""
    made = onnx.load_from_string(model())
    change(made)
    promote(tmp_path, made.SerializeToString())

    with pytest.raises(BadModel, match=decisive) as caught:
        OnnxModel(ModelRegistry(tmp_path).current())

    assert len(str(caught.value)) <= MESSAGE_MAX
