"""A Kubernetes API server of its own: etcd and kube-apiserver on free loopback ports, no nodes, no containers.

It stores, validates, defaults, converts and prunes like any other; nothing runs what it stores, and nothing deletes
what an owner left behind.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import create_default_context
from typing import Any

import pytest
import yaml

from cluster.bed.host import reason_against_tools
from cluster.bed.tools import api_programs, api_programs_there
from support.patience import free_port_number, limit_s

ADMIN_TOKEN = "admin-of-a-test"  # of a server on loopback, for as long as a test runs
READY_WITHIN_S = 180  # three seconds when nothing else runs


@contextmanager
def own_server(folder: Path) -> Iterator[ApiServer]:
    """A server that no other test uses, and that leaves no data behind."""
    folder.mkdir()
    server = ApiServer(folder)
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


class ApiServer:
    """A running API server and the kubeconfig of its administrator."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.options = options
        self.programs = api_programs()
        self.port = free_port_number()
        self.processes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "kubeconfig"

    def start(self) -> ApiServer:
        """Start both programs and wait until the server says that it is ready."""
        key = self.folder / "service-accounts.key"
        command = ["openssl", "genrsa", "-out", str(key), "2048"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with (self.folder / "tokens.csv").open("w") as file:
            csv.writer(file).writerow([ADMIN_TOKEN, "admin", "admin", "system:masters"])
        etcd, peers = free_port_number(), free_port_number()
        self._run(
            "etcd",
            *("--data-dir", self.folder / "etcd", "--unsafe-no-fsync", "--log-level", "error"),
            *(
                "--listen-client-urls",
                f"http://127.0.0.1:{etcd}",
                "--advertise-client-urls",
                f"http://127.0.0.1:{etcd}",
            ),
            *("--listen-peer-urls", f"http://127.0.0.1:{peers}"),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peers}"),
            *("--initial-cluster", f"default=http://127.0.0.1:{peers}"),
        )
        self._run(
            "kube-apiserver",
            *("--etcd-servers", f"http://127.0.0.1:{etcd}", "--bind-address", "127.0.0.1"),
            *("--secure-port", str(self.port), "--cert-dir", self.folder / "certs"),
            *("--token-auth-file", self.folder / "tokens.csv", "--authorization-mode", "RBAC"),
            *("--service-account-issuer", "https://kubernetes.default.svc"),
            *("--service-account-key-file", key, "--service-account-signing-key-file", key),
            *("--service-cluster-ip-range", "10.96.0.0/16", "--endpoint-reconciler-type", "none"),
            # Without controllers no namespace gets its default account, which this plugin would wait for.
            *("--disable-admission-plugins", "ServiceAccount"),
            *self.options,
        )
        self.wait(self._ready, within_s=READY_WITHIN_S, what=f"kube-apiserver ready, see {self.folder}/*.log")
        self.kubeconfig.write_text(self.kubeconfig_text(ADMIN_TOKEN))
        return self

    def stop(self) -> None:
        """End both programs, the server before its store."""
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes = []

    def kubeconfig_text(self, token: str) -> str:
        """Write the kubeconfig of a user with a token."""
        server = {"server": self.url, "certificate-authority": str(self.folder / "certs" / "apiserver.crt")}
        parts = {
            "clusters": [{"name": "test", "cluster": server}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        }
        return yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "current-context": "test", **parts})

    def kubectl(self, *arguments: str | Path, text_in: str | None = None, check: bool = True) -> str:
        """Run kubectl as administrator and return all that it printed; a failure raises with what it said."""
        done = self.try_kubectl(*arguments, text_in=text_in)
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def try_kubectl(self, *arguments: str | Path, text_in: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run kubectl as administrator, whatever comes of it."""
        command = [str(self.programs / "kubectl"), "--kubeconfig", str(self.kubeconfig), *map(str, arguments)]
        home = {"HOME": str(self.folder), "PATH": "/usr/bin:/bin"}  # its discovery cache goes with the folder
        return subprocess.run(
            command, input=text_in, capture_output=True, text=True, timeout=120, check=False, env=home
        )

    def apply(self, *manifests: dict[str, Any], namespace: str | None = None) -> None:
        """Apply manifests server-side."""
        where = ["-n", namespace] if namespace else []
        text = yaml.safe_dump_all(manifests)
        self.kubectl("apply", "--server-side", "--force-conflicts", *where, "-f", "-", text_in=text)

    def json(self, *arguments: str) -> Any:
        """Get objects, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def ask(self, path: str, *, method: str = "GET", body: Any = None, content_type: str = "application/json") -> Any:
        """Ask the API directly; for measuring, where a kubectl a request would be too slow."""
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Authorization", f"Bearer {ADMIN_TOKEN}")
        request.add_header("Content-Type", content_type)
        request.data = None if body is None else json.dumps(body).encode()
        context = create_default_context(cafile=str(self.folder / "certs" / "apiserver.crt"))
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            # Without its connection, which the caller would have to close.
            with error:
                refused = error.url, error.code, error.reason, error.headers, io.BytesIO(error.read())
        raise urllib.error.HTTPError(*refused)

    def wait(self, condition: Callable[[], bool], *, within_s: float, what: str) -> None:
        """Poll a condition until it holds; fail with what was awaited when the deadline passes."""
        deadline = time.monotonic() + limit_s(within_s)
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {within_s:g} s: {what}")
            time.sleep(0.1)

    def _run(self, program: str, *arguments: str | Path) -> None:
        with (self.folder / f"{program}.log").open("ab") as log:
            command = [str(self.programs / program), *map(str, arguments)]
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))

    def _ready(self) -> bool:
        for process in self.processes:
            name = Path(str(process.args[0])).name  # type: ignore[index]  # a list, as started above
            assert process.poll() is None, f"{name} ended: {(self.folder / f'{name}.log').read_text()[-600:]}"
        if not (self.folder / "certs" / "apiserver.crt").exists():
            return False
        request = urllib.request.Request(f"{self.url}/readyz", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"})
        context = create_default_context(cafile=str(self.folder / "certs" / "apiserver.crt"))
        try:
            with urllib.request.urlopen(request, timeout=2, context=context) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@pytest.fixture(scope="session")
def apiserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A Kubernetes API server without nodes; tests keep to namespaces of their own or clean up."""
    # Minutes of compiling would exceed a test's limit, without saying why.
    assert api_programs_there(), "first: PYTHONPATH=tests python3 -m cluster.bed tools (`make test` does)"
    server = ApiServer(tmp_path_factory.mktemp("apiserver"))
    try:
        yield server.start()
    finally:
        server.stop()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs an API server where none can be compiled; `.ci/hosts` and the header say so."""
    if not reason_against_tools():
        return
    without = [item for item in items if "apiserver" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=without)
    items[:] = [item for item in items if item not in without]


def pytest_report_header() -> str:
    """Say why tests that need Kubernetes are left out, if they are."""
    reason = reason_against_tools()
    return f"left out, no Kubernetes API server: {reason}" if reason else ""
