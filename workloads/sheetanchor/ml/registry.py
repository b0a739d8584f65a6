"""The model registry: a folder of immutable models and one pointer to the model in use.

    <root>/current.json                     which model is in use, and which ones were before it
    <root>/<name>/<sha256>/model.onnx       the model; the folder is named after its content
    <root>/<name>/<sha256>/manifest.json    its features, and what is known about it

A folder that itself holds model.onnx and manifest.json, and no current.json, is a registry of that one model: what a
cluster mounts from a ConfigMap. Such a registry is read only.

A model's folder never changes once it exists. The pointer is replaced as a whole, and only if it still has the version
that the caller has seen, so that of two promotions at once one fails and none is lost silently. No model is run here.

One module, since folder layout, pointer and the checks of both are one format: a change affects all three.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import reprlib
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sheetanchor.contract import HORIZON_MS, SYMBOL_PATTERN
from sheetanchor.errors import BadModel, ModelConflict, message_of
from sheetanchor.ml.feature_vector import FEATURES

log = logging.getLogger(__name__)

PREVIOUS_MAX: Final = 10
"""Models to fall back on; more could not be tried within a slot."""

MODEL_BYTES_MAX: Final = 256 * 1024 * 1024
MANIFEST_BYTES_MAX: Final = 1024 * 1024
OPSETS: Final = range(9, 30)
"""Opsets of the default ONNX operators: below, type rules differ; the runtime itself refuses newer ones."""

FLOAT_MAX: Final = sys.float_info.max
"""Largest number of a pointer; integers of JSON have no limit."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_SHORT: Final = 8

_REPR: Final = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring = 2, 80


def _shown(value: object) -> str:
    """Show a value in a message: a manifest may hold anything, so it is shortened."""
    return _REPR.repr(value)


def default_root() -> Path:
    """Give the registry that ships with the package."""
    return Path(__file__).parents[1] / "models"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The features of a model, and what is known about it.

    Attributes:
        features: Names of its inputs in order, see `sheetanchor.ml.feature_vector.FEATURES`.
        symbols: Trading pairs it was trained on.
        residual_std: Standard deviation of its errors on data it was not fitted to; 0 if unknown.
        baseline_accuracy: Directional accuracy it reached on such data; None if unknown.
        content: The whole file.
    """

    name: str
    sha256: str
    features: tuple[str, ...]
    symbols: tuple[str, ...]
    residual_std: float
    baseline_accuracy: float | None
    content: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model whose files agree with its manifest.

    Attributes:
        onnx: The model's bytes, whose SHA-256 is the manifest's.
    """

    manifest: Manifest
    onnx: bytes
    path: Path

    @property
    def version(self) -> str:
        """Name and short hash, for instance `mlp@1a2b3c4d`."""
        return version_of(self.manifest.name, self.manifest.sha256)


@dataclass(frozen=True, slots=True)
class Pointer:
    """The content of `current.json`.

    Attributes:
        number: Rises by one with each change; 0 when there is no pointer yet.
        current: `(name, sha256)`; None when there is no pointer yet.
        previous: What was current before, newest first.
    """

    number: int = 0
    current: tuple[str, str] | None = None
    previous: tuple[tuple[str, str], ...] = ()


def version_of(name: str, sha256: str) -> str:
    """Give a model's short name."""
    return f"{name}@{sha256[:_SHORT]}"


