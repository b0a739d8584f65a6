"""As what a node of the managed Redis may start, and what its files say."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from sheetanchor.errors import BadSettings
from sheetanchor.managed_redis.acl_users import NODE, ROLES, read_passwords, sentinel_users, server_users
from sheetanchor.managed_redis.command import nodes_of
from sheetanchor.managed_redis.config_files import (
    Tuning,
    read_sentinel_file,
    sentinel_config,
    sentinel_id,
    server_config,
)
from sheetanchor.managed_redis.peers import parse_info
from sheetanchor.managed_redis.topology import (
    PROMOTION_WAIT_S,
    SETTLE_S,
    NodeStep,
    ObservedServer,
    RedisNode,
    SentinelReport,
    TopologyObservation,
    decide_monitored,
    decide_start,
    named_master,
    own_node,
    parse_node,
)
from sheetanchor.runtime.settings import REDIS_USERS, RedisSettings
from sheetanchor.store.sentinel_pool import Master, newest, parse_master

A, B, C = NODES = (RedisNode("a"), RedisNode("b"), RedisNode("c"))
EMPTY = ObservedServer("slave", master=A.address)
FULL = ObservedServer("slave", has_data=True, master=A.address, offset=10)
PASSWORDS = {user: f"secret-{user}" for user in (*REDIS_USERS, NODE)}
TUNING = Tuning("*", "sheetanchor", 2, 2500, 5000, 1, 2, 1000, persistent=False)


def sentinels(master: RedisNode, epoch: int = 1, *nodes: RedisNode) -> dict[RedisNode, SentinelReport]:
    return dict.fromkeys(nodes or NODES, SentinelReport(master.address, epoch))


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("redis-0.redis", RedisNode("redis-0.redis", 6379, 26379)),
        ("localhost:7000", RedisNode("localhost", 7000, 26379)),
        ("localhost:7000:7001", RedisNode("localhost", 7000, 7001)),
    ],
)
def test_a_node_is_a_host_and_up_to_two_ports(text: str, expected: RedisNode) -> None:
    """Ports that are not named are the usual ones."""
    assert parse_node(text) == expected


@pytest.mark.parametrize("text", ["", "a b", "a:0", "a:1:70000", "a:5:5", "a:1:2:3", "a:x"])
def test_what_is_no_node_is_refused(text: str) -> None:
    """The message says what was expected."""
    with pytest.raises(ValueError, match="expected HOST"):
        parse_node(text)


def test_a_pod_finds_itself_among_the_nodes_by_its_name() -> None:
    """`btc-redis-1` is `btc-redis-1.btc-redis.ns.svc`, and not `btc-redis-10`."""
    nodes = [parse_node(f"btc-redis-{number}.btc-redis.ns.svc") for number in (0, 1, 10)]

    assert own_node(nodes, "", "btc-redis-1") == nodes[1]
    with pytest.raises(ValueError, match="is none of the nodes"):
        own_node(nodes, "", "btc-redis")


def test_bad_nodes_are_reported_as_settings() -> None:
    """The setting is named, and so is what stands there."""
    with pytest.raises(BadSettings, match=r"nodes: expected HOST.*'x y'"):
        nodes_of(RedisSettings(nodes=["x y"]))
    with pytest.raises(BadSettings, match="node: 'd' is none of the nodes a:6379, b:6379"):
        nodes_of(RedisSettings(nodes=["a", "b"], node="d"))


# --- as what a server starts --------------------------------------------------------------------------------------


def test_the_highest_epoch_names_the_master() -> None:
    """A Sentinel that has only just started knows less than one that has seen a failover."""
    seen = TopologyObservation(
        {A: SentinelReport(A.address, 0), B: SentinelReport(B.address, 3), C: SentinelReport(A.address, 2)}
    )

    assert named_master(seen) == B.address


def test_a_node_follows_the_master_that_the_sentinels_name() -> None:
    """Whatever it was before, with data or without."""
    seen = TopologyObservation(sentinels(B), {B: ObservedServer("master", has_data=True)})

    for own_data in (False, True):
        decision = decide_start(A, NODES, seen, own_data=own_data, waited_s=0)
        assert (decision.step, decision.master) == (NodeStep.REPLICA, B.address)


def test_a_master_that_lost_its_data_has_another_promoted_first() -> None:
    """Started at once as the empty master, it would make its replicas forget everything."""
    seen = TopologyObservation(sentinels(A), {B: FULL, C: EMPTY})

    assert decide_start(A, NODES, seen, own_data=False, waited_s=0).step is NodeStep.FAIL_OVER
    assert decide_start(A, NODES, seen, own_data=False, waited_s=PROMOTION_WAIT_S - 1).step is NodeStep.FAIL_OVER


def test_a_set_without_a_master_is_not_left_so_for_ever() -> None:
    """If no replica can be promoted, an empty master is better than none: the state is rebuilt from the exchange."""
    seen = TopologyObservation(sentinels(A), {B: FULL, C: EMPTY})

    decision = decide_start(A, NODES, seen, own_data=False, waited_s=PROMOTION_WAIT_S)

    assert (decision.step, decision.master) == (NodeStep.MASTER, A.address)


def test_a_master_with_its_data_on_disk_goes_on() -> None:
    """Nothing would be lost by that."""
    seen = TopologyObservation(sentinels(A), {B: FULL, C: FULL})

    assert decide_start(A, NODES, seen, own_data=True, waited_s=0).step is NodeStep.MASTER


def test_the_named_master_of_an_empty_set_starts_once_all_have_answered() -> None:
    """Those that do not answer may have data, for some seconds."""
    some, everybody = (
        TopologyObservation(sentinels(A), {B: EMPTY}),
        TopologyObservation(sentinels(A), {B: EMPTY, C: EMPTY}),
    )

    assert decide_start(A, NODES, some, own_data=False, waited_s=0).step is NodeStep.WAIT
    assert decide_start(A, NODES, some, own_data=False, waited_s=SETTLE_S).step is NodeStep.MASTER
    assert decide_start(A, NODES, everybody, own_data=False, waited_s=0).step is NodeStep.MASTER


@pytest.mark.parametrize(("own", "step"), [(A, NodeStep.MASTER), (B, NodeStep.REPLICA), (C, NodeStep.REPLICA)])
def test_the_first_node_is_master_of_a_set_that_never_ran(own: RedisNode, step: NodeStep) -> None:
    """All decide the same without having spoken with one another, and none does so at once."""
    assert decide_start(own, NODES, TopologyObservation(), own_data=False, waited_s=0).step is NodeStep.WAIT

    decision = decide_start(own, NODES, TopologyObservation(), own_data=False, waited_s=SETTLE_S)

    assert (decision.step, decision.master) == (step, A.address)


def test_without_sentinels_a_running_master_is_followed() -> None:
    """The first node must not come up as a second one beside it."""
    seen = TopologyObservation({}, {B: ObservedServer("master", has_data=True, offset=5), C: ObservedServer("master")})

    decision = decide_start(A, NODES, seen, own_data=False, waited_s=100)

    assert (decision.step, decision.master) == (NodeStep.REPLICA, B.address)


def test_without_sentinels_replicas_with_data_are_not_wiped() -> None:
    """They follow this node, which has nothing: a Sentinel has to promote one of them first."""
    seen = TopologyObservation({}, {B: FULL, C: FULL})

    assert decide_start(A, NODES, seen, own_data=False, waited_s=SETTLE_S).step is NodeStep.WAIT
    assert decide_start(A, NODES, seen, own_data=False, waited_s=PROMOTION_WAIT_S).step is NodeStep.MASTER
    other = replace(FULL, master=B.address)
    decision = decide_start(A, NODES, TopologyObservation({}, {C: other}), own_data=False, waited_s=SETTLE_S)
    assert (decision.step, decision.master) == (NodeStep.REPLICA, B.address)


# --- what a Sentinel watches --------------------------------------------------------------------------------------


def test_a_sentinel_watches_what_others_or_its_file_say_then_a_master_then_the_first_node() -> None:
    """In this order, and only the last one after a while."""
    named = decide_monitored(NODES, TopologyObservation(sentinels(C), {B: ObservedServer("master")}), waited_s=0)
    running = decide_monitored(NODES, TopologyObservation({}, {B: ObservedServer("master"), C: EMPTY}), waited_s=0)
    at_first = decide_monitored(NODES, TopologyObservation(), waited_s=0)
    later = decide_monitored(NODES, TopologyObservation(), waited_s=SETTLE_S)

    assert [named.master, running.master, at_first.step, later.master] == [
        C.address,
        B.address,
        NodeStep.WAIT,
        A.address,
    ]


def test_a_sentinels_file_is_read_back() -> None:
    """It writes its knowledge into the file that it was started with."""
    text = sentinel_config(A, NODES, SentinelReport(B.address, 7), PASSWORDS, TUNING, "/data")

    assert read_sentinel_file(text, "sheetanchor") == SentinelReport(B.address, 7)
    assert read_sentinel_file(text, "other") is None
    assert read_sentinel_file("", "sheetanchor") is None


def test_a_sentinel_knows_all_nodes_from_the_start() -> None:
    """It can promote a replica even if the master is gone, and its own id never changes."""
    lines = sentinel_config(A, NODES, SentinelReport(B.address, 7), PASSWORDS, TUNING, "/data").splitlines()

    replicas = [line for line in lines if line.startswith("sentinel known-replica")]
    others = [line for line in lines if line.startswith("sentinel known-sentinel")]
    assert replicas == ["sentinel known-replica sheetanchor a 6379", "sentinel known-replica sheetanchor c 6379"]
    assert others == [f"sentinel known-sentinel sheetanchor {n.host} 26379 {sentinel_id(n)}" for n in (B, C)]
    assert f"sentinel myid {sentinel_id(A)}" in lines
    assert len(sentinel_id(A)) == 40


# --- the configuration of a server --------------------------------------------------------------------------------


def test_a_server_keeps_what_is_in_memory_and_refuses_rather_than_evicts() -> None:
    """The file sets everything that the hot state depends on, so that changed defaults do not matter."""
    lines = server_config(A, A.address, PASSWORDS, TUNING, "/data", "/config").splitlines()

    for line in (
        "maxmemory-policy noeviction",
        "min-replicas-to-write 1",
        "min-replicas-max-lag 2",
        "lazyfree-lazy-server-del yes",
        "repl-diskless-sync yes",
        "appendonly no",
        "replica-announce-ip a",
    ):
        assert line in lines
    assert not any(line.startswith("replicaof") for line in lines)


def test_a_replica_gets_its_master_and_a_disk_is_used() -> None:
    """Both are all that differs."""
    lines = server_config(A, B.address, PASSWORDS, replace(TUNING, persistent=True), "/data", "/config").splitlines()

    assert {"replicaof b 6379", "appendonly yes"} <= set(lines)


def test_users_are_listed_with_hashes_and_the_default_one_is_off() -> None:
    """Reading the file reveals no password."""
    for lines in (server_users(PASSWORDS), sentinel_users(PASSWORDS)):
        assert lines[0] == "user default reset off"
        assert not any(password in line for password in PASSWORDS.values() for line in lines)
        [line] = [line for line in lines if line.startswith("user infer ")]
        assert f" #{hashlib.sha256(PASSWORDS['infer'].encode()).hexdigest()} " in line


def test_no_workload_may_administrate() -> None:
    """No user has all commands or all keys."""
    for rules in ROLES.values():
        words = rules.split()
        assert words[0] == "-@all"
        assert not {"+@all", "allcommands", "~*", "allkeys", "+acl", "+config", "+flushall", "+keys"} & set(words)


@pytest.mark.parametrize("content", [None, "", "two words"])
def test_a_missing_or_odd_password_is_reported_by_its_file(tmp_path: Path, content: str | None) -> None:
    """And never shown."""
    for user in REDIS_USERS:
        (tmp_path / user).write_text("secret\n")
    (tmp_path / "infer").unlink()
    if content is not None:
        (tmp_path / "infer").write_text(content)

    with pytest.raises(BadSettings, match=r"password_dir: .*infer") as raised:
        read_passwords(tmp_path)

    assert "words" not in str(raised.value)


# --- what servers and Sentinels say -------------------------------------------------------------------------------


def test_info_is_read_as_replication() -> None:
    """Only replicas that are online count, and among them those that have everything."""
    info = {
        "role": "master",
        "master_repl_offset": 100,
        "connected_slaves": 3,
        "slave0": {"state": "online", "offset": 100},
        "slave1": {"state": "online", "offset": 90},
        "slave2": {"state": "wait_bgsave", "offset": 0},
        "db0": {"keys": 4, "expires": 0},
        "master_replid": "r",
        "used_memory": 5,
    }

    found = parse_info(info)

    assert (found.replicas, found.caught_up, found.offset, found.has_data, found.link_up) == (2, 1, 100, True, True)


def test_a_replica_without_its_master_is_no_use() -> None:
    """Nor does it have data because it once had."""
    found = parse_info({"role": "slave", "master_link_status": "down", "master_host": "b", "master_port": 6379})

    assert (found.role, found.link_up, found.has_data, found.master) == ("slave", False, False, B.address)


def test_most_sentinels_decide_whether_the_master_is_down() -> None:
    """Of the Sentinels whose configuration is of the newest failover."""
    old, down, up = Master("a", 1, 1, down=True), Master("b", 1, 2, down=True), Master("b", 1, 2)

    assert newest([]) is None
    assert newest([old, up]) == Master("b", 1, 2)
    assert newest([old, up, down]) == Master("b", 1, 2)
    assert newest([old, down]) == Master("b", 1, 2, down=True)


def test_a_sentinels_answer_is_read() -> None:
    """Flags show whether it reaches the master."""
    fields = {"ip": "b", "port": "6379", "config-epoch": "4", "flags": "master,s_down", "num-slaves": "2"}

    assert parse_master(fields) == Master("b", 6379, 4, down=True, others=0, replicas=2)
