"""A connection to Redis: how errors are translated, commands packed, and connections to a wrong server closed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import hiredis
from redis import exceptions
from redis.asyncio import Redis

from sheetanchor import errors

_REFUSED = (
    exceptions.AuthenticationError,
    exceptions.AuthorizationError,
    exceptions.NoPermissionError,
    exceptions.DataError,
)
_UNAVAILABLE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    exceptions.AskError,
)
_UNAVAILABLE_CODES = (
    "NOREPLICAS",
    "MASTERDOWN",
    "LOADING",
    "READONLY",
    "BUSY",
    "UNKILLABLE",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MISCONF",
    "UNBLOCKED",  # a blocked read on a master that has just become a replica
)


def wrong_server(error: Exception) -> str:
    """Say why a server that has answered with this error is not the right one, "" if it may be.

    Its name may resolve to another server by now. In a cluster each server has some of the keys, and names the server
    that has the others.
    """
    message = " ".join(str(error).split())
    if isinstance(error, exceptions.MovedError) or message.startswith("MOVED "):
        return f"it is in cluster mode, and another server has the keys ({message}): set redis_url to that server"
    if isinstance(error, exceptions.AskError) or message.startswith("ASK "):
        return f"it is in cluster mode, and the keys are moving to another server ({message})"
    if isinstance(error, exceptions.ReadOnlyError) or message.startswith("READONLY"):
        return f"it is a replica, not the master (any more): {message}"
    if message.startswith("UNBLOCKED"):
        return f"it has just become a replica: {message}"
    if isinstance(error, exceptions.MasterDownError) or message.startswith("MASTERDOWN"):
        return f"it is a replica without its master: {message}"
    return ""


def translated_error(error: Exception, doing: str) -> errors.RedisError:
    """Turn what the Redis client raised into one of our errors, with one line that says what was being done.

    Args:
        error: What the client raised.
        doing: The command, for instance `XADD sbe:{BTCUSDT}:a`.
    """
    message = " ".join(str(error).split()) or type(error).__name__
    if message.startswith(("NOAUTH", "HELLO must be called", "Authentication required")):
        message = "it requires a password and none is set (see redis_password_file)"
    if isinstance(error, _REFUSED):
        return errors.RedisRefused(f"Redis refused {doing}: {message}")
    if isinstance(error, exceptions.OutOfMemoryError):
        return errors.RedisOutOfMemory(f"Redis is out of memory and refused {doing}: {message}")
    wrong = wrong_server(error)
    if wrong or isinstance(error, (*_UNAVAILABLE, OSError)) or message.startswith(_UNAVAILABLE_CODES):
        return errors.RedisUnavailable(f"Redis cannot do {doing} just now: {wrong or message}")
    return errors.RedisRefused(f"Redis refused {doing}: {message}")


@contextmanager
def translate_errors(doing: str) -> Iterator[None]:
    """Let only errors of our own tree out of a block that calls Redis.

    Raises:
        RedisUnavailable: No connection, a time-out, or a server that cannot do it just now.
        RedisOutOfMemory: Refused for want of memory.
        RedisRefused: Anything else.
    """
    try:
        yield
    except (exceptions.RedisError, OSError) as error:
        raise translated_error(error, doing) from error


CheckConnection = Callable[[Any], Awaitable[None]]
"""Is given each new connection before anything else is sent on it; raises redis-py's ConnectionError to refuse it."""


class _Generation:
    """Counts how often a client has met a wrong server: connections of an earlier generation are closed."""

    def __init__(self) -> None:
        self.number = 0
        self.check: CheckConnection | None = None


class _ClosedIfWrong:
    """Closes the connection to a server that answers but is the wrong one: the master may be another by now.

    A server that was demoted keeps its connections and answers `READONLY`. The connection that gets this answer is
    closed, and with it all others of the same client, which may only read and would never get it. The command was not
    run, so it may be sent again.
    """

    generation: _Generation
    made_in = 0

    async def connect_check_health(self: Any, *arguments: Any, **named: Any) -> None:
        number = self.generation.number
        if self.is_connected and self.made_in != number:
            await self.disconnect(nowait=True)
        is_new = not self.is_connected
        if is_new:
            self.made_in = number
        await super().connect_check_health(*arguments, **named)  # type: ignore[misc]
        if is_new and self.generation.check is not None:
            try:
                await self.generation.check(self)
            except BaseException:
                await self.disconnect(nowait=True)
                raise

    async def read_response(self: Any, *arguments: Any, **named: Any) -> Any:
        try:
            return await super().read_response(*arguments, **named)  # type: ignore[misc]
        except exceptions.ResponseError as error:
            message = wrong_server(error)
            if not message:
                raise
            if self.made_in == self.generation.number:
                self.generation.number += 1
            await self.disconnect(nowait=True)
            raise exceptions.ConnectionError(message) from error


class _PackedInC:
    """Packs commands in C: in Python a processor's write of 200 values costs 300 µs, more than the rest together."""

    def pack_command(self, *words: Any) -> list[bytes]:
        # The client's own commands have names of two words, such as `MEMORY USAGE`.
        try:
            return [hiredis.pack_command((*words[0].split(), *words[1:]))]
        except TypeError as error:
            raise exceptions.DataError(str(error)) from error

    async def send_packed_command(self: Any, command: bytes | Iterable[bytes], check_health: bool = True) -> None:
        """Send as the client does, but without its `asyncio.wait_for`.

        Before Python 3.12 that swallows a cancellation that comes when the write is done, so that a task which writes
        often could not be stopped; and it costs a task per command.
        """
        if not self.is_connected or self.made_in != self.generation.number:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()
        try:
            async with asyncio.timeout(self.socket_timeout):
                self._writer.writelines([command] if isinstance(command, bytes) else command)
                await self._writer.drain()
        except BaseException as error:
            # What was sent of the command is not known: the connection cannot be used any more.
            await self.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise exceptions.TimeoutError("Timeout writing to socket") from None
            if isinstance(error, OSError):
                raise exceptions.ConnectionError(f"Error while writing to socket. {error}") from error
            raise


def check_connections(client: Redis, check: CheckConnection) -> None:
    """Have each new connection of a client checked before anything else is sent on it.

    Args:
        client: What `packing_in_c` has returned.
        check: Is called with the connection.
    """
    made_class: Any = client.connection_pool.connection_class
    made_class.generation.check = check


async def replication_id_of(connection: Any) -> str:
    """Ask on one certain connection which replication history its server is in, "" if it does not say."""
    await connection.send_command("INFO", "replication", check_health=False)
    answer = await connection.read_response()
    text = answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)
    found = re.search(r"^master_replid:([0-9a-f]+)", text, re.MULTILINE)
    return found[1] if found else ""


def packing_in_c(client: Redis) -> Redis:
    """Have a client's connections pack in C, and close those to a server that answers but is the wrong one."""
    pool = client.connection_pool
    own = {"generation": _Generation()}
    pool.connection_class = type("Connection", (_PackedInC, _ClosedIfWrong, pool.connection_class), own)
    return client
