"""What a move asks of pods: signed with which password, and what becomes of a request that cannot be made."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from sheetanchor_operator.controller.zones.mover import Mover
from sheetanchor_operator.kube.api_client import Cluster
from sheetanchor_operator.kube.workload_control import ControlFailed
from sheetanchor_operator.names import Component
from sheetanchor_operator.observation import Observed
from sheetanchor_operator.zones.failover_record import Action, Failed, HandOver, Take
from support.apiserver import ApiServer
from support.pipeline_parts import NOW_US, pipeline, pod

TAKE = Take("btc-process-0", "r0", 7, ("BTCUSDT",))
HAND_OVER = HandOver("btc-redis-0")
PODS = (pod(Component.PROCESS, podIP="10.0.0.1"), pod(Component.REDIS, podIP="10.0.0.2"), pod(Component.PROCESS, 1))
EXTERNAL = {"redis": {"external": {"url": "redis://elsewhere:6379"}}}

Sent = list[tuple[str, str, dict[str, Any], str]]


async def done(cluster: Cluster, where: str, action: Action, sent: Sent, **spec: Any) -> Failed | None:
    """Have an action carried out; gives what came of it."""

    async def send(address: str, name: str, body: Mapping[str, Any], password: str) -> None:
        sent.append((address, name, dict(body), password))
        if password == "refused":
            raise ControlFailed("BTCUSDT: it has not read the lines to their end")

    mover, key = Mover(cluster, send), (where, "btc")
    mover.begin(key, pipeline(spec, namespace=where), Observed(NOW_US, pods=PODS), action)
    mover.begin(key, pipeline(spec, namespace=where), Observed(NOW_US, pods=PODS), HandOver("another"))
    await asyncio.wait(mover._tasks.values())
    outcome = mover.outcome(key)
    assert mover.outcome(key) is None, "it is given once"
    return outcome


def secret(server: ApiServer, where: str, **entries: str) -> None:
    """Create the Secret of the managed Redis' passwords."""
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "btc-redis"}, "stringData": entries}
    server.apply(body, namespace=where)


async def test_each_request_is_signed_with_what_its_pod_knows(server: ApiServer, where: str, cluster: Cluster) -> None:
    """A processor's with the password of processors, a Redis node's with that of Sentinels; one goes on at a time."""
    await asyncio.to_thread(secret, server, where, process="p", sentinel="s")
    sent: Sent = []
    assert [None, None] == [await done(cluster, where, action, sent) for action in (TAKE, HAND_OVER)]
    assert [
        ("10.0.0.1", "take", {"replica": "r0", "term": 7, "symbols": ["BTCUSDT"]}, "p"),
        ("10.0.0.2", "hand-over", {"node": "btc-redis-0"}, "s"),
    ] == sent


@pytest.mark.parametrize(
    ("action", "entries", "spec", "expected"),
    [
        (TAKE, {"sentinel": "s"}, {}, "Secret btc-redis has no entry process"),
        (TAKE, {"process": " "}, {}, "entry process of Secret btc-redis is empty"),
        (TAKE, {"process": "refused"}, {}, "BTCUSDT: it has not read the lines to their end"),
        (TAKE, {"process": "p"}, EXTERNAL, "without a password nothing is moved"),
        (HandOver("btc-redis-9"), {"sentinel": "s"}, {}, "it has no address"),
        (Take("btc-process-1", "r1", 7, ("BTCUSDT",)), {"process": "p"}, {}, "it has no address"),
    ],
)
async def test_what_cannot_be_asked_is_a_failure_that_says_why(
    server: ApiServer,
    where: str,
    cluster: Cluster,
    action: Action,
    entries: dict[str, str],
    spec: dict[str, Any],
    expected: str,
) -> None:
    """It is the move's to try again or to give up; the text is the one that people read."""
    await asyncio.to_thread(secret, server, where, **entries)
    outcome = await done(cluster, where, action, [], **spec)
    assert outcome is not None
    assert action == outcome.action
    assert expected in outcome.error
