"""Which functions a server runs: exactly ours, whatever was loaded, and none that never ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from conftest import RedisServer, free_port_number
from sheetanchor.errors import RedisUnavailable
from sheetanchor.managed_redis import command
from sheetanchor.managed_redis.acl_users import ROLES, server_users
from sheetanchor.managed_redis.command import NodeProcess
from sheetanchor.runtime import metrics
from sheetanchor.runtime.settings import REDIS_USERS, RedisSettings
from sheetanchor.store.function_library import (
    NAME,
    LibraryStep,
    Loaded,
    decide,
    ensure_library,
    libraries,
    library_source,
    library_version,
)
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client
from sheetanchor.web.server import Health
from support.hot_state_cases import anchored
from support.patience import PATIENT, limit_s, patience

VERSION = f"local VERSION = {library_version()}"
HEAD = "#!lua name=sheetanchor\n"
OTHERS = {
    "altered": library_source().replace("local function text(", "-- altered\nlocal function text("),
    "older": library_source().replace(VERSION, f"local VERSION = {library_version() - 1}"),
    "a later one, it says": library_source().replace(VERSION, "local VERSION = 999"),
    "without version": HEAD + "redis.register_function('other', function() return 1 end)",
}


@pytest.mark.parametrize("code_known", [True, False])
@pytest.mark.parametrize("version", [0, 6, 7, 8])
@pytest.mark.parametrize("same", [True, False])
def test_a_role_loads_what_is_missing_older_or_altered(code_known: bool, version: int, same: bool) -> None:
    """And keeps a later one, which another role has loaded; a library that it may not read counts by its version."""
    code = ("ours" if same else "another") if code_known else None

    step = decide(Loaded(version, code), "ours", 7)

    if code == "ours":
        assert step is LibraryStep.USE
    elif version > 7:
        assert step is LibraryStep.USE_NEWER
    else:
        assert step is (LibraryStep.USE if version == 7 and code is None else LibraryStep.LOAD)


@pytest.mark.parametrize("what", ["altered", "older", "without version"])
async def test_a_role_that_may_loads_its_own(redis: Redis, what: str) -> None:
    """Of the same version and altered is not the same."""
    await redis.execute_command("FUNCTION", "FLUSH")
    await redis.function_load(OTHERS[what], replace=True)

    assert library_version() == await ensure_library(redis)

    assert {NAME: library_source()} == await libraries(redis)


async def test_a_later_one_is_used_and_reported(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """A role of the next version has loaded it."""
    await redis.function_load(OTHERS["a later one, it says"], replace=True)

    assert 999 == await ensure_library(redis)

    assert "version 999, newer than this role's" in caplog.text
    await redis.function_load(library_source(), replace=True)


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("what", ["none", "older"])
async def test_a_role_that_may_not_says_what_to_do(each_server: RedisServer, role: str, what: str) -> None:
    """It can be retried once the library is loaded by a user who may, or the role may. With the right one it works."""
    admin, user = (
        redis_client(url, **PATIENT) for url in (each_server.url, each_server.url.replace("://", f"://{role}:p@"))
    )
    await admin.execute_command("ACL", "SETUSER", role, "reset", "on", ">p", *ROLES[role].split(), "+fcall_ro")
    await admin.execute_command("FUNCTION", "FLUSH")
    if what == "older":
        await admin.function_load(OTHERS["older"])

    with pytest.raises(RedisUnavailable, match=r"may not load it.*\+function\|load"):
        await ensure_library(user)

    await admin.function_load(library_source(), replace=True)
    assert library_version() == await ensure_library(user)
    for client in (admin, user):
        await client.aclose()


# A node of a managed Redis, and a user who can load functions nevertheless


@asynccontextmanager
async def node(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[NodeProcess, Redis, Health]]:
    """A server with its node's process, here, and a client that may do everything."""
    for user in REDIS_USERS:
        (folder / user).write_text(f"password-of-{user}")
    monkeypatch.setattr(
        command, "server_users", lambda given: [*server_users(given), "user intruder on nopass ~* &* +@all"]
    )
    port = free_port_number()
    own = f"127.0.0.1:{port}:{free_port_number()}"
    settings = RedisSettings(
        nodes=[own],
        node=own,
        bind="127.0.0.1",
        data_dir=folder / "data",
        password_dir=folder,
        min_replicas_to_write=0,
        hand_over_s=0,
    )
    health = Health("test", [])
    process = NodeProcess(settings, health)
    await process.start()
    watch = asyncio.create_task(process.watch())
    client = redis_client(f"redis://intruder:x@127.0.0.1:{port}/0", **PATIENT)
    try:
        await eventually(lambda: _is_ours(client), "the library is there")
        yield process, client, health
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)
        await client.aclose()
        await process.stop()


