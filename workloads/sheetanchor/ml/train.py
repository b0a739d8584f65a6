"""`sheetanchor train`: recorded markets in, an ONNX model with an honest manifest out.

Everything random is seeded: the same recordings, settings and library versions give the same model. The scaler is part
of the graph, so that serving cannot forget it.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
import skl2onnx
import sklearn
from numpy.typing import NDArray
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from sheetanchor.contract import HORIZON_MS, SLOT_MS
from sheetanchor.errors import BadModel, BadRecording, BadSettings
from sheetanchor.ml.dataset import Example, Split, label, rows, split
from sheetanchor.ml.feature_vector import FeatureMissing, extract
from sheetanchor.ml.onnx_model import OnnxModel
from sheetanchor.ml.registry import ModelRegistry, version_of
from sheetanchor.recording import recording_file
from sheetanchor.runtime.settings import TrainSettings

log = logging.getLogger(__name__)

Array = NDArray[np.float32]

# The spread is not among them: it is nearly always one tick, so any other value would be an extreme outlier.
FEATURES: Final = (
    "feat.ret_1s",
    "feat.ret_5s",
    "feat.vol_imbalance",
    "feat.ob_imbalance",
    "feat.trade_intensity",
    "tr_1s.signed_vol",
    "tr_5s.signed_vol",
    "tr_1s.vwap_minus_mid",
    "tr_5s.vwap_minus_mid",
)

ALPHAS: Final = (0.01, 1.0, 30.0)
"""Strengths of regularisation to choose from; with a few hundred examples the strongest usually wins."""

LABEL_SCALE: Final = 1e4
"""Labels are scaled to basis points: as plain ratios they are so small that the solver would stop at once."""

OPSET: Final = 17
EXPORT_TOLERANCE: Final = 1e-5
LATENCY_MAX_S: Final = 0.020
LATENCY_RUNS: Final = 200
WORSE_THAN_ZERO_MAX: Final = 1.2
WORSE_THAN_CURRENT_MAX: Final = 1.05
"""A new model may be this much worse in squared error than the current one on the same test, which is noisy itself."""

ENDS_EARLY_US: Final = 10_000_000
"""A last row so long before the last frame means that messages are missing after it."""

EXTREME: Final = np.float32(1e6)


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the data as arrays.

    Attributes:
        x: float32 (n, features), order `FEATURES`.
        y: float64 (n,), relative returns over the horizon.
    """

    x: Array
    y: NDArray[np.float64]


def arrays(examples: list[Example]) -> Part:
    """Extract vectors and labels from examples."""
    x = np.stack([extract(FEATURES, example.groups) for example in examples])
    return Part(x, np.array([example.label for example in examples], dtype=np.float64))


@dataclass(frozen=True, slots=True)
class TrainingCandidate:
    """One choice of hyperparameters and its error on the validation part."""

    hidden: int
    alpha: float
    validation_mse: float
    pipeline: Any


def search(train: Part, validation: Part, hidden: list[int], seed: int) -> list[TrainingCandidate]:
    """Fit every combination; the best on the validation part comes first.

    Args:
        train: Examples to fit.
        validation: Examples to select by.
        hidden: Sizes of the hidden layer.
        seed: Seed of the initial weights.
    """
    found = []
    for size, alpha in itertools.product(sorted({*hidden, 8}), ALPHAS):
        network = MLPRegressor(hidden_layer_sizes=(size,), alpha=alpha, solver="lbfgs", max_iter=300, random_state=seed)
        pipeline = make_pipeline(StandardScaler(), network)
        with warnings.catch_warnings(), threadpool_limits(limits=1):
            # Threads slow down matrices this small twentyfold. Stopping early is intended as regularisation, so the
            # warning about it is disabled.
            warnings.simplefilter("ignore", ConvergenceWarning)
            pipeline.fit(train.x, train.y * LABEL_SCALE)
        # The last layer is linear, so the scale of the labels can be taken back exactly.
        fitted = pipeline[-1]
        fitted.coefs_[-1] = fitted.coefs_[-1] / LABEL_SCALE
        fitted.intercepts_[-1] = fitted.intercepts_[-1] / LABEL_SCALE
        error = float(np.mean((pipeline.predict(validation.x) - validation.y) ** 2))
        found.append(TrainingCandidate(size, alpha, error, pipeline))
    return sorted(found, key=lambda candidate: candidate.validation_mse)


