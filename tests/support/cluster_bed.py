"""The cluster that the tests in tests/cluster run on: kind's four nodes, or one that the environment names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.bed import given, host, kind, product
from cluster.bed.cache import locked
from cluster.bed.run import BedError, CannotHost
from cluster.bed.tools import tool_path

KEEP = "SHEETANCHOR_KEEP_CLUSTER"
TEST_LABEL = "sheetanchor.dev/test"
COMMAND_WITHIN_S = 200


def reason_against() -> str:
    """Say in one line why no test of tests/cluster can run here; empty when all can."""
    try:
        return host.reason_against_tools() if given.kubeconfig() else host.reason_against()
    except CannotHost as trouble:
        return str(trouble)


class Cluster:
    """A running cluster."""

    def __init__(self) -> None:
        self.given = given.kubeconfig()
        self.kubeconfig = self.given or kind.KUBECONFIG
        self.was_there = bool(self.given)
        self.was_defined = False
        self.made: list[str] = []

    def start(self) -> Cluster:
        """Have it run."""
        if self.given:
            if reason := product.reason_to_spare():
                pytest.skip(f"the cluster of {self.given} is left alone: {reason}")
            print(f"[cluster] using the cluster of {self.given}", file=sys.stderr)
            self.was_defined = product.defined()
            return self
        with locked(kind.NAME):
            self.was_there = bool(kind.nodes())
            kind.start()
        return self

    def stop(self) -> None:
        """Remove what the tests made: the cluster too, unless it was there before or is to be kept."""
        if self.made and self.was_there:
            self.kubectl("delete", "namespace", *self.made, "--ignore-not-found", "--timeout=120s")
        if self.was_there or os.environ.get(KEEP):
            print(f"[cluster] left up: KUBECONFIG={self.kubeconfig}", file=sys.stderr)
            return
        with locked(kind.NAME):
            kind.delete()

    @property
    def zones(self) -> dict[str, str]:
        """The node of each zone; for nodes in containers that is the container's name too."""
        found: dict[str, str] = {}
        for node in self.json("nodes", "-l", kind.ZONE_LABEL)["items"]:
            found.setdefault(node["metadata"]["labels"][kind.ZONE_LABEL], node["metadata"]["name"])
        return dict(sorted(found.items()))

    def kubectl(self, *arguments: str | Path, input: str | None = None, check: bool = True) -> str:  # noqa: A002 (as subprocess calls it)
        """Run kubectl; a failure raises with what it said, or is part of the answer without `check`."""
        return self._run(tool_path() / "kubectl", *arguments, text_in=input, check=check)

    def helm(self, *arguments: str | Path, check: bool = True) -> str:
        """Run helm."""
        return self._run(tool_path() / "helm", *arguments, text_in=None, check=check)

    def json(self, *arguments: str) -> Any:
        """Get objects, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def power_off(self, zone: str) -> None:
        """Take a zone's machine away without a warning."""
        kind.podman("kill", self._container(zone))

    def power_on(self, zone: str) -> None:
        """Start a zone's machine again and wait until its node is ready."""
        node = self._container(zone)
        kind.podman("start", node)
        # Its address may have changed, and until kubelet has reported the node seems as ready as it was.
        address = kind.podman("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", node).strip()
        self.wait(lambda: kind.nodes_ready().get(node) == address, 120, f"{node} is ready at {address}")
        kind.route_to_pods()

    def wait(self, condition: Callable[[], bool], within_s: float, what: str) -> float:
        """Poll a condition until it holds and give the seconds that it took; a failing question counts as no."""
        started_s = time.monotonic()
        while True:
            try:
                if condition():
                    return time.monotonic() - started_s
                trouble = ""
            except (AssertionError, BedError, OSError) as error:
                trouble = f" (last answer: {error})"
            if time.monotonic() - started_s > within_s:
                raise AssertionError(f"not within {within_s:g} s: {what}{trouble}")
            time.sleep(0.3)

    def make_namespace(self, prefix: str) -> str:
        """Make a namespace with an unused name; it enforces restricted pods and is deleted with the tests."""
        name = f"{prefix}-{os.urandom(3).hex()}"
        product.make_namespace(name, {TEST_LABEL: "true"})
        self.made.append(name)
        return name

    def load_product(self) -> str:
        """Have the product's image on the nodes and return its name."""
        return product.image()

    def tag_image(self, name: str, other: str) -> None:
        """Give an image on the nodes one more name."""
        self.needs_own_machines("an image is given a second name on its nodes")
        for node in self.zones.values():
            kind.tag(node, name, other)

    def _container(self, zone: str) -> str:
        self.needs_own_machines("a node is a container here")
        return self.zones[zone]

    def needs_own_machines(self, why: str) -> None:
        """Skip a test that reaches into the nodes of a cluster that was not made here."""
        if self.given:
            pytest.skip(f"not on a given cluster: {why}")

    def kill(self, namespace: str, pod: str, container: str) -> None:
        """Kill a container's processes on its node: no signal that could be handled, no notice to the API server."""
        found = self.json("-n", namespace, f"pod/{pod}")
        ids = {one["name"]: one["containerID"].partition("://")[2] for one in found["status"]["containerStatuses"]}
        self.needs_own_machines("processes are killed on their node")
        kind.kill(found["spec"]["nodeName"], ids[container])

    def _run(self, program: Path, *arguments: str | Path, text_in: str | None, check: bool) -> str:
        command = [str(program), *map(str, arguments)]
        env = {**os.environ, **product.environment()}
        done = subprocess.run(
            command, input=text_in, capture_output=True, text=True, timeout=COMMAND_WITHIN_S, check=False, env=env
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{program.name} {' '.join(command[1:])}: {done.stderr.strip() or done.stdout.strip()}"
            )
        return done.stdout if check else done.stdout + done.stderr


class Installed:
    """The chart, installed on a cluster whose nodes have the product's image."""

    def __init__(self, cluster: Cluster, image: str) -> None:
        self.cluster, self.image = cluster, image
        self.namespace, self.release, self.chart = product.NAMESPACE, product.RELEASE, product.CHART
        if product.installed():
            self.uninstall()  # of an earlier source, or with other values
        self.notes = product.install(self.image)

    def upgrade(self, *options: str) -> str:
        """Upgrade with options and wait until the operator is ready."""
        return product.install(self.image, *options)

    def uninstall(self) -> None:
        """Remove the chart and what it left: definitions with all their objects, the namespace."""
        # On a given cluster only objects in namespaces of the tests' own making.
        everywhere = [["-n", name] for name in self.cluster.made] if self.cluster.given else [["-A"]]
        for place in everywhere:
            self.cluster.kubectl("delete", "pp,ra", "--all", *place, "--ignore-not-found", "--timeout=60s", check=False)
        where = ["--namespace", self.namespace]
        self.cluster.helm("uninstall", self.release, *where, "--wait", "--timeout", "120s", "--ignore-not-found")
        if not self.cluster.was_defined:
            self.cluster.kubectl("delete", "crd", *product.DEFINITIONS, "--ignore-not-found", "--timeout=60s")
        self.cluster.kubectl("delete", "namespace", self.namespace, "--ignore-not-found", "--timeout=120s")

    def recorded_market(self, namespace: str) -> None:
        """Apply the sample of the recorded market in a namespace."""
        product.apply_sample(namespace, self.image)
