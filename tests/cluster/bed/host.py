"""Whether this machine can host a cluster, and the Debian packages for it."""

from __future__ import annotations

import os
import platform
import shutil
from functools import cache
from pathlib import Path

from cluster.bed.cache import root
from cluster.bed.run import BedError, CannotHost, run, say, succeeds
from cluster.bed.tools import api_programs_there, go, log

# What must be there, and Debian's package that brings it. netavark and aardvark-dns let nodes find each other by name.
NEEDED = {
    "podman": "podman",
    "buildah": "buildah",
    "runc": "runc",
    "/usr/lib/podman/netavark": "netavark",
    "/usr/lib/podman/aardvark-dns": "aardvark-dns",
    "iptables": "iptables",
    "debootstrap": "debootstrap",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "gcc": "gcc",
    "/usr/include/stdio.h": "libc6-dev",
    "ip": "iproute2",
    "openssl": "openssl",
}
INSTALL_WITHIN_S = 600
MEMORY_GB = 5  # four nodes and the product; less ends in evictions
DISK_GB = 12  # compiler's cache, images, nodes
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


@cache
def engine() -> str:
    """Name the container engine: docker where one answers, else podman."""
    docker = shutil.which("docker")
    answers = docker and succeeds(docker, "version", "--format", "{{.Server.Version}}", within_s=5)
    # Podman's stand-in for docker answers as well, but kind needs to know it.
    return "docker" if docker and answers and "podman" not in run(docker, "--version", within_s=5).lower() else "podman"


@cache
def reason_against() -> str:
    """Say in one line why no cluster can be hosted here; empty when one can."""
    try:
        return _reason_against_nodes()
    except CannotHost as trouble:
        return str(trouble)


def _reason_against_nodes() -> str:
    if platform.system() != "Linux":
        return f"nodes are Linux containers, this is {platform.system()}"
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if gigabytes < MEMORY_GB:
        return f"{gigabytes:.1f} GB of memory, and four nodes need {MEMORY_GB}"
    if not any(root().glob("node-image-*")) and shutil.disk_usage(root()).free < DISK_GB * 1e9:
        return f"less than {DISK_GB} GB free for {root()}"
    if reason := reason_against_tools():
        return reason
    return "" if engine() == "docker" else _reason_against_podman()


def reason_against_tools() -> str:
    """Say in one line why Kubernetes' programs cannot be had here; empty when they can."""
    try:
        if not api_programs_there():
            go()
    except CannotHost as trouble:
        return str(trouble)
    return ""


def _reason_against_podman() -> str:
    if os.geteuid() != 0:
        return "no Docker answers, and without it nodes need root"
    if not any(Path("/sys/fs/cgroup").iterdir()):
        return "/sys/fs/cgroup is empty: no control groups for nodes"
    status = Path("/proc/self/status").read_text()
    effective = int(status.split("CapEff:")[1].split()[0], 16)
    lacking = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if lacking:
        return f"root lacks {' and '.join(lacking)} here"
    if missing() and not shutil.which("apt-get"):
        return f"missing: {' '.join(missing())} (Debian's names), and no apt-get to install them"
    return ""


def missing(*only: str) -> list[str]:
    """Name the Debian packages that are not installed, of all or of some."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    found = {
        what: Path(what).exists() if what.startswith("/") else bool(shutil.which(what, path=path)) for what in NEEDED
    }
    return sorted(package for what, package in NEEDED.items() if not found[what] and package in (only or [package]))


def install(*only: str) -> None:
    """Install the Debian packages that are missing, of all or of some, as root; name them otherwise.

    Raises:
        CannotHost: They are missing and cannot be installed.
    """
    wanted = missing(*only)
    if not wanted:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise CannotHost(f"missing: {' '.join(wanted)} (Debian's names); install them and try again")
    say(f"installing {' '.join(wanted)}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=120"]
    try:
        run(*apt, "update", within_s=INSTALL_WITHIN_S, extra_env=quiet, log=log("apt"))
        options = ["install", "-y", "--no-install-recommends"]
        run(*apt, *options, *wanted, within_s=INSTALL_WITHIN_S, extra_env=quiet, log=log("apt"))
    except BedError as trouble:
        raise CannotHost(f"missing: {' '.join(wanted)} (Debian's names), and {trouble}") from None
