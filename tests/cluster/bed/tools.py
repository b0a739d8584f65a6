"""Programs compiled from Go modules: Kubernetes' own, and what drives and judges a cluster."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from cluster.bed.cache import digest, entry, root
from cluster.bed.run import BedError, CannotHost, run, say

NODE = Path(__file__).parent / "node"
COMPILE_WITHIN_S = 2400  # two slow cores, everything from source
GO_MINOR = 24  # what Kubernetes 1.34 asks for

_version = re.search(r"k8s\.io/kubernetes (v1\.(\d+)\.\d+)", (NODE / "go.mod").read_text())
assert _version is not None
KUBERNETES = _version[1]
_ABOUT = "k8s.io/component-base/version"
_FLAGS = f"-s -w -X {_ABOUT}.gitVersion={KUBERNETES} -X {_ABOUT}.gitMajor=1 -X {_ABOUT}.gitMinor={_version[2]}"


@dataclass(frozen=True, slots=True)
class Program:
    """One program of a module of its own, at a fixed version."""

    package: str
    version: str
    flags: str = "-s -w"


PROGRAMS = {
    "kind": Program("sigs.k8s.io/kind", "v0.30.0"),
    # Without the version helm calls itself a development build, and charts that ask for its version refuse it.
    "helm": Program("helm.sh/helm/v3/cmd/helm", "v3.20.2", "-s -w -X helm.sh/helm/v3/internal/version.version=v3.20.2"),
    "kube-score": Program("github.com/zegl/kube-score/cmd/kube-score", "v1.20.0"),
    "coredns": Program("github.com/coredns/coredns", "v1.13.1"),
}
_CMD = "k8s.io/kubernetes/cmd"
API_PACKAGES = (f"{_CMD}/kube-apiserver", f"{_CMD}/kubectl")
ETCD_PACKAGE = ("go.etcd.io/etcd/server/v3",)
NODE_PACKAGES = tuple(
    f"{_CMD}/{name}" for name in ("kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubeadm")
)


def go() -> str:
    """Find a Go compiler that is new enough.

    Raises:
        CannotHost: There is none.
    """
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", "/usr/lib/go/bin/go"):
        if not candidate or not os.access(candidate, os.X_OK):
            continue
        found = re.search(r"go1\.(\d+)", run(candidate, "version", within_s=30))
        if found and int(found[1]) >= GO_MINOR:
            return candidate
    raise CannotHost(f"no Go 1.{GO_MINOR} or newer in PATH, and nothing could be compiled before")


def program(name: str) -> Path:
    """Return one of PROGRAMS, compiled now if it is not in the cache."""
    wanted = PROGRAMS[name]

    def build(folder: Path) -> None:
        say(f"compiling {name} {wanted.version} (about a minute the first time)")
        command = [go(), "install", "-trimpath", "-ldflags", wanted.flags, f"{wanted.package}@{wanted.version}"]
        run(*command, within_s=COMPILE_WITHIN_S, folder=root(), extra_env={"GOBIN": str(folder)}, log=log(name))

    key = digest(wanted.package, wanted.version, wanted.flags)
    return entry(f"go-{name}", key, build) / name


def _key(*packages: str) -> str:
    return digest(NODE / "go.mod", NODE / "go.sum", NODE / "components.go", _FLAGS, *packages)


def _compile(folder: Path, packages: tuple[str, ...], flags: str) -> None:
    # Several programs go into the folder under their own names; etcd's module would call its program "server".
    target = folder / "etcd" if packages == ETCD_PACKAGE else f"{folder}/"
    command = [go(), "build", "-mod=mod", "-trimpath", "-o", str(target), "-ldflags", flags, *packages]
    # Compiled in a copy: `-mod=mod` may touch go.mod, and a checkout is not for a test to change.
    copy = folder / "module"
    copy.mkdir()
    for name in ("go.mod", "go.sum", "components.go"):
        shutil.copy(NODE / name, copy)
    run(*command, within_s=COMPILE_WITHIN_S, folder=copy, log=log("kubernetes"))
    shutil.rmtree(copy)


def api_programs() -> Path:
    """Return the folder of kube-apiserver, etcd and kubectl."""

    def build(folder: Path) -> None:
        say(f"compiling kube-apiserver, kubectl {KUBERNETES} and etcd (about 5 minutes the first time)")
        _compile(folder, API_PACKAGES, _FLAGS)
        _compile(folder, ETCD_PACKAGE, "-s -w")

    return entry("kubernetes-api", _key(*API_PACKAGES), build)


def api_programs_there() -> bool:
    """Say whether `api_programs` has nothing to compile."""
    return (root() / f"kubernetes-api-{_key(*API_PACKAGES)}").is_dir()


def node_programs() -> Path:
    """Return the folder of what else Kubernetes needs: control plane, kubelet, kubeadm."""

    def build(folder: Path) -> None:
        say(f"compiling the rest of Kubernetes {KUBERNETES} (about 3 minutes the first time)")
        _compile(folder, NODE_PACKAGES, _FLAGS)

    return entry("kubernetes-node", _key(*NODE_PACKAGES), build)


def tool_path() -> Path:
    """Return a folder to put first in PATH that holds kubectl, kind, helm and kube-score."""
    from_cache = {name: program(name) for name in ("kind", "helm", "kube-score")}
    from_cache["kubectl"] = api_programs() / "kubectl"

    def build(folder: Path) -> None:
        for name, path in from_cache.items():
            (folder / name).symlink_to(path)

    return entry("bin", digest(*map(str, from_cache.values())), build)


def log(name: str) -> Path:
    """Where a build's output goes; the last few stay for reading."""
    folder = root() / "logs"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.log"
    if path.exists() and path.stat().st_size > 1_000_000:
        path.unlink()
    return path


__all__ = ["KUBERNETES", "NODE", "BedError", "api_programs", "go", "log", "node_programs", "program", "tool_path"]
