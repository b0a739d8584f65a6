"""The function library on a server: whether it is exactly ours, and loading it where it is not.

A library runs with the rights of its caller. So one that another client has put in its place acts as each role in
turn, whatever version it says it is: its code is compared, not its version. On a managed Redis only the node's own
process may load it; on an external server the roles do where they may.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any, Final

from redis import exceptions
from redis.asyncio import Redis

from sheetanchor import errors
from sheetanchor.store.redis_connection import translate_errors

log = logging.getLogger(__name__)

NAME: Final = "sheetanchor"
_VERSION: Final = re.compile(r"^local VERSION = (\d{1,9})$", re.MULTILINE)


@cache
def library_source() -> str:
    """Give the text of the function library."""
    return files("sheetanchor.store").joinpath("hot_state.lua").read_text(encoding="utf-8")


@cache
def library_version() -> int:
    """Give the version of the library that this package carries."""
    found = version_of(library_source())
    if not found:
        raise errors.BadSettings("hot_state.lua: expected a line `local VERSION = N`")
    return found


def version_of(code: str) -> int:
    """Give the version in a library's code, 0 if it has none."""
    found = _VERSION.search(code)
    return int(found[1]) if found else 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a server has.

    Attributes:
        version: As the library says, 0 if there is none.
        code: Its code, None where the user may not look at it.
    """

    version: int
    code: str | None


class LibraryStep(StrEnum):
    """What a role does about the library that it finds."""

    USE = "use"
    LOAD = "load"
    USE_NEWER = "use newer"  # a role of the next version has loaded it: to load this one's would take it away


def decide(found: Loaded, own_code: str, own_version: int) -> LibraryStep:
    """Decide what a role does about what it finds on a server whose library may be of the next version already."""
    if found.code == own_code:
        return LibraryStep.USE
    if found.version > own_version:
        return LibraryStep.USE_NEWER
    if found.code is None and found.version == own_version:
        return LibraryStep.USE  # a user that may not list libraries relies on the one that loads them
    return LibraryStep.LOAD


async def ensure_library(redis: Redis) -> int:
    """Load the function library unless the server has this very one or a newer version.

    Returns:
        The version that the server has now.

    Raises:
        RedisUnavailable: It lacks the library and this user may not load it: one that may has to first.
        RedisError: If it cannot be asked or loaded.
    """
    with translate_errors(f"FUNCTION LOAD {NAME}"):
        found = await _read_library(redis)
        step = decide(found, library_source(), library_version())
        if step is LibraryStep.LOAD:
            await _load(redis, found)
        elif step is LibraryStep.USE_NEWER:
            log.warning(
                "the server's function library has version %d, newer than this role's %d: it is used as it is",
                found.version,
                library_version(),
            )
            return found.version
    return library_version()


async def _load(redis: Redis, found: Loaded) -> None:
    try:
        await execute(redis, "FUNCTION", "LOAD", "REPLACE", library_source())
    except exceptions.NoPermissionError as error:
        has = f"version {found.version} of the function library" if found.version else "no function library"
        raise errors.RedisUnavailable(
            f"the server has {has}, version {library_version()} is needed, and this user may not load it: the node of "
            "a managed Redis does when it is up; elsewhere allow +function|load or load it yourself (docs/hot-state.md)"
        ) from error
    if found.version:
        log.warning("the server's function library (version %d) was another: replaced it", found.version)


async def _read_library(redis: Redis) -> Loaded:
    try:
        codes = await libraries(redis, NAME)
    except exceptions.NoPermissionError:
        return Loaded(await _said_version(redis), None)
    code = codes.get(NAME, "")
    return Loaded(version_of(code), code)


async def _said_version(redis: Redis) -> int:
    try:
        return int(await execute(redis, "FCALL_RO", "sheetanchor_version", 0))
    except exceptions.ResponseError as error:
        if function_missing(error):
            return 0
        raise


class LibraryCheck(StrEnum):
    """What a node did about the library of its server."""

    SAME = "same"
    LOADED = "loaded"
    UPDATED = "updated"  # it was of an older version
    REPAIRED = "repaired"  # another one had been loaded in its place, or beside it


async def keep_library(redis: Redis) -> LibraryCheck:
    """Make sure that a server of our own has this very library and no other.

    Raises:
        RedisError: redis-py's, if it cannot be asked or loaded.
    """
    found = await libraries(redis)
    foreign = sorted(set(found) - {NAME})
    for name in foreign:
        await execute(redis, "FUNCTION", "DELETE", name)
    code = found.get(NAME)
    if code != library_source():
        await execute(redis, "FUNCTION", "LOAD", "REPLACE", library_source())
    if foreign or (code is not None and code != library_source() and version_of(code) >= library_version()):
        return LibraryCheck.REPAIRED
    if code is None:
        return LibraryCheck.LOADED
    return LibraryCheck.SAME if code == library_source() else LibraryCheck.UPDATED


async def libraries(redis: Redis, name: str = "") -> dict[str, str]:
    """Give the code of each library of a server.

    Args:
        redis: Its client.
        name: Only the library of this name; "" for all.

    Raises:
        RedisError: redis-py's, if the server does not say.
    """
    answer = await execute(redis, "FUNCTION", "LIST", *(("LIBRARYNAME", name) if name else ()), "WITHCODE")
    found = {}
    for one in answer:
        fields = _fields(one)
        found[_text(fields["library_name"])] = _text(fields["library_code"])
    return found


def _fields(answer: Mapping[Any, Any] | Sequence[Any]) -> dict[str, Any]:
    """Read a map, which is a list of names and values under the older protocol."""
    pairs = answer.items() if isinstance(answer, Mapping) else zip(answer[::2], answer[1::2], strict=True)
    return {_text(name): value for name, value in pairs}


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


async def execute(redis: Redis, *words: object) -> Any:
    """Send a command that the client has no method for."""
    send: Callable[..., Awaitable[Any]] = redis.execute_command
    return await send(*words)


def function_missing(error: Exception) -> bool:
    """Say whether the server has refused a call because it does not know the function."""
    return "function not found" in str(error).lower()
