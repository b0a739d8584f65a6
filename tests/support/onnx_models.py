"""Small ONNX models for tests, each with one property that matters, and registries to put them into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from sheetanchor.ml.registry import Manifest, ModelRegistry, Pointer

FEATURES = ["feat.ret_1s", "feat.ret_5s"]
OPSET = 17


def model(
    value: float = 0.0001,
    *,
    features: int = len(FEATURES),
    output_width: int = 1,
    element: int = TensorProto.FLOAT,
    infinite_at: float | None = None,
) -> bytes:
    """Give a model that answers with a constant, whatever it is asked.

    Args:
        value: What it answers.
        features: Width of its input.
        output_width: Width of its output.
        element: Type of input and output.
        infinite_at: Answer with infinity where the sum of the inputs is exactly this, with something small elsewhere.
    """
    dtype = helper.tensor_dtype_to_np_dtype(element)
    weights = np.zeros((features, output_width), dtype=dtype)
    constants = [
        onnx.numpy_helper.from_array(weights, "weights"),
        onnx.numpy_helper.from_array(np.full(output_width, value, dtype=dtype), "constant"),
        onnx.numpy_helper.from_array(np.ones((features, 1), dtype=dtype), "ones"),
        onnx.numpy_helper.from_array(np.array([infinite_at or 0.0], dtype=dtype), "pole"),
    ]
    nodes = [helper.make_node("MatMul", ["x", "weights"], ["zero"])]
    if infinite_at is not None:
        nodes += [helper.make_node("MatMul", ["x", "ones"], ["sum"]), helper.make_node("Sub", ["sum", "pole"], ["gap"])]
        nodes += [helper.make_node("Div", ["constant", "gap"], ["y"])]
    else:
        nodes += [helper.make_node("Add", ["zero", "constant"], ["y"])]
    return _assembled(nodes, constants, features, output_width, element)


def endless_model(at: float) -> bytes:
    """Give a model that never ends if the sum of its inputs is exactly this, unless it is aborted."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["going_on"]),
            helper.make_node("Add", ["total", "step"], ["total_on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, [1, 1]),
        ],
        [
            helper.make_tensor_value_info("going_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("total_on", TensorProto.FLOAT, [1, 1]),
        ],
        [onnx.numpy_helper.from_array(np.zeros((1, 1), dtype=np.float32), "step")],
    )
    constants = [
        onnx.numpy_helper.from_array(np.array(10**12, dtype=np.int64), "rounds"),
        onnx.numpy_helper.from_array(np.array(at, dtype=np.float32), "trap"),
        onnx.numpy_helper.from_array(np.zeros((1, 1), dtype=np.float32), "begin"),
    ]
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Equal", ["sum", "trap"], ["go"]),
        helper.make_node("Loop", ["rounds", "go", "begin"], ["y"], body=body),
    ]
    return _assembled(nodes, constants, len(FEATURES), 1, TensorProto.FLOAT)


def _assembled(nodes: list[Any], constants: list[Any], features: int, output_width: int, element: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", element, [None, features])],
        [helper.make_tensor_value_info("y", element, [None, output_width])],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    return bytes(made.SerializeToString())


def manifest(**changes: Any) -> dict[str, Any]:
    """Give a sound manifest's content, with changes; None removes a field."""
    content = {
        "name": "test",
        "features": FEATURES,
        "symbols": ["BTCUSDT"],
        "horizon_ms": 10_000,
        "opset": OPSET,
        "residual_std": 0.0005,
        "gate": {"passed": True},
        "created_at": "2026-01-01T00:00:00+00:00",
    }
    return {name: value for name, value in {**content, **changes}.items() if value is not None}


def put(root: Path, onnx_bytes: bytes, **changes: Any) -> Manifest:
    """Add a model to a registry without making it current."""
    return ModelRegistry(root).add(onnx_bytes, manifest(**changes))


def promote(root: Path, onnx_bytes: bytes, **changes: Any) -> Pointer:
    """Add a model to a registry and make it current."""
    registry = ModelRegistry(root)
    added = put(root, onnx_bytes, **changes)
    return registry.promote(added.name, added.sha256, registry.pointer().number)
