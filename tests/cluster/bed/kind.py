"""The cluster itself: four nodes made by kind, three of them in zones a, b and c."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cluster.bed.build import CONTAINER_PREFIX
from cluster.bed.cache import digest, root
from cluster.bed.host import engine, install
from cluster.bed.node_image import node_archive, node_image, node_key
from cluster.bed.run import BedError, run, say, succeeds
from cluster.bed.tools import NODE, log, program, tool_path

CHECKOUT = Path(__file__).resolve().parents[3]
# Named after the checkout: neither another checkout's cluster nor one of the user's has this name.
NAME = f"sheetanchor-{digest(str(CHECKOUT))[:6]}"
FOLDER = CHECKOUT / "build" / "cluster"
KUBECONFIG = FOLDER / "kubeconfig"
ZONE_LABEL = "topology.kubernetes.io/zone"
# The image that this version of kind was released with.
PUBLIC_IMAGE = "docker.io/kindest/node:v1.34.0@sha256:7416a61b42b1662ca6ca89f02028ac133a309a2a30ba309614e8ec94d976dc5a"
OUR_IMAGES = ("localhost/sheetanchor-node:", "localhost/sheetanchor-base:", "localhost/sheetanchor:")
# What a step of the product's image, which has no name, shows in its history.
OUR_STEPS = ("sheetanchor", "/opt/own", "/tmp/own", "/opt/needs")
REGISTRY = "https://registry-1.docker.io/v2/"
REGISTRY_WITHIN_S = 4
PULL_WITHIN_S = 300
CREATE_WITHIN_S = 420  # 45 s on an idle machine
READY_WITHIN_S = 120


def environment() -> dict[str, str]:
    """What kind, podman and kubectl must find in their environment to mean this cluster."""
    found = {"PATH": f"{tool_path()}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "KUBECONFIG": str(KUBECONFIG)}
    found |= {"KIND_EXPERIMENTAL_PODMAN_NETWORK": NAME, "KIND_EXPERIMENTAL_DOCKER_NETWORK": NAME}
    if engine() == "podman":
        found |= {"KIND_EXPERIMENTAL_PROVIDER": "podman", "CONTAINERS_CONF": str(NODE / "containers.conf")}
    return found


def kind(*arguments: str | Path, within_s: float) -> str:
    """Run kind; what it says goes to a log."""
    path = log("kind")
    run(program("kind"), *arguments, within_s=within_s, extra_env=environment(), log=path)
    return path.read_text()


def podman(*arguments: str | Path, within_s: float = 60) -> str:
    """Run the container engine, whichever it is."""
    return run(engine(), *arguments, within_s=within_s, extra_env=environment())


def kubectl(*arguments: str | Path, within_s: float = 60) -> str:
    """Run kubectl as the cluster's administrator."""
    return run(tool_path() / "kubectl", *arguments, within_s=within_s, extra_env=environment())


def nodes() -> list[str]:
    """Name the containers of this cluster's nodes, running or not."""
    label = f"label=io.x-k8s.kind.cluster={NAME}"
    return sorted(podman("ps", "-a", "--filter", label, "--format", "{{.Names}}").split())


def start() -> None:
    """Have the cluster run: as it is, started again, or created."""
    if engine() == "podman":
        install()
    FOLDER.mkdir(parents=True, exist_ok=True)
    made_from = FOLDER / "made-from"
    wanted = digest(node_key(), NODE / "kind.yaml", engine())
    if nodes():
        if made_from.exists() and made_from.read_text() == wanted and _revived():
            say(f"the cluster {NAME} is up")
            return
        say(f"the cluster {NAME} is of older sources or broken: making it anew")
        delete()
        FOLDER.mkdir(parents=True)
    image = _image()
    say(f"creating four nodes with {engine()} (a minute)")
    _create(image)
    made_from.write_text(wanted)
    _await_nodes()
    route_to_pods()


