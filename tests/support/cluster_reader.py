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

_LOOP = """
import json, sys, time, urllib.request

url, slot_ms, last = sys.argv[1], int(sys.argv[2]), -1
while True:
    began_s = time.time()
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            records = json.load(answer)["predictions"]
    except (OSError, ValueError) as error:
        print(json.dumps({"error": str(error), "at_ms": int(began_s * 1000)}), flush=True)
        records = []
    for record in sorted(records, key=lambda record: record["slot"]):
        if record["slot"] > last:
            last = record["slot"]
            print(json.dumps({"slot": last, "late_ms": int(time.time() * 1000) - last * slot_ms}), flush=True)
    time.sleep(max(0, began_s + 0.2 - time.time()))
"""


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


def _pod(image: str, url: str) -> str:
    container = {
        "name": NAME,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", _LOOP, url, str(SLOT_MS)],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    spec = {"terminationGracePeriodSeconds": 0, "securityContext": security, "containers": [container]}
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

    def errors(self) -> int:
        """Count the questions that got no answer."""
        return sum("error" in line for line in self.lines())


@contextlib.contextmanager
def reading_service(running: Running, image: str, symbol: str = "BTCUSDT") -> Iterator[ServiceReader]:
    """Read the pipeline's Service from a pod while the block runs; it may have seen no hole longer than `HOLE_MAX`."""
    url = f"http://{running.name}-infer.{running.namespace}.svc:8080/predictions/{symbol}?limit=5"
    running.kubectl("apply", "-f", "-", input=_pod(image, url))
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
        print(f"through the Service: longest hole {hole} slots, {reader.errors()} questions without an answer")
        assert hole <= HOLE_MAX, f"a hole of {hole} slots was read through the Service: {sorted(read.items())}"
    finally:
        running.kubectl("delete", "pod", NAME, "--grace-period=0", "--force", "--ignore-not-found")
