"""The users of the managed Redis: each does its own work with its own password, and nobody else's."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from conftest import RedisServer, server_binary
from hot_state_cases import apply, rebuild, stage
from sheetanchor.contract import Gap, keys
from sheetanchor.errors import RedisRefused
from sheetanchor.hot_state import HotState
from sheetanchor.redis_users import NODE, ROLES, server_users
from sheetanchor.settings import REDIS_USERS
from sheetanchor.slots import slot_of
from sheetanchor.transport import LineReader, LineWriter, clear_errors, redis_client, server_identity

DOCUMENT = Path(__file__).parents[2] / "docs" / "hot-state.md"
SYMBOL = "BTCUSDT"
PASSWORDS = {user: f"secret-{user}" for user in (*REDIS_USERS, NODE)}

Do = Callable[[Redis], Awaitable[Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server with the users of a managed one."""
    folder = tmp_path_factory.mktemp("redis")
    users = folder / "users.acl"
    users.write_text("\n".join(server_users(PASSWORDS)) + "\n")
    running = RedisServer(folder, "--aclfile", str(users), binary=server_binary()).start()
    yield running
    running.stop()


@pytest.fixture
async def log_in(server: RedisServer) -> AsyncIterator[Callable[[str], Redis]]:
    """Makes clients of users."""
    clients: list[Redis] = []

    def client(user: str) -> Redis:
        clients.append(redis_client(server.url.replace("://", f"://{user}:{PASSWORDS[user]}@")))
        return clients[-1]

    yield client
    for one in clients:
        await one.aclose()


async def _refused(client: Redis, do: Do) -> None:
    with pytest.raises(RedisRefused, match=r"(?i)permission|may not"), clear_errors("what is not its own"):
        await do(client)


def _gap(rule: str) -> Gap:
    return Gap(SYMBOL, rule, "high", "immediate_reanchor", "a hole", "test", at_us=1, epoch=1)


def hot(client: Redis) -> HotState:
    """The hot state as a user sees it."""
    return HotState(client, SYMBOL)


def test_the_document_has_the_same_rules() -> None:
    """What is written down for servers of others is what the managed ones have."""
    found = dict(re.findall(r"^user (\w+) on >secret (.+)$", DOCUMENT.read_text("utf-8"), re.MULTILINE))

    assert {n: sorted(rules.split()) for n, rules in found.items()} == {n: sorted(r.split()) for n, r in ROLES.items()}


def test_one_user_for_all_roles_has_the_rights_of_each() -> None:
    """The rule for an external server is enough for every role."""
    text = DOCUMENT.with_name("redis.md").read_text("utf-8")
    [rules] = re.findall(r"^ACL SETUSER sheetanchor on >PASSWORD (.+)$", text, re.MULTILINE)

    for role, needed in ROLES.items():
        missing = {word.removeprefix("%R") for word in needed.split()} - set(rules.split())
        assert (role, set()) == (role, missing)


async def test_nobody_gets_in_without_a_password(server: RedisServer) -> None:
    """The default user is off."""
    client = redis_client(server.url)

    with pytest.raises(RedisRefused, match="wants a password"), clear_errors("PING"):
        await client.ping()

    await client.aclose()


async def test_each_role_can_do_its_work(log_in: Callable[[str], Redis]) -> None:
    """From the first frame to a prediction, each step as its own user."""
    ingest, process, reanchor, infer = (log_in(role) for role in ("ingest", "process", "reanchor", "infer"))

    await LineWriter(ingest, SYMBOL, "a").append([(1, b"frame")])
    await hot(ingest).add_gap(_gap("connection_loss"))
    assert (await hot(process).take(1, "a", 0, "")).ok
    assert [batch.line for batch in await LineReader(process, SYMBOL).read(0)] == ["a"]
    assert (await rebuild(hot(reanchor), "one", 0, 100)).ok
    assert [batch.line for batch in await LineReader(reanchor, SYMBOL).read(0)] == ["a"]
    assert (await apply(hot(process), 101, book=b"packed")).ok
    assert (await hot(process).suspect(1, "a", 1, 0, "gap")).ok
    await hot(process).add_gap(_gap("sequence_gap"))
    read = await hot(infer).read()
    reply = await hot(infer).commit_prediction(slot_of(read.now_us), {"mode": "model"})
    assert (read.incomplete, reply.status in {"COMMITTED", "REFUSED"}) == ("", True)
    for client in (ingest, process, reanchor, infer):
        assert (await server_identity(client)).role == "master"
        assert (await client.execute_command("ROLE"))[0] == b"master"


NOT_ITS_OWN: dict[str, tuple[str, Do]] = {
    "infer writes the hot state": ("infer", lambda redis: apply(hot(redis), 102)),
    "infer becomes the writer": ("infer", lambda redis: hot(redis).take(9, "x", 0, "", force=True)),
    "infer stages a rebuild": ("infer", lambda redis: stage(hot(redis), "x", 100)),
    "infer sets a hot key": ("infer", lambda redis: redis.hset(keys(SYMBOL).ob, "best_bid", "1")),
    "infer reads raw frames": ("infer", lambda redis: redis.xrange(keys(SYMBOL).gaps)),
    "ingest commits a prediction": ("ingest", lambda redis: hot(redis).commit_prediction(1, {"mode": "model"})),
    "ingest reads the hot state": ("ingest", lambda redis: redis.hgetall(keys(SYMBOL).ob)),
    "ingest swaps": ("ingest", lambda redis: hot(redis).lock("x")),
    "process commits a prediction": ("process", lambda redis: hot(redis).commit_prediction(1, {"mode": "model"})),
    "process writes frames": ("process", lambda redis: LineWriter(redis, SYMBOL, "a").append([(1, b"frame")])),
    "process makes a line": ("process", lambda redis: redis.sadd(keys(SYMBOL).lines, "x")),
    "reanchor commits a prediction": ("reanchor", lambda redis: hot(redis).commit_prediction(1, {"mode": "model"})),
    "reanchor invents gaps": ("reanchor", lambda redis: redis.xadd(keys(SYMBOL).gaps, {"rule": "x"})),
    "reanchor writes frames": ("reanchor", lambda redis: redis.xadd(f"sbe:{{{SYMBOL}}}:a", {"f": "x"})),
    "infer replaces the library": ("infer", lambda redis: redis.function_load("#!lua name=sheetanchor\n")),
    "replica reads": ("replica", lambda redis: redis.get(keys(SYMBOL).book)),
    "sentinel reads": ("sentinel", lambda redis: redis.get(keys(SYMBOL).book)),
    "sentinel ends the server": ("sentinel", lambda redis: redis.execute_command("SHUTDOWN", "NOSAVE")),
    "node reads": (NODE, lambda redis: redis.get(keys(SYMBOL).book)),
}


@pytest.mark.parametrize("what", NOT_ITS_OWN)
async def test_nobody_can_do_what_is_not_its_own(log_in: Callable[[str], Redis], what: str) -> None:
    """Whoever breaks into one role has that role's rights and no more."""
    user, do = NOT_ITS_OWN[what]

    await _refused(log_in(user), do)


@pytest.mark.parametrize("user", [*ROLES, NODE])
@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "CONFIG GET *", "ACL LIST", "KEYS *", "CLIENT KILL TYPE normal", "REPLICAOF NO ONE", "EVAL x 0"],
)
async def test_nobody_administrates(log_in: Callable[[str], Redis], user: str, command: str) -> None:
    """Neither the server nor the data of everybody."""
    await _refused(log_in(user), lambda redis: redis.execute_command(*command.split()))
