from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from sheetanchor.web.server import LOOP_STALL_MAX_S, Check, CheckResult, Health, create_app, overall, serve
from support.patience import patience


async def fine() -> CheckResult:
    return CheckResult("healthy", {"connected": True})


async def broken() -> CheckResult:
    raise ConnectionError("redis://user:hunter2@host/0 refused")


async def hanging() -> CheckResult:
    await asyncio.sleep(3600)
    raise AssertionError("unreachable")


@asynccontextmanager
async def served(*checks: Check) -> AsyncIterator[tuple[aiohttp.ClientSession, Health]]:
    health = Health("sheetanchor-test", checks, interval_s=0.05)
    async with (
        serve(create_app(health), health, "127.0.0.1", 0) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client,
    ):
        yield client, health


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def body(self) -> Any:
        return json.loads(self.text)


async def get(client: aiohttp.ClientSession, path: str, **headers: str) -> Answer:
    async with client.get(path, headers=headers) as response:
        return Answer(response.status, response.headers, await response.text())


async def until(client: aiohttp.ClientSession, path: str, status: str) -> Answer:
    async with patience():
        while (answer := await get(client, path)).body["status"] != status:
            await asyncio.sleep(0.01)
    return answer


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([], "healthy"),
        ([(True, "healthy"), (False, "healthy")], "healthy"),
        ([(False, "unhealthy")], "degraded"),
        ([(True, "degraded"), (False, "unhealthy")], "degraded"),
        ([(True, "unhealthy"), (False, "healthy")], "unhealthy"),
    ],
)
def test_something_optional_only_degrades(results: list[tuple[bool, str]], expected: str) -> None:
    """The overall status is the worst of all; an optional failure counts as degraded."""
    assert expected == overall(results)  # type: ignore[arg-type]  # the table is wider than the literal type


async def test_health_reports_every_check() -> None:
    """The body names service, version, times and each check, and both status fields agree."""
    async with served(Check("redis", fine), Check("lake", broken, critical=False)) as (client, _):
        answer = await until(client, "/health", "degraded")

    body = answer.body
    assert 200 == answer.status
    assert "degraded" == body["overall_status"]
    assert "sheetanchor-test" == body["service"]
    assert body["timestamp"].endswith("Z")
    assert body["uptime_seconds"] >= 0
    assert True is body["checks"]["redis"]["connected"]
    assert True is body["checks"]["lake"]["optional"]


async def test_health_gives_no_secret_away() -> None:
    """A check's exception text, which may hold a URL with a password, stays inside."""
    async with served(Check("redis", broken)) as (client, _):
        await until(client, "/health", "unhealthy")

        text = (await get(client, "/health/detailed")).text

    assert "hunter2" not in text
    assert "ConnectionError" in text


async def test_a_critical_failure_is_503_and_not_ready_but_live() -> None:
    """A lost dependency takes the role out of service; it does not ask for a restart."""
    async with served(Check("redis", broken)) as (client, health):
        await until(client, "/health", "unhealthy")
        health.heartbeat()

        statuses = [(await get(client, path)).status for path in ("/health", "/health/ready", "/health/live")]

    assert [503, 503, 200] == statuses


async def test_a_hanging_dependency_does_not_hang_health() -> None:
    """Answers come from cached results."""
    async with served(Check("redis", hanging)) as (client, _), patience():
        answer = await get(client, "/health")

    assert 503 == answer.status


async def test_nothing_is_ready_before_it_was_checked() -> None:
    """A role with only optional checks is not ready either, as long as their results are not known."""
    async with served(Check("redis", hanging, critical=False)) as (client, _):
        answer = await get(client, "/health/ready")

    assert 503 == answer.status


async def test_a_role_decides_itself_when_it_can_serve() -> None:
    """Where it can do without something critical, readiness goes by that and health by the check."""
    of_use = True
    async with served(Check("redis", broken)) as (client, health):
        await until(client, "/health/ready", "not ready")

        health.admits = lambda: of_use
        with_it = [(await get(client, path)).status for path in ("/health", "/health/ready")]
        of_use = False
        without = (await get(client, "/health/ready")).status

    assert ([503, 200], 503) == (with_it, without)


@pytest.mark.parametrize("silent", ["BTCUSDT", "ETHUSDT", "first"])
async def test_one_loop_that_stops_is_seen_beside_others_that_turn(silent: str) -> None:
    """Each loop that has turned once has to go on turning."""
    health = Health("sheetanchor-test", [])
    loops = ["BTCUSDT", "ETHUSDT", "first"]
    for loop in loops:
        health.heartbeat(loop)
    well = health.live

    health._heartbeats[silent] -= LOOP_STALL_MAX_S
    for loop in loops:
        if loop != silent:
            health.heartbeat(loop)

    assert (True, False) == (well, health.live)


async def test_draining_is_not_ready() -> None:
    """A role that is going away takes no new requests."""
    async with served(Check("redis", fine)) as (client, health):
        await until(client, "/health/ready", "ready")

        health.draining = True

        assert 503 == (await get(client, "/health/ready")).status


async def test_errors_have_one_shape_and_carry_the_request_id() -> None:
    """Code, message, request id and time; the id given by the caller is kept."""
    async with served() as (client, _):
        answer = await get(client, "/nothing", **{"X-Request-Id": "abc"})

    body = answer.body["error"]
    assert 404 == answer.status
    assert "abc" == answer.headers["X-Request-Id"] == body["request_id"]
    assert "NOT_FOUND" == body["code"]
    assert {"code", "message", "details", "request_id", "timestamp"} == set(body)


async def test_a_hostile_request_id_is_replaced() -> None:
    """Only short plain ids are echoed."""
    async with served() as (client, _):
        answer = await get(client, "/health", **{"X-Request-Id": "a" * 500})

    assert answer.headers["X-Request-Id"].startswith("req_")


async def test_metrics_count_requests_by_status() -> None:
    """Answers are counted under their status and route, unknown paths under one label."""
    async with served() as (client, _):
        await get(client, "/secret/path")
        await get(client, "/health/live")

        text = (await get(client, "/metrics")).text

    assert 'http_requests_total{endpoint="/health/live",status="200"}' in text
    assert 'http_requests_total{endpoint="other",status="404"}' in text
    assert "secret" not in text


async def test_a_taken_port_is_an_error() -> None:
    """Two servers cannot have one port."""
    health = Health("one", [])
    async with serve(create_app(health), health, "127.0.0.1", 0) as port:
        with pytest.raises(OSError, match="in use"):
            async with serve(create_app(health), health, "127.0.0.1", port):
                pass