def export(pipeline: Any, feature_count: int) -> bytes:
    """Render a fitted pipeline as ONNX: input `x` float32 [N, features], output `y` float32 [N, 1]."""
    model = to_onnx(
        pipeline,
        name="sheetanchor",
        initial_types=[("x", FloatTensorType([None, feature_count]))],
        final_types=[("y", FloatTensorType([None, 1]))],
        target_opset=OPSET,
    )
    model.producer_version = ""  # it is in the manifest; the bytes, and so the hash, must change with the model only
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def session_of(model: bytes) -> ort.InferenceSession:
    """Load a model as inference does: one thread, in this process."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def predict(session: ort.InferenceSession, x: Array) -> NDArray[np.float64]:
    """Run a model on (n, features) and give (n,)."""
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    return np.asarray(y, dtype=np.float64).reshape(-1)


def directional_accuracy(predicted: NDArray[np.float64], actual: NDArray[np.float64]) -> float | None:
    """Give the share of right signs where the price moved at all; None if it never did."""
    moved = actual != 0
    if not moved.any():
        return None
    return float(np.mean(np.sign(predicted[moved]) == np.sign(actual[moved])))


def score(predicted: NDArray[np.float64], actual: NDArray[np.float64]) -> dict[str, float | None]:
    """Give the errors of predicted returns, squared, absolute and of the sign."""
    return {
        "mse": float(np.mean((predicted - actual) ** 2)),
        "mae": float(np.mean(np.abs(predicted - actual))),
        "directional_accuracy": directional_accuracy(predicted, actual),
    }


def baselines(train: Part, test: Part) -> dict[str, dict[str, float | None]]:
    """Score the baselines: no change, the trend of the last five seconds, and always the more frequent direction."""
    majority = np.sign(np.sum(np.sign(train.y))) or 1.0
    typical = float(np.mean(np.abs(train.y)))
    return {
        "no_change": score(np.zeros_like(test.y), test.y),
        "last_direction": score(test.x[:, FEATURES.index("feat.ret_5s")].astype(np.float64), test.y),
        "majority_direction": score(np.full_like(test.y, majority * typical), test.y),
    }


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether a model may become the current one, with the finding of each check."""

    sound: bool
    good: bool
    findings: dict[str, str]


def gate(model: bytes, pipeline: Any, test: Part, no_change_mse: float, current_mse: float | None) -> Gate:
    """Check a model before it may serve.

    Args:
        model: The exported model.
        pipeline: The pipeline that it was exported from.
        test: Examples that were used neither to fit nor to select.
        no_change_mse: Squared error of predicting no change.
        current_mse: Squared error of the current model on the same part; None if there is none.
    """
    session = session_of(model)
    ours = predict(session, test.x)
    difference = float(np.max(np.abs(ours - pipeline.predict(test.x))))
    extremes = np.concatenate([np.full((1, test.x.shape[1]), sign * EXTREME) for sign in (-1, 1)]).astype(np.float32)
    finite = bool(np.isfinite(predict(session, extremes)).all() and np.isfinite(ours).all())
    started = time.perf_counter()
    for _ in range(LATENCY_RUNS):
        predict(session, test.x[:1])
    latency_s = (time.perf_counter() - started) / LATENCY_RUNS
    mse = float(np.mean((ours - test.y) ** 2))
    sound = {
        "export": (difference <= EXPORT_TOLERANCE, f"differs by at most {difference:.1e} from what was trained"),
        "finite": (finite, "finite on the test part and on extreme inputs"),
        "latency": (latency_s < LATENCY_MAX_S, f"mean below {LATENCY_MAX_S * 1000:.0f} ms for one row"),
    }
    limit = no_change_mse * WORSE_THAN_ZERO_MAX
    good = {"no_change": (mse <= limit, f"squared error {mse:.3e}, predicting no change {no_change_mse:.3e}")}
    if current_mse is not None:
        good["current"] = (
            mse <= current_mse * WORSE_THAN_CURRENT_MAX,
            f"{mse:.3e}, the current model {current_mse:.3e}",
        )
    findings = {name: ("ok: " if held else "FAILED: ") + text for name, (held, text) in {**sound, **good}.items()}
    return Gate(all(held for held, _ in sound.values()), all(held for held, _ in good.values()), findings)


def remark(count: int, span_s: float) -> str:
    """Say what a test of this size shows."""
    margin = 100 * 1.96 * math.sqrt(0.25 / max(count, 1))
    return (
        f"Tested on {count} overlapping ten-second returns from {span_s / 60:.1f} minutes of one market: even without "
        f"the overlap, a share of right directions is known to ±{margin:.0f} percentage points only. This shows that "
        "the pipeline works from frames to predictions. It shows no skill; do not trade on it."
    )


def examples_of(path: Path) -> tuple[str, list[Example], dict[str, Any]]:
    """Read a recording and label it.

    Returns:
        Symbol, examples, and the manifest's description of the source.

    Raises:
        BadRecording: If the file cannot be used.
    """
    recorded = recording_file.load(path)
    seen = list(rows(recorded))
    if seen and recorded.events[-1][0] - seen[-1].at_us > ENDS_EARLY_US:
        log.warning("%s: messages are missing after %s: the rest is not used", path, _iso(seen[-1].at_us))
    examples = label(seen)
    if not examples:
        raise BadRecording(f"{path}: expected at least 20 s of market, found not one example: record for longer")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return recorded.symbol, examples, {"file": path.name, "sha256": digest, "examples": len(examples)}


