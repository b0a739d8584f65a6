"""Pods of three zones on a real API server, each with a real HTTP server behind its address.

Nothing runs the pods: what their kubelets would write is written here, and a zone without power is one whose servers
accept connections and do not answer.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from sheetanchor_operator.kube.api_client import POD
from sheetanchor_operator.names import API_VERSION, HTTP_PORT, PIPELINE_KIND, SENTINEL_HTTP_PORT, Component, labels_of
from support.apiserver import ApiServer

Body = dict[str, Any]
STRATEGIC = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"


class ZonePods:
    """Three nodes in three zones, and pods on them."""

    def __init__(self, server: ApiServer, where: str) -> None:
        self.server, self.where = server, where
        self.zones = {letter: f"{where}-{letter}" for letter in "abc"}
        self.cut: set[str] = set()
        """Letters of the zones that do not answer."""

        self.ready: dict[str, bool] = {}
        """What inference pods answer at /health/ready, by name; true for those that are not named."""

        self.questions = 0
        self._runners: list[web.AppRunner] = []
        self._redis: dict[str, str] = {}
        self._network = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}"
        self._hosts = 0

    def node(self, letter: str) -> str:
        """Give the name of a zone's node."""
        return self.zones[letter]

    def make_nodes(self) -> None:
        """Create the nodes."""
        for letter in self.zones:
            labels = {"topology.kubernetes.io/zone": self.zones[letter]}
            body = {"kind": "Node", "apiVersion": "v1", "metadata": {"name": self.node(letter), "labels": labels}}
            self.server.ask("/api/v1/nodes", method="POST", body=body)

    def remove_nodes(self) -> None:
        """Delete them: nodes are in no namespace."""
        for letter in self.zones:
            self.server.ask(f"/api/v1/nodes/{self.node(letter)}", method="DELETE")

    async def make_pod(self, name: str, letter: str, component: Component, pipeline: str = "btc") -> None:
        """Create a pod that is ready, and its server."""
        self._hosts += 1
        address = f"{self._network}.{self._hosts}"
        if component is Component.REDIS:
            self._redis[name] = letter
        await self._serve(address, name, letter, component)
        container = {"name": "one", "image": "none"}
        spec = {"nodeName": self.node(letter), "containers": [container], "automountServiceAccountToken": False}
        metadata = {"name": name, "labels": labels_of(pipeline, component)}
        body = {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec}
        await self.ask(POD.path(self.where), method="POST", body=body)
        status: Body = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        status["conditions"] = [condition("True")]
        if component is Component.REDIS:
            sentinel = {"name": "sentinel", "ready": True, "started": True, "image": "none", "imageID": "none"}
            sentinel["restartCount"] = 0
            status["containerStatuses"] = [sentinel]
        await self.ask(f"{self.path(name)}/status", method="PATCH", body={"status": status}, content_type=STRATEGIC)

    def path(self, name: str) -> str:
        """Give the path of a pod."""
        return POD.path(self.where, name)

    async def ask(self, path: str, **options: Any) -> Body:
        """Ask the API server as its administrator."""
        return dict(await asyncio.to_thread(self.server.ask, path, **options))

    async def ready_of(self, name: str) -> Body:
        """Give a pod's condition Ready."""
        pod = await self.ask(self.path(name))
        return next(dict(one) for one in pod["status"]["conditions"] if one["type"] == "Ready")

    async def kubelet_says(self, name: str, status: str) -> None:
        """Write what a living kubelet does: its own view of the pod."""
        change = {"status": {"conditions": [condition(status)]}}
        await self.ask(f"{self.path(name)}/status", method="PATCH", body=change, content_type=STRATEGIC)

    async def make_pipeline(self, installation: str, name: str = "btc") -> None:
        """Create a pipeline that an installation manages, with a status as after some minutes."""
        path = f"/apis/{API_VERSION}/namespaces/{self.where}/predictionpipelines"
        body = {"apiVersion": API_VERSION, "kind": PIPELINE_KIND, "metadata": {"name": name}}
        await self.ask(path, method="POST", body={**body, "spec": {"symbols": ["BTCUSDT"]}})
        rows = [{"name": zone[-31:], "ready": True, "pods": 2} for zone in self.zones.values()]
        claim = {"name": installation, "seenAt": "2026-01-01T00:00:00Z"}
        status = {"phase": "Running", "operator": claim, "zones": rows}
        await self.ask(f"{path}/{name}/status", method="PATCH", body={"status": status}, content_type=MERGE)

    async def pipeline_status(self, name: str = "btc") -> Body:
        """Read a pipeline's status."""
        path = f"/apis/{API_VERSION}/namespaces/{self.where}/predictionpipelines/{name}"
        return dict((await self.ask(path))["status"])

    async def events(self) -> dict[str, str]:
        """Read the Events of the namespace: texts by reason."""
        found = await self.ask(f"/apis/events.k8s.io/v1/namespaces/{self.where}/events")
        return {one["reason"]: one["note"] for one in found["items"]}

    # The servers

    async def _serve(self, address: str, name: str, letter: str, component: Component) -> None:
        async def answer(request: web.Request) -> web.Response:
            self.questions += 1
            if letter in self.cut:
                await asyncio.Event().wait()
            sound = self.ready.get(name, True) or request.path != "/health/ready"
            return web.json_response({}, status=200 if sound else 503)

        async def peers(_request: web.Request) -> web.Response:
            if letter in self.cut:
                await asyncio.Event().wait()
            others = {peer: self._redis[peer] not in self.cut for peer in self._redis if peer != name}
            servers = {f"{peer}.redis.svc:6379": reached for peer, reached in others.items()}
            sentinels = {f"{peer}.redis.svc:26379": reached for peer, reached in others.items()}
            return web.json_response({"tilt": False, "age_ms": 200, "servers": servers, "sentinels": sentinels})

        await self._listen(address, HTTP_PORT, "/health/{what}", answer)
        if component is Component.REDIS:
            await self._listen(address, SENTINEL_HTTP_PORT, "/peers", peers)

    async def _listen(self, address: str, port: int, path: str, answer: Any) -> None:
        app = web.Application()
        app.router.add_get(path, answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        self._runners.append(runner)
        await web.TCPSite(runner, address, port).start()

    async def aclose(self) -> None:
        """End the servers."""
        for runner in self._runners:
            await runner.cleanup()


def condition(status: str) -> Body:
    """Give what a kubelet writes as the condition Ready."""
    return {"type": "Ready", "status": status, "reason": None, "message": None}


@asynccontextmanager
async def zone_pods(server: ApiServer, where: str) -> AsyncIterator[ZonePods]:
    """Three zones, each with a Redis node and an ingestor, and inference in a and c."""
    zones = ZonePods(server, where)
    await asyncio.to_thread(zones.make_nodes)
    try:
        for number, letter in enumerate("abc"):
            await zones.make_pod(f"btc-redis-{number}", letter, Component.REDIS)
            await zones.make_pod(f"btc-ingest-{letter}", letter, Component.INGEST)
        await zones.make_pod("btc-infer-a", "a", Component.INFER)
        await zones.make_pod("btc-infer-c", "c", Component.INFER)
        yield zones
    finally:
        await zones.aclose()
        await asyncio.to_thread(zones.remove_nodes)
