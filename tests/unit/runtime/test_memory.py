"""The memory limit of a container."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

from sheetanchor.runtime.memory import memory_limit_bytes, memory_used_bytes


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
    """Both versions of control groups have it, each with its own value for no limit."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)

    assert memory_limit_bytes(tmp_path) == limit


def test_without_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    """A machine that mounts none limits nothing."""
    assert memory_limit_bytes(tmp_path / "nowhere") == math.inf


@pytest.mark.parametrize(
    ("used", "stat", "line"),
    [
        ("memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ],
)
def test_what_is_used_is_what_the_kernel_kills_for(tmp_path: Path, used: str, stat: str, line: str) -> None:
    """The whole container's, without pages of files that it takes back first."""
    (tmp_path / used).parent.mkdir(exist_ok=True)
    (tmp_path / used).write_text("1000\n")
    (tmp_path / stat).write_text(f"anon 700\n{line} 100\nactive_file 200\n")

    assert memory_used_bytes(tmp_path) == 900


def test_without_control_groups_the_memory_of_children_counts_too(tmp_path: Path) -> None:
    """A server that a role runs is a process of its own, and so is what that has started."""
    code = "import subprocess, sys; x = bytearray(60_000_000); print(1, flush=True); sys.stdin.read()"
    shell = f"{sys.executable} -c '{code}'; true"
    before = memory_used_bytes(tmp_path)
    with subprocess.Popen(["sh", "-c", shell], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        after = memory_used_bytes(tmp_path)
        process.communicate()

    assert after - before > 50_000_000
