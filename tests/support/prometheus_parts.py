"""A Prometheus for tests: Debian's, with the shipped scrape configuration.

Debian builds Prometheus without the Kubernetes API. So its discovery alone is replaced, by a file of the same targets
with the same `__meta_kubernetes_*` labels, made from the pods as the API server gives them; all else is used as it is
shipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from cluster.bed.cache import digest, entry
from cluster.bed.run import BedError, CannotHost, run
from conftest import free_port_number

CHART = Path(__file__).parents[2] / "charts" / "sheetanchor"
SCRAPE_FILE = CHART / "examples" / "prometheus.yml"
RULES = CHART / "rules"


def promtool() -> str:
    """Find promtool, or take it out of Debian's package without installing that, which would start a service.

    Raises:
        CannotHost: This machine has no apt-get.
    """
    return program("promtool")


def prometheus() -> str:
    """Find Debian's Prometheus, as promtool is found."""
    return program("prometheus")


def program(name: str) -> str:
    """Find one of the package's programs.

    Raises:
        CannotHost: It is not there and cannot be had; the text says why.
    """
    found = shutil.which(name)
    if found:
        return found
    if not shutil.which("apt-get"):
        raise CannotHost("no promtool and no apt-get: install Prometheus 2.42 or newer")
    try:
        return str(entry("debian-prometheus", digest("prometheus"), _unpack) / "usr" / "bin" / name)
    except BedError as trouble:  # without a network, say: no step here could change that
        raise CannotHost(f"no promtool, and Debian's package of it cannot be had: {trouble}") from None


def _unpack(folder: Path) -> None:
    if os.geteuid() == 0:  # a fresh machine knows no packages yet; others know them already
        run("apt-get", "-qq", "update", within_s=300)
    run("apt-get", "-qq", "download", "prometheus", within_s=300, folder=folder)
    (package,) = folder.glob("*.deb")
    run("dpkg-deb", "-x", package, folder, within_s=60)
    package.unlink()


def pod_targets(pods: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Give what Prometheus' discovery of role `pod` gives: a target for each declared port of each container.

    Args:
        pods: Live pods, as in the items of `kubectl get pods -o json`.
    """
    targets = []
    for pod in pods:
        address = pod["status"].get("podIP", "")
        for container in pod["spec"]["containers"] if address else ():
            for port in container.get("ports", ()):
                meta = {
                    "namespace": pod["metadata"]["namespace"],
                    "pod_name": pod["metadata"]["name"],
                    "pod_ip": address,
                    "pod_phase": pod["status"]["phase"],
                    "pod_node_name": pod["spec"].get("nodeName", ""),
                    "pod_container_name": container["name"],
                    "pod_container_port_name": port.get("name", ""),
                    "pod_container_port_number": str(port["containerPort"]),
                }
                meta |= _named("pod_label", pod["metadata"].get("labels", {}))
                meta |= _named("pod_annotation", pod["metadata"].get("annotations", {}))
                labels = {f"__meta_kubernetes_{name}": value for name, value in meta.items()}
                targets.append({"targets": [f"{address}:{port['containerPort']}"], "labels": labels})
    return targets


def _named(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}_{re.sub('[^a-zA-Z0-9_]', '_', key)}": value for key, value in values.items()}


def write_config(folder: Path, pods: Iterable[Mapping[str, Any]]) -> Path:
    """Write the shipped configuration and rules for a Prometheus that cannot ask the API server itself.

    Args:
        folder: Where `prometheus.yml`, the jobs' targets and `rules/` go; call again to refresh the targets.
        pods: Live pods.

    Returns:
        The configuration file.
    """
    shutil.copytree(RULES, folder / "rules", dirs_exist_ok=True)
    pods = list(pods)
    config = yaml.safe_load(SCRAPE_FILE.read_text(encoding="utf-8"))
    for job in config["scrape_configs"]:
        (discovery,) = job.pop("kubernetes_sd_configs")
        targets = f"{job['job_name']}.json"
        fresh = folder / "targets.new"
        fresh.write_text(json.dumps(pod_targets(pod for pod in pods if _selected(pod, discovery))), encoding="utf-8")
        fresh.rename(folder / targets)  # Prometheus reads it whenever it changes
        job["file_sd_configs"] = [{"files": [targets], "refresh_interval": "1s"}]
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def _selected(pod: Mapping[str, Any], discovery: Mapping[str, Any]) -> bool:
    """Apply the namespaces and label selectors that the API server would."""
    places = discovery.get("namespaces", {}).get("names")
    if places is not None and pod["metadata"]["namespace"] not in places:
        return False
    (selector,) = discovery["selectors"]
    labels = pod["metadata"].get("labels", {})
    wanted = [one.partition("=") for one in selector["label"].split(",")]
    return all(key in labels and (not way or labels[key] == value) for key, way, value in wanted)


class Prometheus:
    """A running Prometheus."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.port = free_port_number()
        command = [prometheus(), f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{self.port}"]
        self.log_path = folder / "prometheus.log"
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)

    def ask(self, path: str, **query: str) -> Any:
        """Ask the API; None while it does not answer."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return json.loads(answer.read())["data"]
        except OSError:
            return None

    def query(self, expression: str) -> list[dict[str, str]]:
        """Give the labels of all series that an expression finds."""
        found = self.ask("query", query=expression)
        return [one["metric"] for one in found["result"]] if found else []

    def rules(self) -> list[dict[str, Any]]:
        """Give every rule that it knows, with its health."""
        known = self.ask("rules")
        return [rule for group in known["groups"] for rule in group["rules"]] if known else []
