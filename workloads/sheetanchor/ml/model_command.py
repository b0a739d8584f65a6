"""`sheetanchor model`: list a model registry, add a model if it is sound and fast enough, promote one, roll back.

A running replica uses the new model within about two seconds; nothing has to be restarted.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Final

import numpy as np

from sheetanchor.errors import BadModel, BadSettings
from sheetanchor.ml.onnx_model import OnnxModel
from sheetanchor.ml.registry import MODEL_BYTES_MAX, Manifest, ModelRegistry, Pointer, read_bytes, read_json, version_of
from sheetanchor.runtime.settings import ModelSettings

log = logging.getLogger(__name__)

LATENCY_MAX_S: Final = 0.020
"""Mean time of a run: a fifth of the prediction's budget."""

LATENCY_RUNS: Final = 50


def check(registry: ModelRegistry, manifest: Manifest) -> None:
    """Check that a stored model can serve.

    Raises:
        BadModel: It does not load, fails on extreme inputs, or is too slow.
    """
    model = OnnxModel(registry.record(manifest.name, manifest.sha256))
    model.test()
    zeros = np.zeros(len(manifest.features), dtype=np.float32)
    started = time.perf_counter()
    for _ in range(LATENCY_RUNS):
        model.run(zeros)
    mean_s = (time.perf_counter() - started) / LATENCY_RUNS
    if mean_s > LATENCY_MAX_S:
        raise BadModel(
            f"{model.version}: expected a mean time of at most {LATENCY_MAX_S * 1000:.0f} ms, "
            f"found {mean_s * 1000:.1f} ms"
        )


def add(registry: ModelRegistry, folder: Path) -> str:
    """Add `model.onnx` and `manifest.json` of a folder to a registry.

    Returns:
        The version, for instance `mlp@1a2b3c4d`.

    Raises:
        BadModel: If the files cannot be used.
    """
    content = read_json(folder / "manifest.json")
    if not isinstance(content, dict):
        raise BadModel(f"{folder / 'manifest.json'}: expected a JSON object, found {type(content).__name__}")
    added = registry.add(read_bytes(folder / "model.onnx", MODEL_BYTES_MAX), content)
    version = version_of(added.name, added.sha256)
    check(registry, added)
    return version


def use(registry: ModelRegistry, version: str) -> Pointer:
    """Make a stored model the one in use, after the same checks.

    Raises:
        BadModel: If it cannot serve.
        ModelConflict: The model in use was changed meanwhile.
    """
    seen = registry.pointer_or_none().number
    name, sha256 = registry.find(version)
    check(registry, registry.record(name, sha256).manifest)
    return registry.promote(name, sha256, seen)


def listing(registry: ModelRegistry) -> list[str]:
    """Describe every stored model in one line: the current one, its predecessors, then the rest."""
    try:
        pointer = registry.pointer()
    except BadModel as error:
        return [str(error), *_lines(registry, Pointer())]
    return _lines(registry, pointer)


def _lines(registry: ModelRegistry, pointer: Pointer) -> list[str]:
    stored = sorted((path.parent.parent.name, path.parent.name) for path in registry.root.glob("*/*/manifest.json"))
    ranks = {entry: rank for rank, entry in enumerate(filter(None, (pointer.current, *pointer.previous)))}
    lines = []
    for entry in sorted(stored, key=lambda entry: (ranks.get(entry, len(ranks)), entry)):
        place = ranks.get(entry)
        state = "in use" if place == 0 else "before it" if place is not None else "stored"
        try:
            manifest = registry.record(*entry).manifest
        except BadModel as error:
            lines.append(f"{version_of(*entry):30} {state:10} CANNOT BE USED: {error}")
            continue
        lines.append(f"{version_of(*entry):30} {state:10} {_about(manifest)}")
    return lines or [f"{registry.root}: no models"]


def _about(manifest: Manifest) -> str:
    accuracy = manifest.baseline_accuracy
    known = "accuracy unknown" if accuracy is None else f"accuracy {accuracy:.2f} in training"
    return f"{','.join(manifest.symbols)}, {len(manifest.features)} features, {known}"


async def run(settings: ModelSettings) -> int:
    """Carry out the command and print the registry.

    Returns:
        0.

    Raises:
        BadModel: If a model cannot be used.
        BadSettings: If several commands are given at once.
        ModelConflict: The model in use was changed meanwhile.
    """
    if settings.use and settings.roll_back:
        raise BadSettings("use and roll_back: expected only one of them")
    registry = ModelRegistry(settings.models)
    if settings.add is not None:
        log.info("added %s", add(registry, settings.add))
    if settings.use:
        use(registry, settings.use)
    if settings.roll_back:
        registry.roll_back(registry.pointer().number)
    print("\n".join(listing(registry)))
    return 0