def _create(image: str) -> None:
    modules = Path("/lib/modules")
    if not modules.exists():  # kind mounts it, even where the kernel has none
        modules.mkdir(parents=True)
        (FOLDER / "made-lib-modules").touch()
    arguments = ["create", "cluster", "--name", NAME, "--image", image, "--kubeconfig", str(KUBECONFIG)]
    config = FOLDER / "kind.yaml"
    config.write_text(_config(image))
    for attempt in (1, 2):
        try:
            kind(*arguments, "--config", config, within_s=CREATE_WITHIN_S)
            return
        except BedError as trouble:
            if attempt == 2:
                raise
            # A machine that is busy with something else may be too slow for kind's own limits.
            say(f"once more after: {trouble}")
            kind("delete", "cluster", "--name", NAME, "--kubeconfig", KUBECONFIG, within_s=120)


def _config(image: str) -> str:
    """Write kind's configuration of the nodes; the image built here finds its programs in a mounted folder."""
    text = (NODE / "kind.yaml").read_text()
    if image != node_image():
        return text
    mount = {"hostPath": str(node_archive().parent / "images"), "containerPath": "/kind/images", "readOnly": True}
    return re.sub(r"( *)- role: .*", rf"\g<0>\n\1  extraMounts: {json.dumps([mount])}", text)


def _revived() -> bool:
    """Start nodes that a reboot or a test left off; say whether all get ready."""
    running = podman("ps", "--filter", f"label=io.x-k8s.kind.cluster={NAME}", "--format", "{{.Names}}").split()
    # A control plane that comes back with another address is not believed: its certificates name the old one.
    if not any("control-plane" in name for name in running):
        return False
    try:
        for name in set(nodes()) - set(running):
            say(f"starting the node {name} again")
            podman("start", name)
        kind("export", "kubeconfig", "--name", NAME, "--kubeconfig", KUBECONFIG, within_s=60)
        _await_nodes()
        route_to_pods()
    except BedError as trouble:
        say(str(trouble))
        return False
    return True


def _await_nodes() -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        try:
            ready = nodes_ready()
        except BedError:
            ready = {}
        if len(ready) == 4:
            return
        if time.monotonic() > deadline:
            raise BedError(f"only {len(ready)} of 4 nodes are ready after {READY_WITHIN_S} s")
        time.sleep(1)


def nodes_ready() -> dict[str, str]:
    """Give the address of each node that is ready."""
    found = {}
    for node in json.loads(kubectl("get", "nodes", "-o", "json", within_s=20))["items"]:
        conditions = {one["type"]: one["status"] for one in node["status"].get("conditions", [])}
        if conditions.get("Ready") == "True":
            found[node["metadata"]["name"]] = _address(node)
    return found


def _address(node: Any) -> str:
    return next((str(one["address"]) for one in node["status"]["addresses"] if one["type"] == "InternalIP"), "")


def zones() -> dict[str, str]:
    """Name the node of each zone."""
    items = json.loads(kubectl("get", "nodes", "-l", ZONE_LABEL, "-o", "json"))["items"]
    return {item["metadata"]["labels"][ZONE_LABEL]: item["metadata"]["name"] for item in items}


def route_to_pods() -> None:
    """Let this machine reach pods by their addresses, through their nodes; the routes go with the nodes' bridge.

    Only the API server and the tests profit, so a machine that routes these addresses elsewhere keeps doing so.
    """
    if os.geteuid() != 0 or not shutil.which("ip"):
        return
    for item in json.loads(kubectl("get", "nodes", "-o", "json"))["items"]:
        address = _address(item)
        network = item["spec"]["podCIDR"]
        routed = run("ip", "route", "show", network, within_s=10)
        if routed.strip() and f"via {address} " not in routed:
            bridge = run("ip", "route", "get", address, within_s=10).split(" dev ")[1].split()[0]
            if f"dev {bridge} " not in f"{routed} ":
                say(f"pods cannot be reached from here: {network} is routed elsewhere")
                return
        run("ip", "route", "replace", network, "via", address, within_s=10)


def load(archive: Path, name: str = "", other: str = "") -> None:
    """Give an image's archive to the workers' container runtime, unless they have it; and the image one more name."""
    mark = f"/kind/loaded-{digest(contents(archive), other)}"
    lacking = [node for node in zones().values() if not succeeds_in(node, "test", "-e", mark)]
    if not lacking:
        return
    say(f"loading {archive.name} of {archive.parent.name} into {len(lacking)} nodes")
    kind("load", "image-archive", archive, "--name", NAME, "--nodes", ",".join(lacking), within_s=300)
    for node in lacking:
        if name:
            tag(node, name, other)
        podman("exec", node, "touch", mark)


