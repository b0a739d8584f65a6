"""The hot state when the server or the caller's rights fail: memory, restarts, replicas, passwords, permissions."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from redis import exceptions
from redis.asyncio import Redis

from conftest import RedisServer, free_port_number
from sheetanchor import errors
from sheetanchor.contract import keys, slot_of
from sheetanchor.store.frame_streams import LineReader, LineWriter
from sheetanchor.store.function_library import ensure_library, library_source, library_version
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import check_connection, redis_client, server_identity
from sheetanchor.store.redis_connection import translated_error
from support.hot_state_cases import anchored, apply, fingerprint, rebuild, stage
from support.patience import PATIENT, patience

DOCUMENT = Path(__file__).parents[3] / "docs" / "hot-state.md"


@pytest.fixture
def own_server(each_server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Start servers of the present kind with options of their own."""
    started: list[RedisServer] = []

    def start(*options: str) -> RedisServer:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        server = RedisServer(folder, *options, binary=each_server.binary)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


@pytest.fixture
async def full(redis: Redis) -> AsyncIterator[Callable[[bool], asyncio.Future[None]]]:
    """A switch that makes the server be out of memory."""

    async def switch(out_of_memory: bool) -> None:
        await redis.config_set("maxmemory", "1" if out_of_memory else "0")

    yield switch
    await redis.config_set("maxmemory", "0")


# --- out of memory ------------------------------------------------------------------------------------------------


async def test_out_of_memory_refuses_writes_as_a_whole(hot: HotState, redis: Redis, full: Callable) -> None:
    """Apply, stage, swap, take and commit each change nothing and say that memory is the reason."""
    await anchored(hot)
    await hot.lock("one")
    await stage(hot, "one", 110)
    before = await fingerprint(redis)
    await full(True)

    calls = [apply(hot, 111), stage(hot, "one", 111), hot.swap("one", 1, 110, 110, "r"), hot.take(2, "a", 1, "a")]
    calls.append(hot.commit_prediction(slot_of(int(time.time() * 1e6)), {"mode": "model"}))
    results = await asyncio.gather(*calls, return_exceptions=True)

    assert [type(result) for result in results] == [errors.RedisOutOfMemory] * 5
    assert before == await fingerprint(redis)
    await full(False)
    assert (await hot.swap("one", 1, 110, 110, "r")).ok


async def test_out_of_memory_still_reads_doubts_and_cleans_up(hot: HotState, redis: Redis, full: Callable) -> None:
    """What frees memory or must not be lost works without any to spare."""
    await anchored(hot)
    await hot.lock("one")
    await stage(hot, "one", 110)
    await full(True)

    read, doubted, unlocked = await hot.read(), await hot.suspect(1, "a", 1, 0, "no memory"), await hot.unlock("one")

    assert (read.incomplete, doubted.ok, unlocked) == ("", True, True)
    assert not [key async for key in redis.scan_iter("*new*")]


# --- the library --------------------------------------------------------------------------------------------------


async def test_a_flushed_library_is_loaded_again(hot: HotState, redis: Redis) -> None:
    """A function that is gone between two calls is loaded by the next call, which then succeeds."""
    await anchored(hot)
    await redis.execute_command("FUNCTION", "FLUSH")

    assert (await apply(hot, 101)).ok


async def test_a_server_that_lost_everything_is_noticed(own_server: Callable[..., RedisServer]) -> None:
    """After a restart without persistence calls work, the anchor is absent, and the identity has changed."""
    server = own_server()
    client = redis_client(server.url)
    hot = HotState(client, "BTCUSDT")
    await anchored(hot)
    before = await server_identity(client)
    server.stop()
    server.start()

    fenced, after = await apply(hot, 101), await server_identity(client)

    assert (fenced.status, fenced.epoch, fenced.term) == ("FENCED", 0, 0)
    assert before.replication_id != after.replication_id
    assert before.run_id != after.run_id
    await client.aclose()


async def test_an_older_library_is_replaced_and_a_newer_kept(redis: Redis) -> None:
    """Roles of different versions do not take turns in replacing each other's library."""
    mine = f"local VERSION = {library_version()}"

    await redis.function_load(library_source().replace(mine, "local VERSION = 0"), replace=True)
    after_older = await ensure_library(redis)
    await redis.function_load(library_source().replace(mine, "local VERSION = 99"), replace=True)
    after_newer = await ensure_library(redis)

    assert (after_older, after_newer) == (library_version(), 99)
    await redis.function_load(library_source(), replace=True)