def parse_manifest(path: Path, content: Any) -> Manifest:
    """Check a manifest's fields.

    Args:
        path: Its path, for messages.
        content: The parsed JSON.

    Raises:
        BadModel: Names the file, the field, what was expected and what was found.
    """
    if not isinstance(content, dict):
        raise BadModel(f"{path}: expected a JSON object, found {type(content).__name__}")
    name = _text(path, content, "name", _NAME)
    sha256 = _text(path, content, "sha256", _SHA256)
    features, symbols = _texts(path, content, "features"), _texts(path, content, "symbols")
    for feature in features:
        if feature not in FEATURES:
            raise BadModel(f"{path}: field features: expected names of known features, found {_shown(feature)}")
    for symbol in symbols:
        if not SYMBOL_PATTERN.fullmatch(symbol):
            raise BadModel(f"{path}: field symbols: expected trading pairs, found {_shown(symbol)}")
    if content.get("horizon_ms") != HORIZON_MS:
        raise BadModel(f"{path}: field horizon_ms: expected {HORIZON_MS}, found {_shown(content.get('horizon_ms'))}")
    opset = content.get("opset")
    if opset is not None and (not isinstance(opset, int) or opset not in OPSETS):
        raise BadModel(f"{path}: field opset: expected {OPSETS.start} to {OPSETS.stop - 1}, found {_shown(opset)}")
    residual_std = _share(path, content, "residual_std", math.inf)
    baseline = _share(path, content, "baseline_accuracy", 1.0)
    return Manifest(name, sha256, features, symbols, residual_std or 0.0, baseline, content)


def _text(path: Path, content: Mapping[str, Any], field: str, pattern: re.Pattern[str]) -> str:
    value = content.get(field)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadModel(f"{path}: field {field}: expected {pattern.pattern}, found {_shown(value)}")
    return value


def _texts(path: Path, content: Mapping[str, Any], field: str) -> tuple[str, ...]:
    values = content.get(field)
    if not isinstance(values, list) or not values or not all(isinstance(value, str) for value in values):
        raise BadModel(f"{path}: field {field}: expected a list of at least one name, found {_shown(values)}")
    if len(set(values)) != len(values):
        raise BadModel(f"{path}: field {field}: expected different names, found {_shown(values)}")
    return tuple(values)


def _share(path: Path, content: Mapping[str, Any], field: str, largest: float) -> float | None:
    value = content.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= min(largest, FLOAT_MAX):
        raise BadModel(f"{path}: field {field}: expected a number from 0 to {largest:g}, found {_shown(value)}")
    return float(value)


def read_bytes(path: Path, bytes_max: int) -> bytes:
    """Read a file of bounded size.

    Raises:
        BadModel: If it is no file, cannot be read or is too large.
    """
    try:
        # Opening a pipe would block until another process writes to it.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise BadModel(f"{path}: expected a file, found something else of this name")
            content = file.read(bytes_max + 1)
    except OSError as error:
        raise BadModel(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) > bytes_max:
        raise BadModel(f"{path}: expected at most {bytes_max} bytes, found more")
    return content


def read_json(path: Path) -> Any:
    """Read a JSON file of bounded size.

    Raises:
        BadModel: If it cannot be read or is no JSON.
    """
    try:
        return json.loads(read_bytes(path, MANIFEST_BYTES_MAX))
    except ValueError as error:
        raise BadModel(f"{path}: expected JSON: {message_of(error)}") from error
    except RecursionError as error:
        raise BadModel(f"{path}: expected JSON that is not nested so deeply") from error


def _exists(path: Path) -> bool:
    """Say whether a path exists; one that may not be inspected counts as existing, and reading it gives the error."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return False
    except OSError:
        return True
    return True


def _listed(folder: Path, pattern: str) -> list[Path]:
    """List the paths that match a pattern; none for a folder that cannot be read."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