def contents(archive: Path) -> str:
    """Return what an image's archive says of its contents: digests of all its parts, and its names."""
    with tarfile.open(archive) as parts:
        for name in ("manifest.json", "index.json"):  # docker's form, the OCI's form
            with contextlib.suppress(KeyError):
                if found := parts.extractfile(name):
                    return found.read().decode()
    raise BedError(f"{archive} is no image's archive")


def tag(node: str, name: str, other: str) -> None:
    """Give an image on a node one more name."""
    podman("exec", node, "ctr", "--namespace", "k8s.io", "images", "tag", "--force", name, other)


def kill(node: str, container: str) -> None:
    """Kill a container's processes without asking them; its kubelet finds that out by itself."""
    podman("exec", node, "ctr", "--namespace", "k8s.io", "tasks", "kill", "--all", "--signal", "SIGKILL", container)


def succeeds_in(node: str, *command: str) -> bool:
    """Say whether a command succeeds on a node."""
    try:
        podman("exec", node, *command)
    except BedError:
        return False
    return True


def delete() -> None:
    """Remove the cluster and all that it put on this machine, except the cache."""
    if there := nodes():
        # Nothing on a node is worth the ten seconds that each would get for a shutdown.
        succeeds(engine(), "kill", *there)
        kind("delete", "cluster", "--name", NAME, "--kubeconfig", KUBECONFIG, within_s=180)
    _forget_images()
    _forget_builds()
    if NAME in podman("network", "ls", "--format", "{{.Name}}").split():
        podman("network", "rm", NAME)
    if (FOLDER / "made-lib-modules").exists() and not any(Path("/lib/modules").iterdir()):
        Path("/lib/modules").rmdir()
    shutil.rmtree(FOLDER, ignore_errors=True)


def _forget_images() -> None:
    """Remove from the engine's store the images that are ours; what they are made from stays in the cache."""
    images = [line.split() for line in podman("images", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}").splitlines()]
    for _, name in images:
        if name.startswith(OUR_IMAGES):
            # Another checkout's cluster may run on the same image; then it stays.
            succeeds(engine(), "rmi", name, within_s=60)
    steps = [identity for identity, name in images if name == "<none>:<none>"]
    for identity in steps:  # a step that another one rests on goes with that, or is gone already
        asked = [engine(), "history", "--no-trunc", "--format", "{{.CreatedBy}}", identity]
        with contextlib.suppress(BedError):
            told = run(*asked, within_s=30, extra_env=environment())
            if any(mark in told for mark in OUR_STEPS):
                podman("rmi", identity)


def _forget_builds() -> None:
    """Remove what builds left that were killed."""
    if not shutil.which("buildah") or os.geteuid() != 0:
        return
    for name in run("buildah", "containers", "--format", "{{.ContainerName}}", within_s=30).split():
        builder = name.removeprefix(CONTAINER_PREFIX)
        if name != builder and not Path(f"/proc/{builder.partition('-')[0]}").exists():
            succeeds("buildah", "rm", name)


def _image() -> str:
    """Have a node image in the engine's store: the public one if it is to be had, else the one built here."""
    present = podman("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    public = PUBLIC_IMAGE.partition("@")[0]
    if any(name.removeprefix("docker.io/") == public.removeprefix("docker.io/") for name in present):
        return PUBLIC_IMAGE
    if not any(root().glob(f"node-image-{node_key()}")) and _registry_answers():
        try:
            say(f"pulling {public}")
            podman("pull", PUBLIC_IMAGE, within_s=PULL_WITHIN_S)
            return PUBLIC_IMAGE
        except BedError as trouble:
            say(f"building a node image instead: {trouble}")
    archive = node_archive()
    if node_image() not in present:
        say("loading the nodes' image into the engine")
        podman("load", "-q", "-i", archive, within_s=300)
    return node_image()


def _registry_answers() -> bool:
    try:
        with urllib.request.urlopen(REGISTRY, timeout=REGISTRY_WITHIN_S):
            return True
    except urllib.error.HTTPError as answer:
        return answer.code == 401  # as it answers every client without a token
    except (urllib.error.URLError, OSError):
        return False
