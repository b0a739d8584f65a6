"""What is built once: folders named after the hash of what they were built from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.bed.run import BedError, CannotHost, say

STALE_AFTER_S = 30 * 86400  # an entry that no run has used for so long is of an older source
LOCK_WITHIN_S = 1800  # two cold builds one after the other


def root() -> Path:
    """Where everything that is built stays.

    Raises:
        CannotHost: It cannot be written.
    """
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(base) / "sheetanchor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotHost(f"{folder} cannot be made ({error.strerror}); name a place with XDG_CACHE_HOME") from None
    return folder


def digest(*inputs: str | Path) -> str:
    """Hash texts and the contents of files and folders; what Python compiled on the way does not count."""
    whole = hashlib.sha256()
    for item in inputs:
        files = [item] if isinstance(item, str) else sorted(item.rglob("*")) if item.is_dir() else [item]
        for part in files:
            if isinstance(part, str):
                content = part.encode()
            elif part.is_file() and "__pycache__" not in part.parts:
                content = part.name.encode() + b"\0" + part.read_bytes()
            else:
                continue
            whole.update(len(content).to_bytes(8, "big") + content)
    return whole.hexdigest()[:12]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock that every run on this machine respects, so that no two do the same work or share a cluster."""
    with (root() / f"{name}.lock").open("a+") as file:
        deadline = time.monotonic() + LOCK_WITHIN_S
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise BedError(f"another run has held {file.name} for {LOCK_WITHIN_S} s") from None
                if not told:
                    say(f"waiting for another run, which holds {file.name}")
                    told = True
                time.sleep(0.5)
        yield


def entry(group: str, key: str, build: Callable[[Path], None]) -> Path:
    """Return the folder of a group's key, built now if no earlier run has.

    Args:
        group: What it is, the first part of the folder's name.
        key: Hash of everything it is made from.
        build: Fills an empty folder; called at most once, while no other run builds the same group.
    """
    wanted = root() / f"{group}-{key}"
    if not wanted.is_dir():
        with locked(group):
            if not wanted.is_dir():
                unfinished = Path(tempfile.mkdtemp(prefix=f".{group}-", dir=root()))
                try:
                    build(unfinished)
                    unfinished.chmod(0o755)
                    unfinished.rename(wanted)
                finally:
                    shutil.rmtree(unfinished, ignore_errors=True)
    os.utime(wanted)
    for other in root().glob(f"{group}-*"):
        if other != wanted and time.time() - other.stat().st_mtime > STALE_AFTER_S:
            shutil.rmtree(other, ignore_errors=True)
    return wanted
