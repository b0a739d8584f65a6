"""A processor asks for re-anchors over a real Kubernetes API, as its own account and with its own rights."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from conftest import RedisServer, free_port_number
from sheetanchor.contract import Gap, keys
from sheetanchor.policy.gap_rules import Finding, gap_of
from sheetanchor.policy.reanchor_object import Owner, gap_suffix, object_name, reanchor_object
from sheetanchor.process.reanchor_requests import CreateResult, KubernetesApi, Requests, request_of_gap, verdict_of
from sheetanchor.store.redis_client import redis_client
from support.apiserver import ApiServer
from support.operator_parts import make_pipeline, namespace, reanchors, token_folder
from support.process_parts import Stage, ended, until

pytestmark = pytest.mark.slow

SYMBOL = "BTCUSDT"


@pytest.fixture
def place(server: ApiServer) -> Iterator[str]:
    """A namespace with a pipeline `btc` and its accounts."""
    with namespace(server) as name:
        make_pipeline(server, name)
        yield name


@pytest.fixture
async def client(redis_server: RedisServer) -> AsyncIterator[Redis]:
    made = redis_client(redis_server.url)
    yield made
    await made.aclose()


def found_gap(at_us: int = 0, rule: str = "sequence_gap") -> Gap:
    return gap_of(Finding(rule, "depth 5 → 9"), SYMBOL, "process", at_us or time.time_ns() // 1_000, 3)


def body_of(place: str, gap: Gap) -> dict[str, Any]:
    return reanchor_object(Owner("btc", place), request_of_gap(gap, "processor-1"))


async def test_a_gap_becomes_an_object(
    server: ApiServer, place: str, redis_server: RedisServer, client: Redis, tmp_path: Path
) -> None:
    """A real processor that finds a gap creates a ReAnchor owned by its pipeline; the stream of gaps has it too."""
    folder = token_folder(server, place, "btc-process", tmp_path / "account")
    uid = server.json("pp/btc", "-n", place)["metadata"]["uid"]
    flags = ["--reanchor-requests=kubernetes", "--pipeline=btc", f"--pipeline-uid={uid}"]
    flags += [f"--kubernetes-url={server.url}", f"--service-account-dir={folder}"]
    with ended(Stage(client, redis_server.url, tmp_path)) as stage:
        await stage.started(*flags)
        stage.feed.diff()
        await stage.lines.carry([stage.feed.diff()])
        gap = await stage.told("sequence_gap")
        name = object_name("btc", SYMBOL, gap_suffix(gap.rule, gap.at_us, SYMBOL))

        await until(lambda: asyncio.to_thread(lambda: name in reanchors(server, place)), 20, "the ReAnchor")

    made = reanchors(server, place)[name]
    assert [("PredictionPipeline", "btc", uid)] == [
        (owner["kind"], owner["name"], owner["uid"]) for owner in made["metadata"]["ownerReferences"]
    ]
    assert ("sequence_gap", "immediate_reanchor", gap.reason, 1, gap.at_us) == tuple(
        made["spec"][field] for field in ("trigger", "action", "reason", "epoch", "atMicros")
    )


async def test_state_is_told_over_http(redis_server: RedisServer, client: Redis, tmp_path: Path) -> None:
    """`/state` shows whether it is anchored, the writer, and the holder of the lock, on writer and standbys alike."""
    with ended(Stage(client, redis_server.url, tmp_path)) as stage:
        first = await stage.started()
        second = stage.start()
        await until(lambda: asyncio.to_thread(second.said, "loaded epoch 1"), 20, "a warm processor")

        def told(by: Any) -> dict[str, Any]:
            return dict(json.loads(by.get("/state"))["symbols"][SYMBOL])

        async def doubted() -> bool:
            states = [told(by)["state"] for by in (first, second)]
            return states == ["suspect", "suspect"] and told(second)["lock_held"]

        await until(lambda: asyncio.to_thread(lambda: told(second)["state"] == "anchored"), 10, "anchored")
        sound = told(first)
        assert await stage.hot.lock("somebody:run-1")
        stage.feed.diff()
        await stage.lines.carry([stage.feed.diff()])
        await until(doubted, 10, "suspect everywhere, and the lock seen")
        active, warm = told(first), told(second)

    assert (True, "anchored", 1, 1, True, 0) == tuple(
        sound[field] for field in ("active", "state", "epoch", "term", "connected", "suspect_since_us")
    )
    assert (True, False) == (active["active"], warm["active"])
    assert active["writer"] == warm["writer"]
    assert "somebody:run-1" == warm["lock_holder"]
    assert "Sequence gap" in active["reason"]
    assert 0 < active["suspect_since_us"] <= active["now_us"]
    assert 0 <= active["event_age_ms"] < 300_000
    assert 0 <= warm["beat_age_ms"] < 300_000


async def test_the_account_may_create_and_nothing_else(server: ApiServer, place: str, tmp_path: Path) -> None:
    """With the processor's token a ReAnchor can be made; nothing can be read, changed or removed."""
    folder = token_folder(server, place, "btc-process", tmp_path / "account")
    async with KubernetesApi(server.url, folder) as api:
        made = await api.create(body_of(place, found_gap()))
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(server.kubeconfig_text((folder / "token").read_text()))

    def may(verb: str, resource: str) -> bool:
        asked = server.try_kubectl("auth", "can-i", verb, resource, "-n", place, f"--kubeconfig={kubeconfig}")
        return asked.stdout.strip() == "yes"

    assert "created" == verdict_of(made)
    assert may("create", "reanchors.sheetanchor.dev")
    forbidden = [
        *((verb, "reanchors.sheetanchor.dev") for verb in ("get", "list", "watch", "update", "patch", "delete")),
        *((verb, "predictionpipelines.sheetanchor.dev") for verb in ("get", "list", "patch", "create")),
        ("update", "reanchors.sheetanchor.dev/status"),
        ("get", "secrets"),
        ("list", "pods"),
        ("create", "jobs.batch"),
    ]
    assert [] == [pair for pair in forbidden if may(*pair)]


