"""The users of the managed Redis: each has a password of its own and only the rights that it needs."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from conftest import RedisServer, server_binary
from sheetanchor.contract import Gap, keys
from sheetanchor.errors import RedisRefused
from sheetanchor.infer.slots import slot_of
from sheetanchor.managed_redis.acl_users import NODE, ROLES, server_users
from sheetanchor.runtime.settings import REDIS_USERS
from sheetanchor.store.frame_streams import LineReader, LineWriter
from sheetanchor.store.function_library import library_source
from sheetanchor.store.hot_state import HotState
from sheetanchor.store.redis_client import redis_client, server_identity
from sheetanchor.store.redis_connection import translate_errors
from support.hot_state_cases import apply, rebuild, stage
from support.patience import PATIENT

DOCUMENT = Path(__file__).parents[3] / "docs" / "hot-state.md"
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
    with sync_redis.Redis(port=running.port, username=NODE, password=PASSWORDS[NODE]) as node:
        node.function_load(library_source())
    yield running
    running.stop()


@pytest.fixture
async def log_in(server: RedisServer) -> AsyncIterator[Callable[[str], Redis]]:
    """Makes clients of users."""
    clients: list[Redis] = []

    def client(user: str) -> Redis:
        clients.append(redis_client(server.url.replace("://", f"://{user}:{PASSWORDS[user]}@"), **PATIENT))
        return clients[-1]

    yield client
    for one in clients:
        await one.aclose()


async def _refused(client: Redis, do: Do) -> None:
    with pytest.raises(RedisRefused, match=r"(?i)permission|may not"), translate_errors("what is not its own"):
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

    with pytest.raises(RedisRefused, match="requires a password"), translate_errors("PING"):
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
    """An attacker with one role's password has that role's rights and no more."""
    user, do = NOT_ITS_OWN[what]

    await _refused(log_in(user), do)


@pytest.mark.parametrize("user", [*ROLES, NODE])
@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "CONFIG GET *", "ACL LIST", "KEYS *", "CLIENT KILL TYPE normal", "REPLICAOF NO ONE", "EVAL x 0"],
)
async def test_nobody_administrates(log_in: Callable[[str], Redis], user: str, command: str) -> None:
    """No user administrates the server or reads the data of all."""
    await _refused(log_in(user), lambda redis: redis.execute_command(*command.split()))


# Every command of the server and every key, for every user

CONNECT = "auth client|setinfo client|setname hello ping quit reset"
STATE = "info role time"
REBUILD = (
    "del exists expire fcall fcall_ro get hdel hget hgetall hmget hset persist rename set smembers type xadd "
    "xinfo|stream xrange xread xrevrange"
)
MAY: dict[str, str] = {
    "ingest": f"{CONNECT} {STATE} memory|usage pexpire sadd xadd xinfo|stream xtrim",
    "process": f"{CONNECT} {STATE} {REBUILD} hexists",
    "reanchor": f"{CONNECT} {STATE} {REBUILD}",
    "infer": (f"{CONNECT} {STATE} del exists expire fcall fcall_ro hget hgetall hset type xadd xrange xrevrange xtrim"),
    "replica": "ping psync replconf",
    "sentinel": (
        "client|kill client|setname config|rewrite exec failover info multi ping publish replicaof role "
        "script|kill slaveof subscribe"
    ),
    NODE: (
        f"{CONNECT} client|pause client|unpause function|delete function|kill function|list function|load info role "
        "script|kill"
    ),
    "default": "",
}
"""All commands of each user. A change of a rule changes this too, and docs/redis.md, which says what it is for."""

ANYBODYS = {"auth", "hello", "quit", "reset"}
"""What a server allows every client, logged in or not."""

HOT = (
    *("ob:{B}", "ob:new:{B}", "book:{B}", "book:new:{B}", "tr:{B}:1s", "tr:new:{B}:5s", "feat:{B}", "feat:new:{B}"),
    "anchor:{B}",
)
KEYS = (*HOT, "reanchor:{B}", "receipts:{B}", "gaps:{B}", "sbe:{B}:a", "lines:{B}", "pred:{B}", "preds:{B}", "else", "")
WRITES: dict[str, set[str]] = {
    "ingest": {"sbe:{B}:a", "lines:{B}", "gaps:{B}"},
    "process": {*HOT, "reanchor:{B}", "receipts:{B}", "gaps:{B}"},
    "reanchor": {*HOT, "reanchor:{B}", "receipts:{B}"},
    "infer": {"pred:{B}", "preds:{B}"},
    "replica": set(),
    "sentinel": set(),
    NODE: set(),
    "default": set(),
}
READS: dict[str, set[str]] = {
    **WRITES,
    "process": {*WRITES["process"], "sbe:{B}:a", "lines:{B}"},
    "reanchor": {*WRITES["reanchor"], "sbe:{B}:a", "lines:{B}"},
    "infer": {*WRITES["infer"], *(key for key in HOT if not key.startswith("book")), "reanchor:{B}"},
}


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Redis]:
    """A user with all rights, on a server with the users of a managed one."""
    users = tmp_path / "users.acl"
    users.write_text("\n".join([*server_users(PASSWORDS), "user admin on nopass ~* &* +@all"]) + "\n")
    running = RedisServer(tmp_path, "--aclfile", str(users), binary=server_binary()).start()
    client = redis_client(running.url.replace("://", "://admin:x@"), **PATIENT)
    yield client
    await client.aclose()
    running.stop()


async def commands_of(admin: Redis) -> dict[str, int]:
    """Every command and sub-command of a server, with the least number of words of it."""
    found: dict[str, int] = {}
    for one in (await admin.execute_command("COMMAND")).values():
        subcommands = one.get("subcommands") or []
        for name, arity in [(sub[0], sub[1]) for sub in subcommands] or [(one["name"], one["arity"])]:
            found[(name.decode() if isinstance(name, bytes) else name).lower()] = abs(int(arity))
    return found


@pytest.mark.parametrize("user", MAY)
async def test_each_user_has_the_commands_of_its_work_and_no_more(admin: Redis, user: str) -> None:
    """Every command that the server knows is tried as each user, on keys that are its own."""
    own = min(WRITES[user] or READS[user] or {"else"})
    commands = await commands_of(admin)
    allowed = set()
    for command, words in commands.items():
        name, _, sub = command.partition("|")
        said = [name, *([sub] if sub else [])]
        answer = await _dry_run(admin, user, said + [own] * (words - len(said)))
        if "no permissions to run the" not in answer:
            allowed.add(command)

    assert len(commands) > 250
    assert set(MAY[user].split()) | ANYBODYS == allowed


@pytest.mark.parametrize("user", MAY)
async def test_each_user_has_the_keys_of_its_work_and_no_more(admin: Redis, user: str) -> None:
    """Every kind of key is read and written with a user's own pattern of keys, whatever command does it."""
    rules = {**dict(re.findall(r"^user (\w+) (.+)$", "\n".join(server_users(PASSWORDS)), re.MULTILINE))}
    patterns = [word for word in rules[user].split() if word.startswith(("~", "%"))]
    await admin.execute_command("ACL", "SETUSER", "like", "reset", "on", "+get", "+set", "+getset", *patterns)

    reads = {key for key in KEYS if await _dry_run(admin, "like", ["GET", key]) == "OK"}
    writes = {key for key in KEYS if await _dry_run(admin, "like", ["SET", key, "x"]) == "OK"}

    assert (READS[user], WRITES[user]) == (reads, writes)


