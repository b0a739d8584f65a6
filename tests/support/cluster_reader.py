"""A reader of predictions inside the cluster: it asks the Service, as a trading program would, not a pod by its name.

Endpoints, kube-proxy and DNS lie in its way, so it sees what the loss of a pod costs a user; the reader in
`cluster_parts`, which asks every replica through the API server, sees what the pipeline itself has missed.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator

from sheetanchor.contract import SLOT_MS
from support.cluster_parts import Running

NAME = "reader"
HOLE_MAX = 1
"""Slots in a row that a reader of the Service may get too late when one pod is lost."""

PERIOD_S = 0.2
ANSWER_WITHIN_S = 1.0

_LOOP = """
import http.client, json, sys, threading, time, urllib.request

url, slot_ms, period_s, within_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
seen, lock = set(), threading.Lock()

def ask():
    began_s = time.time()
    try:
        with urllib.request.urlopen(url, timeout=within_s) as answer:
            records = json.load(answer)["predictions"]
    except (OSError, ValueError, http.client.HTTPException) as error:
        with lock:
            print(json.dumps({"error": str(error), "at_ms": int(began_s * 1000)}), flush=True)
        return
    with lock:
        for slot in sorted({record["slot"] for record in records} - seen):
            seen.add(slot)
            print(json.dumps({"slot": slot, "late_ms": int(time.time() * 1000) - slot * slot_ms}), flush=True)

while True:
    threading.Thread(target=ask, daemon=True).start()
    time.sleep(period_s - time.time() % period_s)
"""
"""An open loop: each question is asked in its time, whatever became of those before it. One that waits would ask less
often just when something is wrong."""


def longest_hole(read: dict[int, int], first: int, last: int) -> int:
    """Give the most slots in a row, from `first` to `last`, that were not read by their end.

    Args:
        read: Milliseconds from a slot's beginning until it was first read.
        first: First slot that counts.
        last: Last slot that counts.
    """
    longest = hole = 0
    for slot in range(first, last + 1):
        hole = 0 if read.get(slot, SLOT_MS) < SLOT_MS else hole + 1
        longest = max(longest, hole)
    return longest


def _pod(image: str, url: str, zone: str) -> str:
    container = {
        "name": NAME,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", _LOOP, url, str(SLOT_MS), str(PERIOD_S), str(ANSWER_WITHIN_S)],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"terminationGracePeriodSeconds": 0, "securityContext": security, "containers": [container]}
    if zone:
        spec["nodeSelector"] = {"topology.kubernetes.io/zone": zone}
    metadata = {"name": NAME, "labels": {"app": NAME}}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


class ServiceReader:
    """What the reader's pod has printed so far."""

    def __init__(self, running: Running) -> None:
        self._running = running

    def lines(self) -> list[dict[str, int | str]]:
        """Give its records, oldest first."""
        return [json.loads(line) for line in self._running.kubectl("logs", NAME).splitlines()]

    def read(self) -> dict[int, int]:
        """Give the milliseconds from each slot's beginning until it was first read."""
        return {int(line["slot"]): int(line["late_ms"]) for line in self.lines() if "slot" in line}

    def errors_ms(self) -> list[int]:
        """Give when each question was asked that got no answer, in milliseconds since the epoch."""
        return sorted(int(line["at_ms"]) for line in self.lines() if "error" in line)


@contextlib.contextmanager
def reading_service(
    running: Running, image: str, symbol: str = "BTCUSDT", *, zone: str = "", hole_max: int = HOLE_MAX
) -> Iterator[ServiceReader]:
    """Read the pipeline's Service from a pod while the block runs; at most `hole_max` slots in a row may be missed.

    Args:
        zone: Where the reader runs, "" for anywhere. In a zone it uses the Service's address, since a DNS
            server may be in a zone that is lost.
    """
    host = f"{running.name}-infer.{running.namespace}.svc"
    if zone:
        host = running.kubectl("get", "service", f"{running.name}-infer", "-o", "jsonpath={.spec.clusterIP}").strip()
    running.kubectl("apply", "-f", "-", input=_pod(image, f"http://{host}:8080/predictions/{symbol}?limit=5", zone))
    reader = ServiceReader(running)
    try:
        running.kubectl("wait", f"pod/{NAME}", "--for=condition=Ready", "--timeout=90s")
        running.wait(lambda: len(reader.read()) >= 2, 60, "the reader's pod reads predictions")
        first = max(reader.read())
        yield reader
        ended = int(time.time() * 1000) // SLOT_MS
        running.wait(lambda: max(reader.read()) >= ended, 30, "the reader's pod has read up to the end")
        read = reader.read()
        hole = longest_hole(read, first, ended)
        print(f"through the Service: longest hole {hole} slots, {len(reader.errors_ms())} questions without an answer")
        assert hole <= hole_max, f"a hole of {hole} slots was read through the Service: {sorted(read.items())}"
    finally:
        running.kubectl("delete", "pod", NAME, "--grace-period=0", "--force", "--ignore-not-found")
