"""Checks that a model's file has no references to other files. Pure.

ONNX can keep tensors in files beside the model. Such a file would not be covered by the model's hash, and the model
chooses its path: which file is read would depend on the version of the runtime and on the working directory. So a model
has to be one file. The format is parsed here as far as this check needs, so that it holds for every onnxruntime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from sheetanchor.errors import BadModel

DEPTH_MAX: Final = 100
"""Depth of graphs within nodes within graphs: protobuf itself allows no more."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Message type -> field number -> type of the message in it; only paths that lead to tensors.
_MESSAGES: Final[Mapping[str, Mapping[int, str]]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION, _TENSOR_NAME = 13, 14, 8
_EXTERNAL: Final = 1


def check_self_contained(path: Path, content: bytes) -> None:
    """Check that a model refers to no other file.

    Args:
        path: Its path, for messages.
        content: The file.

    Raises:
        BadModel: It refers to one, or it is no ONNX model.
    """
    try:
        name = _external(memoryview(content), "model", 0)
    except (IndexError, ValueError) as error:
        raise BadModel(f"{path}: cannot be loaded: expected an ONNX model, found other content ({error})") from error
    if name is not None:
        raise BadModel(
            f"{path}: tensor {name!r}: expected all tensors within the file, found one that is kept in another file"
        )


def _external(message: memoryview, kind: str, depth: int) -> str | None:
    """Give the name of the first tensor that is in another file."""
    if depth > DEPTH_MAX:
        raise ValueError(f"graphs nested more than {DEPTH_MAX} deep")
    name, outside = "", False
    for number, value in _fields(message):
        if kind == "tensor":
            outside |= number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value == _EXTERNAL)
            if number == _TENSOR_NAME and isinstance(value, memoryview):
                name = bytes(value[:100]).decode("utf-8", "replace")
        elif (inner := _MESSAGES[kind].get(number)) is not None and isinstance(value, memoryview):
            found = _external(value, inner, depth + 1)
            if found is not None:
                return found
    return name if outside else None


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield number and value of each field of a protobuf message.

    Raises:
        IndexError: It ends inside a field.
        ValueError: It is no protobuf message.
    """
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        value: int | memoryview = 0
        if wire == _VARINT:
            value, at = _varint(message, at)
        elif wire == _BYTES:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        elif wire in (_FIXED32, _FIXED64):
            at += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire}")
        if at > len(message) or not number:
            raise IndexError("it ends inside a field")
        yield number, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than ten bytes")
