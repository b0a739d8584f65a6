"""A zone without power: readers of the Service feel it for some seconds, and the status names it."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from support.cluster_bed import Cluster
from support.cluster_parts import Running, ready
from support.cluster_reader import reading_service

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

READERS_FREE_S = 8.0
NAMED_S = 20.0
RETURNED_S = 120.0


def zone_of(btc: Running, pod: str) -> str:
    """Zone of the node that a pod runs on."""
    node = btc.api.ask(f"/api/v1/namespaces/{btc.namespace}/pods/{pod}")["spec"]["nodeName"]
    return str(btc.api.ask(f"/api/v1/nodes/{node}")["metadata"]["labels"]["topology.kubernetes.io/zone"])


def health(btc: Running) -> dict[str, str]:
    """What each zone counts as."""
    return {row["name"]: str(row.get("health")) for row in btc.status["zones"]}


def all_healthy(btc: Running) -> bool:
    return set(health(btc).values()) == {"healthy"}


def observers(btc: Running, lost: str) -> str:
    """What the operators conclude, and what the Sentinels say that they conclude it from."""
    found: dict[str, Any] = {}
    for pod in btc.api.pods("sheetanchor-system", "app.kubernetes.io/name=sheetanchor"):
        with contextlib.suppress(OSError, LookupError):
            name = pod["metadata"]["name"]
            found[name] = btc.api.pod("sheetanchor-system", name, "/health/detailed", 2)["checks"]["zones"]
    for pod in btc.pods("redis"):
        with contextlib.suppress(OSError, LookupError):
            name = pod["metadata"]["name"]
            path = f"/api/v1/namespaces/{btc.namespace}/pods/{name}:8081/proxy/peers"
            found[f"{name} in {zone_of(btc, name)}"] = btc.api.ask(path, within_s=2)
    load = Path("/proc/loadavg").read_text().split()[0]
    return f"zone {lost} is lost, the load of this machine is {load}: {json.dumps(found, indent=1)}"


def test_a_zone_without_power(btc: Running, cluster: Cluster, image: str) -> None:
    """Two replicas, and a reader in the zone without one, so that it asks both: half of it fails, for some seconds."""
    cluster.needs_own_machines("a node is switched off")
    btc.until_sound()
    btc.kubectl("scale", "pp", btc.name, "--replicas=2")
    btc.wait(lambda: len(btc.pods("infer")) == 2 and all(map(ready, btc.pods("infer"))), 60, "two replicas are left")
    btc.wait(lambda: all_healthy(btc), 60, "every zone is healthy")
    of_replicas = {zone_of(btc, pod["metadata"]["name"]) for pod in btc.pods("infer")}
    exchange = zone_of(btc, btc.api.pods(btc.namespace, "app.kubernetes.io/name=exchange")[0]["metadata"]["name"])
    lost = min(of_replicas - {exchange})
    reader_zone = min(set(cluster.zones) - of_replicas)

    with reading_service(btc, image, zone=reader_zone, hole_max=5) as reader:
        off_ms, off_s = int(time.time() * 1000), time.monotonic()
        cluster.power_off(lost)
        try:
            btc.wait(lambda: health(btc)[lost] == "failed", NAMED_S, f"the status names zone {lost}")
        except AssertionError as error:
            error.add_note(observers(btc, lost))
            raise
        named_s = time.monotonic() - off_s
        phase = btc.status["phase"]
        time.sleep(max(0.0, off_s + NAMED_S - 4 - time.monotonic()))
        failed_s = [(at_ms - off_ms) / 1000 for at_ms in reader.errors_ms() if at_ms >= off_ms]
        print(
            f"zone {lost} named after {named_s:.1f} s; {len(failed_s)} questions failed, the last one asked after "
            f"{max(failed_s, default=0):.1f} s"
        )
        on_s = time.monotonic()
        cluster.power_on(lost)
        btc.wait(lambda: all_healthy(btc), RETURNED_S, "every zone is healthy again")
        btc.until_sound(120)
        print(f"all is healthy {time.monotonic() - on_s:.0f} s after the power is back")

    btc.kubectl("scale", "pp", btc.name, "--replicas=3")
    assert failed_s, "the reader has never asked the pod in the zone: it proves nothing"
    # Readers leave a zone when it is silent, seconds before it counts as failed, however slow the machine is.
    assert max(failed_s) <= max(READERS_FREE_S, named_s)
    assert named_s >= 7
    assert phase != "Running"
    btc.until_sound(120)
