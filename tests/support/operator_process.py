"""Operators as processes against a real API server, and what tests look at."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support.apiserver import ApiServer
from support.operator_parts import define
from support.patience import free_port_number, limit_s

LEASE = "sheetanchor-operator"
CHILDREN = (
    "serviceaccounts",
    "roles",
    "rolebindings",
    "configmaps",
    "secrets",
    "services",
    "networkpolicies",
    "poddisruptionbudgets",
    "deployments",
    "statefulsets",
)

Object = dict[str, Any]


class OperatorProcess:
    """One `sheetanchor-operator` that manages one namespace."""

    def __init__(self, server: ApiServer, namespace: str, folder: Path, name: str = "one", *flags: str) -> None:
        self.server, self.namespace, self.name = server, namespace, name
        self.port = free_port_number()
        self.log = folder / f"operator-{name}-{uuid.uuid4().hex[:4]}.log"
        self.kubeconfig = server.kubeconfig
        self.flags = flags
        self.image = "localhost/sheetanchor:test"
        self.program: tuple[str, ...] = ("-m", "sheetanchor_operator")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> OperatorProcess:
        command = [sys.executable, *self.program, "--kubeconfig", str(self.kubeconfig)]
        command += ["--http-host", "127.0.0.1", "--http-port", str(self.port), *self.flags]
        command += ["--operator-namespaces", self.namespace, "--operator-image", self.image]
        environ = {**os.environ, "POD_NAME": self.name, "POD_NAMESPACE": self.namespace}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environ)
        return self

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait; gives the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def get(self, path: str) -> tuple[int, str]:
        """Send a request to the operator; (0, "") if there is no answer."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metrics(self) -> dict[str, float]:
        """Read all metrics by name and labels."""
        lines = [line for line in self.get("/metrics")[1].splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    @property
    def leads(self) -> bool:
        return self.metrics().get("sheetanchor_operator_leader") == 1.0

    def said(self) -> str:
        """Give its log."""
        return self.log.read_text()

    def rss(self) -> int:
        """Give its resident memory in bytes."""
        assert self.process is not None
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def operating(
    server: ApiServer, namespace: str, folder: Path, name: str = "one", *flags: str, code: str = ""
) -> Iterator[OperatorProcess]:
    """Run an operator while the block runs; it runs some lines of code first, if any are given."""
    define(server)
    operator = OperatorProcess(server, namespace, folder, name, *flags)
    if code:
        operator.program = (
            "-c",
            f"import sys\n{code}\nfrom sheetanchor_operator.__main__ import main\nsys.exit(main())",
        )
    operator.start()
    try:
        yield operator
    finally:
        if operator.process is not None and operator.process.poll() is None:
            operator.end(signal.SIGKILL)


def until(condition: Any, *, within_s: float, what: str, operator: OperatorProcess | None = None) -> float:
    """Poll until a condition holds; gives the seconds that it took. A failure shows the end of the operator's log."""
    started_s = time.monotonic()
    while not condition():
        if time.monotonic() - started_s > limit_s(within_s):
            tail = operator.said()[-3000:] if operator is not None else ""
            raise AssertionError(f"not within {within_s:g} s: {what}\n{tail}")
        time.sleep(0.1)
    return time.monotonic() - started_s


def apply_pipeline(server: ApiServer, namespace: str, name: str = "btc", **spec: Any) -> None:
    """Apply a pipeline as a user does."""
    body = {"apiVersion": "sheetanchor.dev/v1alpha1", "kind": "PredictionPipeline", "metadata": {"name": name}}
    server.apply({**body, "spec": {"symbols": ["BTCUSDT"], **spec}}, namespace=namespace)


def path_of(namespace: str, name: str = "btc") -> str:
    return f"/apis/sheetanchor.dev/v1alpha1/namespaces/{namespace}/predictionpipelines/{name}"


def pipeline_of(server: ApiServer, namespace: str, name: str = "btc") -> Object:
    found: Object = server.ask(path_of(namespace, name))
    return found


def children_of(server: ApiServer, namespace: str, name: str = "btc") -> dict[str, Object]:
    """Read everything that carries a pipeline's label, by kind and name."""
    listed = server.json(",".join(CHILDREN), "-n", namespace, "-l", f"sheetanchor.dev/pipeline={name}")
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in listed["items"]}


CHILDREN_OF_ALL_KINDS = 27
"""Of a pipeline of one symbol in a cluster without zones."""


def settled(server: ApiServer, namespace: str, name: str = "btc") -> bool:
    """Say whether all of a pipeline's children have been made, and its status was written after them."""
    made = len(children_of(server, namespace, name)) >= CHILDREN_OF_ALL_KINDS
    return made and "phase" in (pipeline_of(server, namespace, name).get("status") or {})


def versions_of(server: ApiServer, namespace: str, name: str = "btc") -> dict[str, str]:
    """Read the version of a pipeline and of all its children."""
    every = children_of(server, namespace, name) | {"pipeline": pipeline_of(server, namespace, name)}
    return {place: body["metadata"]["resourceVersion"] for place, body in every.items()}


def condition_of(server: ApiServer, namespace: str, kind: str, name: str = "btc") -> Object:
    """Read a condition; empty if it is not there."""
    conditions = (pipeline_of(server, namespace, name).get("status") or {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind), {})


def looks(operator: OperatorProcess) -> float:
    """Count the reconciles of pipelines, whatever their results."""
    counts = operator.metrics()
    return sum(value for name, value in counts.items() if name.startswith("sheetanchor_operator_reconciles_total"))


def holder(server: ApiServer, namespace: str) -> str:
    """Name the holder of the Lease, "" if there is none."""
    try:
        lease = server.ask(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}")
    except urllib.error.HTTPError:
        return ""
    return str(lease["spec"].get("holderIdentity") or "")


def dump(body: Any) -> str:
    return json.dumps(body, indent=1, sort_keys=True)