async def eventually(
    condition: Callable[[], Awaitable[bool]], what: str, within_s: float = 15, every_s: float = 0.1
) -> None:
    async with asyncio.timeout(limit_s(within_s)):
        while not await condition():
            await asyncio.sleep(every_s)


async def _is(condition: bool) -> bool:
    return condition


async def _is_ours(client: Redis) -> bool:
    try:
        return await libraries(client) == {NAME: library_source()}
    except Exception:  # noqa: BLE001 - it is on its way up, or busy
        return False


@pytest.mark.parametrize("what", OTHERS)
async def test_a_node_puts_its_own_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Whatever version the other claims, and other libraries go too: logged and counted."""
    async with node(tmp_path, monkeypatch) as (_, client, _):
        repairs = metrics.REDIS_LIBRARY_REPAIRS.labels("127.0.0.1")._value.get()
        await client.function_load(OTHERS[what], replace=True)
        await client.function_load("#!lua name=beside\nredis.register_function('beside', function() return 1 end)")

        await eventually(lambda: _is_ours(client), "ours is back")
        await anchored(HotState(client, "BTCUSDT"))

        assert repairs + 1 <= metrics.REDIS_LIBRARY_REPAIRS.labels("127.0.0.1")._value.get()
    assert "find out who could load one" in caplog.text


async def _alive(process: NodeProcess, health: Health) -> bool:
    return process.state.replication is not None and health.stalled_s < 2


ENDLESS = "#!lua name=endless\nredis.register_function('endless', function(keys) {write} while true do end end)"


def _loaded_and_called(client: Redis, write: str, *names: str) -> asyncio.Task[object]:
    """Begin a function without end; both at once, before the node has removed what is not its own."""
    steps = client.pipeline(transaction=False)
    steps.function_load(ENDLESS.format(write=write))
    steps.fcall("endless", len(names), *names)
    return asyncio.create_task(steps.execute())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["function", "script"])
async def test_a_function_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A busy server is not alive for as long; the node ends what keeps it busy, and it goes on with its data."""
    async with node(tmp_path, monkeypatch) as (process, client, health):
        await client.set("kept", "1")
        if kind == "function":
            call = _loaded_and_called(client, "")
        else:
            call = asyncio.create_task(client.execute_command("EVAL", "while true do end", 0))
        # For five seconds, before the server itself says that it is busy.
        await eventually(lambda: _is(health.stalled_s > 2), "the node is not alive", every_s=0.02)

        await eventually(lambda: _is_ours(client), "it answers again")

        await eventually(lambda: _alive(process, health), "the node is alive again")
        assert b"1" == await client.get("kept")
        await asyncio.gather(call, return_exceptions=True)


@pytest.mark.slow
async def test_one_that_cannot_be_ended_ends_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has written already: the server is killed, its process ends, and a replica takes over."""
    async with node(tmp_path, monkeypatch) as (process, client, _):
        call = _loaded_and_called(client, "redis.call('SET', keys[1], 'x')", "k")

        async with patience():
            assert -9 == await process.ended()

        await asyncio.gather(call, return_exceptions=True)
