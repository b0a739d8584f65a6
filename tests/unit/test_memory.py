"""The memory limit of a container."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sheetanchor.memory import memory_limit_bytes


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("memory.max", "536870912\n", 536870912.0),
        ("memory.max", "max\n", math.inf),
        ("memory/memory.limit_in_bytes", "805306368\n", 805306368.0),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", math.inf),
    ],
)
def test_the_limit_is_read_from_either_version(tmp_path: Path, name: str, text: str, limit: float) -> None:
    """Both versions of control groups tell it, each with its own word for no limit."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)

    assert memory_limit_bytes(tmp_path) == limit


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    """A machine that mounts none limits nothing."""
    assert memory_limit_bytes(tmp_path / "nowhere") == math.inf