async def test_a_library_of_the_same_name_without_version_is_replaced(redis: Redis) -> None:
    """Whatever else took the name gives way."""
    await redis.execute_command("FUNCTION", "FLUSH")
    await redis.function_load("#!lua name=sheetanchor\nredis.register_function('other', function() return 1 end)")

    assert await ensure_library(redis) == library_version()


async def test_many_roles_starting_at_once_agree(each_server: RedisServer, redis: Redis) -> None:
    """Eight clients that find the library missing all end with a working one."""
    await redis.execute_command("FUNCTION", "FLUSH")
    clients = [redis_client(each_server.url) for _ in range(8)]

    reads = await asyncio.gather(*(HotState(client, "BTCUSDT").read() for client in clients))

    assert [read.epoch for read in reads] == [0] * 8
    await asyncio.gather(*(client.aclose() for client in clients))


# --- replicas -----------------------------------------------------------------------------------------------------


async def test_a_replica_reads_and_refuses_writes(own_server: Callable[..., RedisServer]) -> None:
    """The library and the state are replicated: reading works there, writing says what to try instead."""
    master = own_server("--repl-diskless-sync-delay", "0")
    replica = own_server("--replicaof", "127.0.0.1", str(master.port))
    writer, reader = redis_client(master.url), redis_client(replica.url)
    await anchored(HotState(writer, "BTCUSDT"))
    there = HotState(reader, "BTCUSDT")
    async with patience():
        while not await reader.exists("anchor:{BTCUSDT}"):
            await asyncio.sleep(0.05)

    read = await there.read()

    assert (read.incomplete, read.epoch) == ("", 1)
    with pytest.raises(errors.RedisUnavailable, match=r"READONLY|read only"):
        await apply(there, 101)
    await asyncio.gather(writer.aclose(), reader.aclose())


async def test_too_few_replicas_refuse_writes(hot: HotState, redis: Redis) -> None:
    """A master that lost its replicas refuses before any effect, and the error is worth another try."""
    await anchored(hot)
    before = await fingerprint(redis)
    await redis.config_set("min-replicas-to-write", "1")

    with pytest.raises(errors.RedisUnavailable, match=r"NOREPLICAS|[Rr]eplicas") as caught:
        await apply(hot, 101)

    await redis.config_set("min-replicas-to-write", "0")
    assert errors.is_retryable(caught.value)
    assert before == await fingerprint(redis)


async def test_a_replica_without_its_master_says_so(own_server: Callable[..., RedisServer]) -> None:
    """A replica that must not serve old data answers RedisUnavailable."""
    replica = own_server("--replicaof", "127.0.0.1", str(free_port_number()), "--replica-serve-stale-data", "no")
    client = redis_client(replica.url)

    with pytest.raises(errors.RedisUnavailable, match=r"MASTERDOWN|[Ll]ink with MASTER|[Mm]aster"):
        await HotState(client, "BTCUSDT").read()
    await client.aclose()


# --- reaching the server ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["", ":wrong@"])
async def test_a_missing_or_wrong_password_is_one_clear_error(
    own_server: Callable[..., RedisServer], given: str
) -> None:
    """Both are refused for good, in one line, without the password in it."""
    server = own_server("--requirepass", "right")
    client = redis_client(server.url.replace("://", f"://{given}"))

    with pytest.raises(errors.RedisRefused, match=r"(?i)auth|password") as caught:
        await check_connection(client)

    assert not errors.is_retryable(caught.value)
    assert "\n" not in str(caught.value)
    assert "wrong@" not in str(caught.value)
    await client.aclose()


async def test_the_password_file_wins_over_the_url(own_server: Callable[..., RedisServer], tmp_path: Path) -> None:
    """A password from a file is used with its line end stripped, whatever the URL says."""
    server = own_server("--requirepass", "right")
    file = tmp_path / "password"
    file.write_text("right\n")
    client = redis_client(server.url.replace("://", "://:wrong@"), file)

    await check_connection(client)

    await client.aclose()


