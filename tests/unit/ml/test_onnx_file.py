"""A model that refers to other files is found before any onnxruntime sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sheetanchor.errors import BadModel
from sheetanchor.ml.onnx_file import check_self_contained
from sheetanchor.ml.registry import default_root
from support.onnx_models import endless_model, model

PATH = Path("model.onnx")


def tensor(outside: bool) -> TensorProto:
    """A tensor whose values are kept in another file, or are not."""
    made = onnx.numpy_helper.from_array(np.ones(2, dtype=np.float32), "secret")
    if outside:
        onnx.external_data_helper.set_external_data(made, "weights.bin")
        made.ClearField("raw_data")
    return made


def sparse(one: TensorProto) -> onnx.SparseTensorProto:
    indices = onnx.numpy_helper.from_array(np.array([0, 1]), "indices")
    return helper.make_sparse_tensor(one, indices, [4])


def graph(nodes: list[Any] = [], **parts: Any) -> onnx.GraphProto:  # noqa: B006 - never changed
    return helper.make_graph(nodes, "g", [], [], **parts)


def deep(one: TensorProto, levels: int) -> onnx.GraphProto:
    """A graph within a node of a graph within a node …, with the tensor at the bottom."""
    made = graph([helper.make_node("Constant", [], ["c"], value=one)])
    for _ in range(levels):
        made = graph([helper.make_node("If", ["c"], ["d"], then_branch=made, else_branch=graph())])
    return made


def in_function(one: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["c"], value=one)
    function = helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 17)])
    return helper.make_model(graph(), functions=[function])


def in_training(one: TensorProto) -> onnx.ModelProto:
    made = helper.make_model(graph())
    made.training_info.add().algorithm.CopyFrom(graph(initializer=[one]))
    return made


PLACES: dict[str, Callable[[TensorProto], onnx.ModelProto]] = {
    "initializer": lambda one: helper.make_model(graph(initializer=[one])),
    "sparse initializer": lambda one: helper.make_model(graph(sparse_initializer=[sparse(one)])),
    "attribute": lambda one: helper.make_model(graph([helper.make_node("Constant", [], ["c"], value=one)])),
    "attribute, list": lambda one: helper.make_model(graph([helper.make_node("X", [], ["c"], values=[one, one])])),
    "attribute, sparse": lambda one: helper.make_model(
        graph([helper.make_node("Constant", [], ["c"], sparse_value=sparse(one))])
    ),
    "subgraph": lambda one: helper.make_model(deep(one, 3)),
    "subgraphs": lambda one: helper.make_model(graph([helper.make_node("X", [], [], graphs=[graph(), deep(one, 1)])])),
    "function": in_function,
    "training": in_training,
}


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_in_another_file_is_found_wherever_it_hides(place: str) -> None:
    """ONNX knows many places for tensors; each is looked at, and the message names the tensor."""
    sound, outside = (PLACES[place](tensor(kept)).SerializeToString() for kept in (False, True))

    check_self_contained(PATH, sound)
    with pytest.raises(BadModel, match=r"^model.onnx: tensor 'secret': expected all tensors within the file"):
        check_self_contained(PATH, outside)


def test_the_models_that_are_used_pass() -> None:
    """The shipped one and those of these tests are single files."""
    [shipped] = default_root().glob("*/*/model.onnx")

    for content in (shipped.read_bytes(), model(), endless_model(0.5)):
        check_self_contained(PATH, content)


@pytest.mark.parametrize(
    "content",
    [b"\xff" * 20, b"\x3a\xff\xff\xff\xff\x0f", b"\x0b\x0c", b"ORTM not protobuf", b"<html></html>"],
    ids=["endless number", "longer than the file", "a group", "another format", "a page"],
)
def test_other_content_is_no_model(content: bytes) -> None:
    """What cannot be read to its end may hold anything."""
    with pytest.raises(BadModel, match="expected an ONNX model"):
        check_self_contained(PATH, content)


def test_graphs_nested_without_end_are_refused() -> None:
    """The reader's own depth is bounded."""
    content = b""
    for _ in range(400):
        for tag in (b"\x32", b"\x2a", b"\x0a"):  # attribute: g, node: attribute, graph: node
            content = tag + _length(content) + content

    with pytest.raises(BadModel, match="nested more than"):
        check_self_contained(PATH, b"\x3a" + _length(content) + content)


def _length(content: bytes) -> bytes:
    number, found = len(content), []
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_or_read_never_an_error(data: st.DataObject) -> None:
    """Whatever bytes change, there is an answer."""
    content = bytearray(PLACES["subgraph"](tensor(True)).SerializeToString())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(BadModel):  # the one error that there may be
        check_self_contained(PATH, bytes(content[: data.draw(st.integers(0, len(content)))]))