async def test_the_same_gap_twice_is_one_object(server: ApiServer, place: str, tmp_path: Path) -> None:
    """Asking again, as a processor that takes over does, finds the object."""
    folder = token_folder(server, place, "btc-process", tmp_path / "account")
    gap = found_gap()

    async with KubernetesApi(server.url, folder) as api:
        verdicts = [verdict_of(await api.create(body_of(place, gap))) for _ in range(2)]

    assert ["created", "exists"] == verdicts
    assert 1 == len(reanchors(server, place))


async def test_what_the_server_says_is_told_apart(server: ApiServer, place: str, tmp_path: Path) -> None:
    """No right, no such definition, a refused object and a server that is away are four different answers."""
    folder = token_folder(server, place, "btc-process", tmp_path / "account")
    other = token_folder(server, place, "btc-infer", tmp_path / "other")
    body = body_of(place, found_gap())
    wrong = {**body, "spec": {**body["spec"], "action": "dance"}}

    async with KubernetesApi(server.url, folder) as api, KubernetesApi(server.url, other) as stranger:
        refused = await api.create(wrong)
        forbidden = await stranger.create(body)
    async with KubernetesApi(f"https://127.0.0.1:{free_port_number()}", folder) as nobody:
        away = await nobody.create(body)

    assert ("refused", "forbidden", "unavailable") == tuple(map(verdict_of, (refused, forbidden, away)))
    assert "dance" in refused.message
    assert "cannot create resource" in forbidden.message
    assert {} == reanchors(server, place)


async def test_a_rotated_token_is_picked_up(server: ApiServer, place: str, tmp_path: Path) -> None:
    """The kubelet replaces the token file; the next request uses the new one."""
    folder = token_folder(server, place, "btc-process", tmp_path / "account")
    good = (folder / "token").read_text()
    (folder / "token").write_text("expired")
    async with KubernetesApi(server.url, folder) as api:
        before = verdict_of(await api.create(body_of(place, found_gap())))

        (folder / "token").write_text(good)
        after = verdict_of(await api.create(body_of(place, found_gap())))

    assert ("forbidden", "created") == (before, after)