async def test_a_missing_password_file_is_a_bad_setting(tmp_path: Path) -> None:
    """The error names the setting and the file."""
    with pytest.raises(errors.BadSettings, match=r"redis_password_file: cannot read .*absent"):
        redis_client("redis://127.0.0.1:1/0", tmp_path / "absent")


async def test_nobody_listening_is_unavailable_soon() -> None:
    """A refused connection is reported after a bounded number of tries."""
    client = redis_client(f"redis://127.0.0.1:{free_port_number()}/0")

    async with patience():
        with pytest.raises(errors.RedisUnavailable):
            await HotState(client, "BTCUSDT").read()
    await client.aclose()


async def test_a_server_that_hangs_is_unavailable_soon(own_server: Callable[..., RedisServer]) -> None:
    """No call waits for ever: a stopped server gives RedisUnavailable, and once it runs again the same client works."""
    server = own_server()
    patient = redis_client(server.url, **PATIENT)
    await anchored(HotState(patient, "BTCUSDT"))
    await patient.aclose()
    client = redis_client(server.url, socket_timeout_s=0.2, connect_timeout_s=0.2)
    hot = HotState(client, "BTCUSDT")
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)

    async with patience():
        with pytest.raises(errors.RedisUnavailable):
            await hot.read()

    server.process.send_signal(signal.SIGCONT)
    async with patience():
        while True:  # so little time may be too little for it on a busy machine, too
            with contextlib.suppress(errors.RedisUnavailable):
                assert (await hot.read()).epoch == 1
                break
    await client.aclose()


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (exceptions.BusyLoadingError("LOADING Redis is loading the dataset in memory"), errors.RedisUnavailable),
        (exceptions.ResponseError("BUSY Redis is busy running a script"), errors.RedisUnavailable),
        (exceptions.ResponseError("MISCONF Redis is configured to save RDB snapshots"), errors.RedisUnavailable),
        (exceptions.TimeoutError("Timeout reading"), errors.RedisUnavailable),
        (OSError("no route to host"), errors.RedisUnavailable),
        (exceptions.OutOfMemoryError("command not allowed"), errors.RedisOutOfMemory),
        (exceptions.AuthenticationError("WRONGPASS"), errors.RedisRefused),
        (exceptions.NoPermissionError("NOPERM"), errors.RedisRefused),
        (exceptions.ResponseError("WRONGTYPE Operation"), errors.RedisRefused),
    ],
)
def test_each_answer_has_its_error(raised: Exception, expected: type[Exception]) -> None:
    """What Redis says decides between worth another try, out of memory and refused."""
    assert type(translated_error(raised, "GET x")) is expected


async def test_a_cancelled_call_leaves_the_client_usable(hot: HotState) -> None:
    """The reply to a call that was given up is never taken for the next call's."""
    await anchored(hot)

    for _ in range(50):
        call = asyncio.ensure_future(hot.read())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert await hot.book() == b"a packed book100"


# --- permissions --------------------------------------------------------------------------------------------------


async def _log_in(redis: Redis, server: RedisServer, role: str, *extra: str) -> Redis:
    """Make the user that the document describes and log in as it."""
    [rules] = [line.split() for line in DOCUMENT.read_text("utf-8").splitlines() if line.startswith(f"user {role} ")]
    await redis.execute_command("ACL", "DELUSER", role)
    await redis.execute_command("ACL", "SETUSER", *rules[1:], *extra)
    return redis_client(server.url.replace("://", f"://{role}:secret@"))