async def _dry_run(admin: Redis, user: str, words: list[str]) -> str:
    try:
        answer = await admin.execute_command("ACL", "DRYRUN", user, *words)
    except ResponseError as error:
        return str(error)
    return answer.decode() if isinstance(answer, bytes) else str(answer)


INTRUSIONS: dict[str, tuple[str, ...]] = {
    "replaces the library": ("FUNCTION", "LOAD", "REPLACE", "#!lua name=sheetanchor\n"),
    "loads a library": ("FUNCTION", "LOAD", "#!lua name=other\n"),
    "removes the library": ("FUNCTION", "DELETE", "sheetanchor"),
    "removes all libraries": ("FUNCTION", "FLUSH"),
    "restores libraries": ("FUNCTION", "RESTORE", "x"),
    "runs a script": ("EVAL", "return 1", "0"),
    "loads a script": ("SCRIPT", "LOAD", "return 1"),
    "looks into another database": ("SELECT", "1"),
    "tracks keys": ("CLIENT", "TRACKING", "ON", "BCAST"),
    "moves a key away": ("MOVE", "ob:{B}", "1"),
}


@pytest.mark.parametrize("user", ROLES)
@pytest.mark.parametrize("what", INTRUSIONS)
async def test_no_role_acts_as_another(log_in: Callable[[str], Redis], user: str, what: str) -> None:
    """Functions run with the rights of their caller, so only the node may load them."""
    await _refused(log_in(user), lambda redis: redis.execute_command(*INTRUSIONS[what]))
