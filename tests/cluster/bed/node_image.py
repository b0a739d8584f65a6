"""The nodes' image, where the public one cannot be pulled: Debian, and Kubernetes compiled here."""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster.bed.build import Build, debian_root
from cluster.bed.cache import digest, entry
from cluster.bed.host import install
from cluster.bed.run import run, say
from cluster.bed.tools import KUBERNETES, NODE, api_programs, node_programs, program

CONTAINER_PACKAGES = ("iptables", "conntrack", "kmod", "ipset", "nftables", "iproute2", "ca-certificates")
# What kubelet and containerd call, and an init that starts them.
NODE_PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "containerd", "runc", "containernetworking-plugins", "iptables", "nftables"),
    *("conntrack", "iproute2", "ethtool", "socat", "mount", "procps", "kmod", "ca-certificates", "curl", "jq"),
    *("hostname", "ebtables", "ipset"),
)
# No user logs in to a node, and its clock and packages are the machine's.
UNWANTED_UNITS = (
    *("getty.target", "console-getty.service", "systemd-logind.service"),
    *("apt-daily.timer", "apt-daily-upgrade.timer"),
)


def node_archive() -> Path:
    """Return the archive of the nodes' image, whose name is `node_image()`.

    The images that run on nodes are in the folder `images` beside it: nodes mount it, which is quicker than to load one
    big image.
    """
    key = node_key()

    def build(folder: Path) -> None:
        install()
        containers, root = debian_root("containers", CONTAINER_PACKAGES), debian_root("node", NODE_PACKAGES)
        kubernetes, api, coredns = node_programs(), api_programs(), program("coredns")
        say("building the nodes' image")
        parts, images = folder / "parts", folder / "images"
        parts.mkdir()
        images.mkdir()
        _write_images(parts, images, containers, kubernetes, api, coredns)
        _write_settings(parts, images)
        _commit_node(parts, root, kubernetes, api, folder / "image.tar")
        shutil.rmtree(parts)

    return entry("node-image", key, build) / "image.tar"


def node_key() -> str:
    """Hash what the nodes' image is made from."""
    return digest(NODE, KUBERNETES, program_key(), Path(__file__), Path(__file__).with_name("build.py"))


def program_key() -> str:
    return f"{api_programs().name} {node_programs().name} {program('coredns').parent.name}"


def node_image() -> str:
    """Name the nodes' image."""
    return f"localhost/sheetanchor-node:{KUBERNETES}-{node_key()}"


def _write_images(parts: Path, images: Path, containers: Path, kubernetes: Path, api: Path, coredns: Path) -> None:
    """Write the archives of the images that run on nodes, and the names by which kubeadm asks for them."""
    run("gcc", "-static", "-O2", "-o", parts / "pause", NODE / "pause.c", within_s=60)
    image = Build()
    image.put(parts / "pause", "/pause")
    image.commit(f"docker-archive:{images}/pause.tar:localhost/pause:1", "--entrypoint", '["/pause"]')
    control = [
        kubernetes / "kube-controller-manager",
        kubernetes / "kube-scheduler",
        api / "kube-apiserver",
        api / "etcd",
    ]
    commands = {"every-node": [kubernetes / "kube-proxy", coredns], "control-plane": control}
    for name, files in commands.items():
        image = Build()
        image.add(containers)
        image.put(*files, "/usr/local/bin/")
        target = f"docker-archive:{images}/{name}.tar:localhost/kubernetes:{name}"
        # kubeadm names the command of every image but of CoreDNS, of which it expects that it starts itself.
        image.commit(target, "--entrypoint", '["/usr/local/bin/coredns"]')
    listing = [kubernetes / "kubeadm", "config", "images", "list", "--kubernetes-version", KUBERNETES]
    (images / "names").write_text(run(*listing, within_s=60))


def _write_settings(parts: Path, images: Path) -> None:
    """Fill in the names of images, which only this version's kubeadm knows."""
    names = {name.rpartition("/")[2].partition(":")[0]: name for name in (images / "names").read_text().split()}
    (parts / "version").write_text(KUBERNETES)
    for file, word, image in (("containerd.toml", "@PAUSE@", "pause"), ("network.yaml", "@KUBE_PROXY@", "kube-proxy")):
        (parts / file).write_text((NODE / file).read_text().replace(word, names[image]))


def _commit_node(parts: Path, root: Path, kubernetes: Path, api: Path, archive: Path) -> None:
    image = Build()
    image.add(root)
    image.put(kubernetes / "kubelet", kubernetes / "kubeadm", api / "kubectl", "/usr/bin/")
    image.run("sh", "-c", "mkdir -p /opt/cni /kind && ln -s /usr/lib/cni /opt/cni/bin")
    image.put(parts / "containerd.toml", "/etc/containerd/config.toml")
    image.put(NODE / "kubelet.service", NODE / "preload.service", "/etc/systemd/system/")
    image.put(NODE / "preload", "/kind/preload", mode="0755")
    image.put(NODE / "storage.yaml", "/kind/manifests/default-storage.yaml")
    image.put(parts / "network.yaml", "/kind/manifests/default-cni.yaml")
    image.put(parts / "version", "/kind/version")
    image.put(NODE / "entrypoint", "/usr/local/bin/entrypoint", mode="0755")
    image.run("systemctl", "enable", "kubelet", "preload", "containerd")
    image.run("systemctl", "mask", *UNWANTED_UNITS)
    entrypoint = '["/usr/local/bin/entrypoint","/sbin/init"]'
    options = ("--env", "container=podman", "--entrypoint", entrypoint, "--stop-signal", "SIGRTMIN+3")
    image.commit(f"docker-archive:{archive}:{node_image()}", *options)