async def test_a_server_that_comes_back_gets_the_request(server: ApiServer, place: str, client: Redis) -> None:
    """While the API server does not answer, the request waits; only one is sent at a time."""
    answers = [CreateResult(0, "away"), CreateResult(503, "starting"), CreateResult(429, "busy"), CreateResult(201)]
    asked: list[str] = []

    async def create(body: dict[str, Any]) -> CreateResult:
        asked.append(body["metadata"]["name"])
        return answers[len(asked) - 1]

    gap = found_gap()
    requests = Requests(client, SYMBOL, Owner("btc", place), "processor-1", lambda: True, create)
    task = asyncio.create_task(requests.run())
    await client.xadd(keys(SYMBOL).gaps, dict(gap.fields()))
    try:
        await until(lambda: asyncio.to_thread(lambda: len(asked) == 4), 20, "four tries")
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    assert 1 == len(set(asked))


async def test_whoever_takes_over_asks_for_what_is_recent(client: Redis) -> None:
    """A standby sends no requests; after a takeover it requests what the gaps of the last half minute call for."""
    asked: list[int] = []
    active = asyncio.Event()

    async def create(body: dict[str, Any]) -> CreateResult:
        asked.append(body["spec"]["atMicros"])
        return CreateResult(201)

    now_us = time.time_ns() // 1_000
    gaps = [found_gap(now_us - 90_000_000), found_gap(now_us), replace(found_gap(now_us + 1), source="ingest/a")]
    requests = Requests(client, SYMBOL, Owner("btc", "default"), "processor-2", active.is_set, create)
    for gap in gaps:
        await client.xadd(keys(SYMBOL).gaps, dict(gap.fields()))
    task = asyncio.create_task(requests.run())
    try:
        await until(lambda: asyncio.to_thread(lambda: len(requests._recent) == 3), 10, "the gaps to be read")
        assert [] == asked
        active.set()
        await until(lambda: asyncio.to_thread(lambda: len(asked) == 2), 10, "two requests")
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    assert [now_us, now_us + 1] == asked


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_gets_no_token(status: int, tmp_path: Path) -> None:
    """The token is for the API server only: where its answer points to is not asked, and the answer is a refusal."""
    asked = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n")).decode().split()[1])
        writer.write(f"HTTP/1.1 {status} x\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    (tmp_path / "token").write_text("secret")
    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server, KubernetesApi(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", tmp_path) as api:
        answer = await api.create(body_of("space", found_gap()))

    assert (status, "refused") == (answer.status, verdict_of(answer))
    assert ["/apis/sheetanchor.dev/v1alpha1/namespaces/space/reanchors"] == asked


@pytest.mark.parametrize("ahead_s", [-3_600, 3_600])
async def test_a_node_whose_clock_is_ahead_asks_all_the_same(
    client: Redis, monkeypatch: pytest.MonkeyPatch, ahead_s: int
) -> None:
    """Gaps are stamped by Redis' clock, and by that clock they are recent or not, whatever this node's says."""
    asked: list[int] = []

    async def create(body: dict[str, Any]) -> CreateResult:
        asked.append(body["spec"]["atMicros"])
        return CreateResult(201)

    now_us = time.time_ns() // 1_000
    monkeypatch.setattr(time, "time_ns", lambda real=time.time_ns: real() + ahead_s * 1_000_000_000)
    for gap in (found_gap(now_us - 90_000_000), found_gap(now_us)):
        await client.xadd(keys(SYMBOL).gaps, dict(gap.fields()))
    requests = Requests(client, SYMBOL, Owner("btc", "default"), "processor-1", lambda: True, create)
    task = asyncio.create_task(requests.run())
    try:
        await until(lambda: asyncio.to_thread(lambda: asked == [now_us]), 10, "the recent gap is asked for")
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
