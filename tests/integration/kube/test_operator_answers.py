"""What an answer of the API server that is no success means.

The answers are those of a server of ours, in the words of the real one: a collision cannot be had of that on demand.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import Configuration

from sheetanchor_operator.kube.api_client import KINDS, ApiRefused, ApiUnavailable, Cluster

SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "btc-infer", "namespace": "shop"}, "spec": {}}


class Answering:
    """Gives the answer that is set, to whatever is asked."""

    def __init__(self) -> None:
        self.status, self.reason, self.headers = 409, "Conflict", dict[str, str]()
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.method)
        body = {"kind": "Status", "status": "Failure", "reason": self.reason, "message": f"it is {self.reason}"}
        return web.json_response({**body, "code": self.status}, status=self.status, headers=self.headers)


@pytest.fixture
def answering() -> Answering:
    """What will be answered."""
    return Answering()


@pytest.fixture
async def cluster(answering: Answering) -> AsyncIterator[Cluster]:
    """A connection to it."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answering.answer)
    async with TestServer(app) as server:
        cluster = Cluster(Configuration(host=f"http://{server.host}:{server.port}"))
        yield cluster
        await cluster.aclose()


async def test_a_collision_is_worth_another_try(cluster: Cluster, answering: Answering) -> None:
    """Another client has written at the same moment, such as the use of a quota: no user has to correct anything."""
    with pytest.raises(ApiUnavailable, match="it is Conflict"):
        await cluster.apply(SERVICE, "u1")
    with pytest.raises(ApiUnavailable, match="it is Conflict"):
        await cluster.create(SERVICE)
    with pytest.raises(ApiUnavailable, match="it is Conflict"):
        await cluster.merge(KINDS["Service"], "shop", "btc-infer", {"spec": {}})

    assert ["PATCH", "POST", "PATCH"] == answering.asked


async def test_a_condition_that_does_not_hold_is_an_answer(cluster: Cluster, answering: Answering) -> None:
    """A Lease that another one has taken, and an object that is another by now, are not asked for again."""
    with pytest.raises(ApiRefused) as error:
        await cluster.ask("PUT", KINDS["Lease"].path("shop", "leader"), body={})
    await cluster.delete(KINDS["Service"], "shop", "btc-infer", uid="another")

    assert (409, "Conflict") == (error.value.code, error.value.reason)


async def test_what_exists_already_is_no_error(cluster: Cluster, answering: Answering) -> None:
    """Of two that create an object, the second finds it."""
    answering.reason = "AlreadyExists"

    assert await cluster.create(SERVICE) is None


@pytest.mark.parametrize(("status", "after", "expected_s"), [(429, "7", 7.0), (503, "", 0.0), (500, "soon", 0.0)])
async def test_a_busy_server_says_when(
    cluster: Cluster, answering: Answering, status: int, after: str, expected_s: float
) -> None:
    """Too many requests and internal errors are retried, when the server says so."""
    answering.status, answering.reason, answering.headers = status, "TooManyRequests", {"Retry-After": after}

    with pytest.raises(ApiUnavailable) as error:
        await cluster.apply(SERVICE, "u1")

    assert expected_s == error.value.retry_after_s


async def test_credentials_that_cannot_be_read_are_no_end(cluster: Cluster, answering: Answering) -> None:
    """A token that is being replaced just now is read again with the next request."""

    async def unreadable(_: Configuration) -> None:
        raise FileNotFoundError("token")

    cluster._configuration.refresh_api_key_hook = unreadable
    cluster._configuration.api_key["BearerToken"] = "x"

    with pytest.raises(ApiUnavailable, match="the operator's credentials cannot be read: token"):
        await cluster.apply(SERVICE, "u1")

    assert [] == answering.asked


async def test_a_refusal_keeps_its_words(cluster: Cluster, answering: Answering) -> None:
    """An invalid object stays invalid until a user corrects it."""
    answering.status, answering.reason = 422, "Invalid"

    with pytest.raises(ApiRefused, match="it is Invalid"):
        await cluster.apply(SERVICE, "u1")
