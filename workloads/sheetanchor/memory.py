"""How much memory this process may use, as its control group says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")

_LIMIT_FILES: Final = ("memory.max", "memory/memory.limit_in_bytes")
"""Of control groups version 2, and of version 1."""

_UNLIMITED: Final = 2**62
"""Version 1 says "no limit" as the largest number of whole pages."""


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