def _iso(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _data(parts: Split, sources: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "sources": sources,
        "from": _iso(parts.train[0].at_us),
        "to": _iso(parts.test[-1].at_us),
        "test_from": _iso(parts.test[0].at_us),
        "slot_ms": SLOT_MS,
        "embargo_ms": HORIZON_MS,
        "examples": {"train": len(parts.train), "validation": len(parts.validation), "test": len(parts.test)},
    }


def current_mse(root: Path, parts: Split) -> float | None:
    """Give the squared error of the registry's current model on a test part; None without a usable one."""
    try:
        current = OnnxModel(ModelRegistry(root).current())
        found = [current.run(extract(current.manifest.features, example.groups)) for example in parts.test]
    except (BadModel, FeatureMissing) as error:
        log.info("the registry has no usable current model to compare with: %s", error)
        return None
    return float(np.mean((np.array(found) - np.array([example.label for example in parts.test])) ** 2))


async def run(settings: TrainSettings) -> int:
    """Train, test, store, and promote if the model passes the gate.

    Returns:
        0 when a model was stored (and promoted, if requested), 1 when it did not pass the gate.

    Raises:
        BadRecording: If a recording cannot be used.
        BadSettings: If the recordings cannot be combined.
    """
    read = [examples_of(path) for path in settings.recording or [recording_file.default_path()]]
    symbols = sorted({symbol for symbol, _, _ in read})
    examples = [example for _, found, _ in read for example in found]
    log.info("%d examples from %d recording(s) of %s", len(examples), len(read), ", ".join(symbols))
    try:
        parts = split(examples)
    except ValueError as error:
        raise BadSettings(f"recording: {error}") from error
    train, validation, test = (arrays(part) for part in (parts.train, parts.validation, parts.test))
    candidates = search(train, validation, settings.hidden, settings.seed)
    best = candidates[0]
    model = export(best.pipeline, len(FEATURES))
    naive = baselines(train, test)
    no_change_mse = naive["no_change"]["mse"] or 0.0
    checked = gate(model, best.pipeline, test, no_change_mse, current_mse(settings.out, parts))
    ours = predict(session_of(model), test.x)
    residuals = predict(session_of(model), validation.x) - validation.y
    span_s = (parts.test[-1].at_us - parts.test[0].at_us) / 1e6
    manifest = {
        "name": settings.name,
        "features": list(FEATURES),
        "input": "x",
        "output": "y",
        "opset": OPSET,
        "horizon_ms": HORIZON_MS,
        "symbols": symbols,
        "residual_std": float(np.std(residuals)),
        "baseline_accuracy": score(ours, test.y)["directional_accuracy"],
        "metrics": {"test": score(ours, test.y), "baselines": naive},
        "search": [
            {"hidden": found.hidden, "alpha": found.alpha, "validation_mse": found.validation_mse}
            for found in candidates
        ],
        "gate": {"passed": checked.sound and checked.good, **checked.findings},
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": _data(parts, [source for _, _, source in read]),
        "seed": settings.seed,
        "libraries": {
            "onnx": onnx.__version__,
            "scikit-learn": sklearn.__version__,
            "skl2onnx": skl2onnx.__version__,
            "onnxruntime": ort.__version__,
        },
        "remark": remark(len(parts.test), span_s),
    }
    return _store(settings, model, manifest, checked)


def _store(settings: TrainSettings, model: bytes, manifest: dict[str, Any], checked: Gate) -> int:
    for name, finding in checked.findings.items():
        log.info("gate: %s: %s", name, finding)
    if not checked.sound:
        log.error("the model is not stored: it did not pass the gate, see the findings above")
        return 1
    models = ModelRegistry(settings.out)
    stored = models.add(model, manifest)
    version = version_of(stored.name, stored.sha256)
    log.info("stored %s in %s", version, settings.out)
    if not settings.promote:
        return 0
    pointer = models.pointer_or_none()
    # With a damaged pointer it is unknown what was in use, but any model that passed its gate may serve.
    known = [pointer.current] if pointer.current is not None else models.earlier()
    others = [entry for entry in known if pointer.current is not None or entry != (stored.name, stored.sha256)]
    if not checked.good and others:
        log.error("%s is not promoted: it did not pass the gate; %s stays in use", version, version_of(*others[0]))
        return 1
    if not checked.good:
        log.warning("%s is promoted although it did not pass the gate: there is no other model", version)
    models.promote(stored.name, stored.sha256, pointer.number)
    log.info("%s is now in use", version)
    return 0