async def test_the_documented_rights_suffice(hot: HotState, redis: Redis, each_server: RedisServer) -> None:
    """Each role can do all of its calls with the rights that the document gives it, where the library is loaded."""
    await redis.execute_command("FUNCTION", "FLUSH")
    await ensure_library(redis)
    roles = {name: await _log_in(redis, each_server, name) for name in ("process", "reanchor", "infer", "ingest")}
    process, reanchor, infer = (HotState(roles[name], "BTCUSDT") for name in ("process", "reanchor", "infer"))

    assert (await process.take(1, "a", 0, "")).ok
    assert (await rebuild(reanchor, "one", 0, 100)).ok
    assert await reanchor.lock("two")
    assert await reanchor.unlock("two")
    assert (await apply(process, 101, book=b"packed")).ok
    assert (await process.suspect(1, "a", 1, 0, "gap")).ok
    read = await infer.read()
    assert read.incomplete == ""
    assert (await infer.commit_prediction(slot_of(read.now_us), {"mode": "model"})).status in {"COMMITTED", "REFUSED"}
    await LineWriter(roles["ingest"], "BTCUSDT", "a").append([(1, b"frame")])
    for name in ("process", "reanchor"):
        reader = LineReader(roles[name], "BTCUSDT")
        assert await reader.check_trimmed() == []
        assert [batch.line for batch in await reader.read(0)] == ["a"]
    for client in roles.values():
        await server_identity(client)
        await client.aclose()


async def test_inference_may_not_write_the_hot_state(hot: HotState, redis: Redis, each_server: RedisServer) -> None:
    """A role's rights end where its work does."""
    await anchored(hot)
    before = await fingerprint(redis)
    client = await _log_in(redis, each_server, "infer")

    with pytest.raises(errors.RedisRefused, match=r"(?i)permission"):
        await apply(HotState(client, "BTCUSDT"), 101)

    assert before == await fingerprint(redis)
    await client.aclose()


@pytest.mark.parametrize("lacking", ["-rename", "-persist", "-expire", "-hdel", "-del", "-hset"])
async def test_a_missing_right_does_not_stop_a_swap_half_way(
    hot: HotState, redis: Redis, each_server: RedisServer, lacking: str
) -> None:
    """Rights are checked before the first write: without one of them nothing changes."""
    await anchored(hot)
    await hot.lock("one")
    await stage(hot, "one", 110)
    before = await fingerprint(redis)
    client = await _log_in(redis, each_server, "reanchor", lacking)

    with pytest.raises(errors.RedisRefused, match=f"(?i)this user may not run {lacking[1:]}"):
        await HotState(client, "BTCUSDT").swap("one", 1, 110, 110, "r")

    assert before == await fingerprint(redis)
    await client.aclose()


@pytest.mark.parametrize("lacking", ["-expire", "-del", "-set", "-hset"])
async def test_a_missing_right_does_not_stop_an_apply_half_way(
    hot: HotState, redis: Redis, each_server: RedisServer, lacking: str
) -> None:
    """The same for the processor's write."""
    await anchored(hot)
    before = await fingerprint(redis)
    client = await _log_in(redis, each_server, "process", lacking)

    with pytest.raises(errors.RedisRefused, match=f"(?i)this user may not run {lacking[1:]}"):
        await apply(HotState(client, "BTCUSDT"), 101, book=b"packed")

    assert before == await fingerprint(redis)
    await client.aclose()


# --- cluster ------------------------------------------------------------------------------------------------------


async def test_all_keys_of_a_symbol_share_a_cluster_slot(own_server: Callable[..., RedisServer]) -> None:
    """On a server in cluster mode a whole life of the hot state works, because no call crosses slots."""
    server = own_server("--cluster-enabled", "yes", "--cluster-port", str(free_port_number()))
    client = redis_client(server.url)
    await client.execute_command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
    async with patience():
        while b"cluster_state:ok" not in await _cluster_info(client):
            await asyncio.sleep(0.05)
    hot = HotState(client, "BTCUSDT")

    await anchored(hot)
    await apply(hot, 101, book=b"packed")
    await hot.suspect(1, "a", 1, 105, "gap")
    reply = await rebuild(hot, "second", 1, 110)

    read = await hot.read()
    assert (reply.ok, read.incomplete, read.epoch) == (True, "", 2)
    assert (await hot.commit_prediction(slot_of(read.now_us), {"mode": "model"})).status in {"COMMITTED", "REFUSED"}
    names = [getattr(keys("BTCUSDT"), name) for name in keys("BTCUSDT").__slots__ if name != "symbol"]
    assert len({await client.execute_command("CLUSTER", "KEYSLOT", name) for name in names}) == 1
    await client.aclose()


async def _cluster_info(client: Redis) -> bytes:
    answer = await client.execute_command("CLUSTER", "INFO")
    return str(answer).replace("': '", ":").encode() if not isinstance(answer, bytes) else answer
