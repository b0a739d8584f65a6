"""A pipeline on a real API server whose pods are real roles of this machine, each behind its pod's address."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from sheetanchor_operator.controller.zones.mover import Mover
from sheetanchor_operator.kube.api_client import NODE, POD, Cluster
from sheetanchor_operator.kube.workload_control import send_control
from sheetanchor_operator.names import HTTP_PORT, Component, labels_of
from support.apiserver import ApiServer
from support.operator_looks import Looker, create, pipeline_in
from support.operator_process import pipeline_of
from support.pipeline_parts import OWN_EXCHANGE
from support.replicated_path import HotPath
from support.zone_pods import MERGE, STRATEGIC, condition


class MovedPipeline:
    """Pods of three zones in front of a hot path, and the operator that moves them; a test plays kubelets."""

    def __init__(self, server: ApiServer, cluster: Cluster, where: str, path: HotPath) -> None:
        self.server, self.where, self.path = server, where, path
        self.zones = {letter: f"{where}-{letter}"[-31:] for letter in "abc"}
        self._cluster = cluster
        self.looker = self._operator()
        self._network = f"127.{random.randint(1, 250)}.{random.randint(1, 250)}"
        self._relays: list[asyncio.Server] = []

    def _operator(self) -> Looker:
        made = Looker(self.server, self._cluster, self.where)
        made.reconciler._mover = Mover(self._cluster, self._send)
        return made

    async def another_leads(self) -> None:
        """Have another replica of the operator lead, which knows nothing but what objects say."""
        await self.looker.reconciler.workloads.aclose()
        self.looker = self._operator()

    async def make(self) -> None:
        """Create the nodes, the Secret of the real passwords, and the pipeline."""
        for zone in self.zones.values():
            labels = {"topology.kubernetes.io/zone": zone}
            await self.ask("/api/v1/nodes", method="POST", body={"kind": "Node", "metadata": _named(zone, labels)})
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "passwords"}}
        passwords = {**secret, "stringData": dict(self.path.members.passwords)}
        await asyncio.to_thread(self.server.apply, passwords, namespace=self.where)
        redis = {"managed": {"passwordSecret": {"name": "passwords"}}}
        await asyncio.to_thread(
            pipeline_in, self.server, self.where, exchange=OWN_EXCHANGE, redis=redis, inference={"replicas": 2}
        )

    async def make_pod(self, name: str, letter: str, component: Component, port: int) -> None:
        """Create a pod that is ready, and put a role of this machine behind its address."""
        address = f"{self._network}.{len(self._relays) + 1}"
        self._relays.append(await asyncio.start_server(_relay_to(port), address, HTTP_PORT))
        spec = {"nodeName": self.zones[letter], "containers": [{"name": "one", "image": "none"}]}
        spec |= {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 0}
        # Kept by name only without an owner: a label alone is no proof.
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "btc", "uid": "0b1c"}
        metadata = {**_named(name, labels_of("btc", component)), "ownerReferences": [owner]}
        body = {"kind": "Pod", "apiVersion": "v1", "metadata": metadata, "spec": spec}
        await asyncio.to_thread(create, self.server, self.where, body)
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": [condition("True")]}
        where = f"{POD.path(self.where, name)}/status"
        await self.ask(where, method="PATCH", body={"status": status}, content_type=STRATEGIC)

    async def remove_pod(self, name: str) -> None:
        """Have a pod end."""
        await self.ask(POD.path(self.where, name), method="DELETE")
        self.looker.cache.drop(POD.name, self.where, name)

    async def annotate(self, name: str, value: str | None) -> None:
        """Set an annotation of the pipeline, or take it away."""
        change = {"metadata": {"annotations": {name: value}}}
        path = f"/apis/sheetanchor.dev/v1alpha1/namespaces/{self.where}/predictionpipelines/btc"
        await self.ask(path, method="PATCH", body=change, content_type=MERGE)

    async def look(self) -> Mapping[str, Any]:
        """Reconcile once, with the pods and nodes of this moment; gives the status."""
        for kind, path in ((NODE, "/api/v1/nodes"), (POD, POD.path(self.where))):
            for body in (await self.ask(path))["items"]:
                if kind is POD or body["metadata"]["name"] in self.zones.values():
                    self.looker.leader.seen("LISTED", {**body, "kind": kind.name, "apiVersion": "v1"})
        await self.looker.look()
        await asyncio.to_thread(self.path.look)
        return dict((await asyncio.to_thread(pipeline_of, self.server, self.where))["status"])

    async def ask(self, path: str, **options: Any) -> dict[str, Any]:
        """Ask the API server as its administrator."""
        return dict(await asyncio.to_thread(self.server.ask, path, **options))

    async def aclose(self) -> None:
        """End the relays and remove the nodes, which are in no namespace."""
        for relay in self._relays:
            relay.close()
        await self.looker.reconciler.workloads.aclose()
        for zone in self.zones.values():
            await self.ask(f"/api/v1/nodes/{zone}", method="DELETE")

    async def _send(self, address: str, action: str, body: Mapping[str, Any], password: str) -> None:
        """Send what the operator sends; servers of this machine have its name, not their pods'."""
        await send_control(address, action, {**body, "node": "localhost"} if "node" in body else body, password)


def _named(name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {"name": name, "labels": dict(labels)}


def _relay_to(port: int) -> Any:
    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(65_536):
                sink.write(piece)
                await sink.drain()
        with suppress(OSError):
            sink.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, back), pump(there, writer))

    return relay