class ModelRegistry:
    """Models in a folder.

    Args:
        root: The folder; it need not exist before the first model is added.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    async def get_current_model(self) -> ModelRecord:
        """Read the model in use and check its files.

        Raises:
            BadModel: There is none, or its files do not agree with its manifest.
        """
        return await asyncio.to_thread(self.current)

    async def get_fallback_models(self) -> list[ModelRecord]:
        """Read the models that were in use before, newest first; those with damaged files are left out."""
        return await asyncio.to_thread(self.fallbacks)

    @property
    def single(self) -> bool:
        """Whether the folder is itself the one model."""
        return _exists(self.root / "manifest.json") and not _exists(self.root / "current.json")

    def fingerprint(self) -> bytes:
        """Give bytes that change with the pointer; empty when there is none."""
        path = self.root / ("manifest.json" if self.single else "current.json")
        try:
            return read_bytes(path, MANIFEST_BYTES_MAX) if _exists(path) else b""
        except BadModel as error:
            return str(error).encode(errors="replace")

    def pointer(self) -> Pointer:
        """Read the pointer.

        Raises:
            BadModel: It exists and cannot be used.
        """
        if self.single:
            manifest = self._manifest(self.root)
            return Pointer(1, (manifest.name, manifest.sha256))
        path = self.root / "current.json"
        if not _exists(path):
            return Pointer()
        content = read_json(path)
        if not isinstance(content, dict):
            raise BadModel(f"{path}: expected a JSON object, found {type(content).__name__}")
        number, previous = content.get("version"), content.get("previous", [])
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise BadModel(f"{path}: field version: expected a number from 1, found {_shown(number)}")
        if not isinstance(previous, list):
            raise BadModel(f"{path}: field previous: expected a list, found {type(previous).__name__}")
        return Pointer(number, _entry(path, content), tuple(_entry(path, item) for item in previous[:PREVIOUS_MAX]))

    def pointer_or_none(self) -> Pointer:
        """Read the pointer; a damaged one counts as none, so that a promotion replaces it."""
        try:
            return self.pointer()
        except BadModel as error:
            log.warning("the registry's pointer is damaged and counts as missing, a promotion replaces it: %s", error)
            return Pointer()

    def current(self) -> ModelRecord:
        """Like `get_current_model`, but blocking."""
        return self.record(*self.in_use())

    def in_use(self) -> tuple[str, str]:
        """Name the model in use.

        Raises:
            BadModel: If there is none, or the pointer cannot be used.
        """
        pointer = self.pointer()
        if pointer.current is None:
            raise BadModel(f"{self.root / 'current.json'}: no model is in use: choose one with sheetanchor model --use")
        return pointer.current

    def earlier(self) -> list[tuple[str, str]]:
        """Name the models that were in use before, newest first; their files may be damaged."""
        try:
            return list(self.pointer().previous)
        except BadModel:
            # Without a pointer it is unknown which models were in use: any model that passed its gate may serve.
            return self._passed()[:PREVIOUS_MAX]

    def fallbacks(self) -> list[ModelRecord]:
        """Like `get_fallback_models`, but blocking."""
        found = []
        for name, sha256 in self.earlier():
            try:
                found.append(self.record(name, sha256))
            except BadModel:
                continue
        return found

    def _passed(self) -> list[tuple[str, str]]:
        known = []
        for path in _listed(self.root, "*/*/manifest.json"):
            try:
                content = read_json(path)
                manifest = parse_manifest(path, content)
            except BadModel:
                continue
            if isinstance(content.get("gate"), dict) and content["gate"].get("passed") is True:
                known.append((str(content.get("created_at", "")), manifest.name, manifest.sha256))
        return [(name, sha256) for _, name, sha256 in sorted(known, reverse=True)]

    def record(self, name: str, sha256: str) -> ModelRecord:
        """Read one model and check that its files agree with its manifest.

        Raises:
            BadModel: Names the file, the field, what was expected and what was found.
        """
        folder = self.root if self.single else self.root / name / sha256
        path = folder / "manifest.json"
        manifest = self._manifest(folder)
        if (manifest.name, manifest.sha256) != (name, sha256):
            raise BadModel(
                f"{path}: expected name {name} and sha256 {sha256}, found {manifest.name}, {manifest.sha256}"
            )
        onnx = read_bytes(folder / "model.onnx", MODEL_BYTES_MAX)
        found = hashlib.sha256(onnx).hexdigest()
        if found != sha256:
            raise BadModel(f"{folder / 'model.onnx'}: sha256: expected {sha256}, found {found}")
        return ModelRecord(manifest, onnx, folder)

    def _manifest(self, folder: Path) -> Manifest:
        path = folder / "manifest.json"
        return parse_manifest(path, read_json(path))

    def _check_writable(self) -> None:
        if self.single:
            raise BadModel(f"{self.root}: is itself a single model and read-only: expected the folder of a registry")

    def find(self, version: str) -> tuple[str, str]:
        """Find a model by name and any prefix of its hash, for instance `mlp@1a2b`.

        Raises:
            BadModel: None or several match.
        """
        name, _, begin = version.partition("@")
        usable = _NAME.fullmatch(name) and re.fullmatch(r"[0-9a-f]{4,64}", begin)
        found = _listed(self.root / name, f"{begin}*") if usable else []
        if len(found) != 1:
            raise BadModel(f"model {version!r}: expected NAME@HASH of one model in {self.root}, found {len(found)}")
        return name, found[0].name

    def add(self, onnx: bytes, content: Mapping[str, Any]) -> Manifest:
        """Add a model; adding the same one again changes nothing.

        Args:
            onnx: The model's bytes.
            content: The manifest; `sha256` is set here.

        Raises:
            BadModel: If the manifest cannot be used, or the folder cannot be written.
        """
        self._check_writable()
        sha256 = hashlib.sha256(onnx).hexdigest()
        whole = {**content, "sha256": sha256}
        manifest = parse_manifest(self.root / "manifest.json", whole)
        folder = self.root / manifest.name / sha256
        if _exists(folder / "manifest.json"):
            return self.record(manifest.name, sha256).manifest
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _replace(folder / "model.onnx", onnx)
            # The manifest is written last: a model without one does not count, so a crash leaves no half of a model.
            _replace(folder / "manifest.json", _json(whole))
        except OSError as error:
            raise BadModel(f"{folder}: cannot be written: {error.strerror or error}") from error
        return manifest

    def promote(self, name: str, sha256: str, seen: int) -> Pointer:
        """Make a model the current one; nothing changes if it is already.

        Args:
            name: Its name.
            sha256: Its hash.
            seen: Number of the pointer that the decision was based on.

        Raises:
            BadModel: Its files are damaged; the pointer is unchanged.
            ModelConflict: The pointer was changed meanwhile.
        """
        self._check_writable()
        self.record(name, sha256)
        with self._locked():
            before = self.pointer_or_none()
            self._check_seen(before, seen)
            if before.current == (name, sha256):
                return before
            chain = [entry for entry in (before.current, *before.previous) if entry not in (None, (name, sha256))]
            return self._write(Pointer(before.number + 1, (name, sha256), tuple(filter(None, chain))[:PREVIOUS_MAX]))

    def roll_back(self, seen: int) -> Pointer:
        """Go back to the model that was in use before; the present one is no fallback afterwards.

        Raises:
            BadModel: There is none, or its files are damaged.
            ModelConflict: The pointer was changed meanwhile.
        """
        self._check_writable()
        with self._locked():
            before = self.pointer()
            self._check_seen(before, seen)
            if not before.previous:
                raise BadModel(f"{self.root / 'current.json'}: no earlier model to roll back to")
            self.record(*before.previous[0])
            return self._write(Pointer(before.number + 1, before.previous[0], before.previous[1:]))

    def _check_seen(self, before: Pointer, seen: int) -> None:
        if before.number != seen:
            raise ModelConflict(
                f"{self.root / 'current.json'}: expected version {seen}, found {before.number}: it was changed "
                "meanwhile, try again"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.root / ".lock"
        try:
            lock = path.open("a")
        except OSError as error:
            raise BadModel(f"{path}: cannot be written: {error.strerror or error}") from error
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, pointer: Pointer) -> Pointer:
        entries = [
            {"name": name, "sha256": sha256} for name, sha256 in filter(None, (pointer.current, *pointer.previous))
        ]
        content = {
            "version": pointer.number,
            **entries[0],
            "previous": entries[1:],
            "promoted_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        path = self.root / "current.json"
        try:
            _replace(path, _json(content))
        except OSError as error:
            raise BadModel(f"{path}: cannot be written: {error.strerror or error}") from error
        return pointer


def _entry(path: Path, content: Any) -> tuple[str, str]:
    if not isinstance(content, dict):
        raise BadModel(f"{path}: expected objects with name and sha256, found {type(content).__name__}")
    return _text(path, content, "name", _NAME), _text(path, content, "sha256", _SHA256)


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _replace(path: Path, content: bytes) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
