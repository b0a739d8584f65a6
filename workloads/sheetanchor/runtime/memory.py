"""How much memory this container uses and may use, as the kernel counts it: that of child processes too."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")

_LIMIT_FILES: Final = ("memory.max", "memory/memory.limit_in_bytes")
"""Files of the limit in control groups version 2 and version 1."""

_USED_FILES: Final = (
    ("memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Files of the usage, and the part that the kernel reclaims before it kills: pages of files not used recently."""

PROCESSES: Final = Path("/proc")

_UNLIMITED: Final = 2**62
"""Version 1 has no limit at or above this: the largest number of whole pages."""


def memory_limit_bytes(cgroups: Path = CGROUPS) -> float:
    """Read the limit of the container that this process runs in; infinity if there is none.

    Args:
        cgroups: Where the control groups are mounted.
    """
    for name in _LIMIT_FILES:
        try:
            text = (cgroups / name).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit() and int(text) < _UNLIMITED:
            return float(text)
    return math.inf


def memory_used_bytes(cgroups: Path = CGROUPS, processes: Path = PROCESSES) -> float:
    """Read the container's memory usage; outside of one, the resident memory of this process and its descendants.

    Args:
        cgroups: Where the control groups are mounted.
        processes: Folder of the kernel's process information.
    """
    for used, details, inactive in _USED_FILES:
        try:
            total = int((cgroups / used).read_text(encoding="ascii"))
            lines = (cgroups / details).read_text(encoding="ascii").splitlines()
        except (OSError, ValueError):
            continue
        given_back = next((line.split()[1] for line in lines if line.startswith(f"{inactive} ")), "0")
        return float(max(0, total - int(given_back)))
    return float(_resident_bytes(processes, os.getpid()))


def _resident_bytes(processes: Path, pid: int) -> int:
    children: dict[int, list[int]] = {}
    pages: dict[int, int] = {}
    for folder in processes.glob("[0-9]*"):
        try:
            # The name of a program, in brackets, may hold anything.
            fields = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            pages[int(folder.name)] = int((folder / "statm").read_text(encoding="ascii").split()[1])
            children.setdefault(int(fields[1]), []).append(int(folder.name))
        except (OSError, ValueError, IndexError):  # the process has ended meanwhile
            continue
    found, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        found += pages.get(one, 0)
        waiting += children.pop(one, [])
    return found * os.sysconf("SC_PAGE_SIZE")
