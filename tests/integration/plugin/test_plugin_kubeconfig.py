"""Kubeconfigs that are broken, incomplete or lead to a login helper: what kubectl makes of each, and what we do.

Both programs are run, on the same files and the same real API server: where one works the other does, and where kubectl
fails ours fails with exit code 7 and names the same thing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.apiserver import ApiServer
from support.operator_parts import define, make_pipeline, namespace

pytestmark = pytest.mark.slow

API = "client.authentication.k8s.io/v1"
OLD_API = "client.authentication.k8s.io/v1beta1"
EXPIRED = "SSO session has expired, run: sso login"


@dataclass
class Bench:
    """A folder for kubeconfigs, and a pipeline to ask for."""

    server: ApiServer
    where: str
    folder: Path
    sound: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.sound = yaml.safe_load(self.server.kubeconfig.read_text())
        self.token = self.sound["users"][0]["user"]["token"]

    def write(self, name: str, content: Any) -> str:
        """Write a file; what is no text is written as YAML."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return str(path)

    def program(self, name: str, *lines: str) -> str:
        """Write a login helper."""
        path = Path(self.write(name, "\n".join(["#!/bin/sh", *lines]) + "\n"))
        path.chmod(0o755)
        return str(path)

    def changed(self, **parts: Any) -> dict[str, Any]:
        return {**self.sound, **parts}

    def with_user(self, **user: Any) -> dict[str, Any]:
        return self.changed(users=[{"name": self.sound["users"][0]["name"], "user": user}])

    def with_helper(self, command: str, **more: Any) -> dict[str, Any]:
        helper = {"apiVersion": API, "command": command, "interactiveMode": "IfAvailable", **more}
        return self.with_user(exec=helper)

    def run(self, *files: str, flags: tuple[str, ...] = ()) -> tuple[Any, Any]:
        """Read the pipeline with kubectl and with the plugin."""
        environ = {"KUBECONFIG": os.pathsep.join(files), "PATH": "/usr/bin:/bin", "HOME": str(self.folder / "home")}
        kubectl = [str(self.server.programs / "kubectl"), "get", "pp", "btc", *flags]
        ours = [sys.executable, "-m", "sheetanchor_operator.plugin", "history", "btc", *flags]
        done = [
            subprocess.run(
                [*command, "-n", self.where],
                capture_output=True, text=True, timeout=60, check=False, env=environ, stdin=subprocess.DEVNULL,
            )
            for command in (kubectl, ours)
        ]  # fmt: skip
        return done[0], done[1]


@pytest.fixture(scope="module")
def bench(apiserver: ApiServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    define(apiserver)
    with namespace(apiserver) as where:
        make_pipeline(apiserver, where)
        bench = Bench(apiserver, where, tmp_path_factory.mktemp("kubeconfigs"))
        listing = ["get", "reanchors.sheetanchor.dev", "-n", where]
        # A server lists new objects some moments after their creation.
        apiserver.wait(lambda: apiserver.try_kubectl(*listing).returncode == 0, within_s=30, what="it lists them")
        yield bench


def credential(token: str, version: str = API) -> str:
    return json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": {"token": token}})


Files = Callable[[Bench], list[str]]
WORKS: dict[str, Files] = {
    "as it should be": lambda b: [b.write("sound", b.sound)],
    "an empty file first": lambda b: [b.write("empty", ""), b.write("sound", b.sound)],
    "an empty file last": lambda b: [b.write("sound", b.sound), b.write("empty", "")],
    "a comment only": lambda b: [b.write("comment", "# nothing\n"), b.write("sound", b.sound)],
    "a file that is missing": lambda b: [str(b.folder / "missing"), b.write("sound", b.sound)],
    "an empty name in the list": lambda b: ["", b.write("sound", b.sound), ""],
    "current-context empty in the first": lambda b: [
        b.write("no-context", {"apiVersion": "v1", "kind": "Config", "current-context": ""}),
        b.write("sound", b.sound),
    ],
    "current-context empty in the last": lambda b: [
        b.write("sound", b.sound),
        b.write("no-context", {"apiVersion": "v1", "kind": "Config", "current-context": ""}),
    ],
    "parts in different files": lambda b: [
        b.write("users", {"apiVersion": "v1", "kind": "Config", "users": b.sound["users"]}),
        b.write("rest", b.changed(users=[])),
    ],
    "a later file says otherwise": lambda b: [
        b.write("sound", b.sound),
        b.write("other", b.with_user(token="another")),
    ],
    "lists that are null": lambda b: [
        b.write("nulls", "apiVersion: v1\nkind: Config\nclusters:\nusers:\ncontexts:\n"),
        b.write("sound", b.sound),
    ],
    "a token in a file beside it": lambda b: [
        b.write("beside/token", b.token) and b.write("beside/config", b.with_user(tokenFile="token"))
    ],
    "a login helper": lambda b: [
        b.write("helped", b.with_helper(b.program("good", f"echo '{credential(b.token)}'")))
    ],
    "a login helper beside it, with arguments and variables": lambda b: [
        b.program("near/helper", 'test "$1 $WHO" = "token ann" || exit 9', f"echo '{credential(b.token)}'")
        and b.write(
            "near/config", b.with_helper("./helper", args=["token"], env=[{"name": "WHO", "value": "ann"}])
        )
    ],
    "a login helper that wants to know of the cluster": lambda b: [
        b.write(
            "informed",
            b.with_helper(
                b.program(
                    "asks",
                    f'case "$KUBERNETES_EXEC_INFO" in *{b.server.url}*) ;; *) exit 9;; esac',
                    f"echo '{credential(b.token)}'",
                ),
                provideClusterInfo=True,
            ),
        )
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", WORKS)
def test_what_works_with_kubectl_works(bench: Bench, what: str) -> None:
    """Files are merged as kubectl merges them, and a login helper is asked as it asks one."""
    kubectl, ours = bench.run(*WORKS[what](bench))

    assert 0 == kubectl.returncode, kubectl.stderr
    assert (0, "No re-anchors yet.\n", "") == (ours.returncode, ours.stdout, ours.stderr)


Broken = tuple[Files, tuple[str, ...], str, str]
FAILS: dict[str, Broken] = {
    "a helper that fails": (
        lambda b: [b.write("f", b.with_helper(b.program("sso", f"echo '{EXPIRED}' >&2", "exit 255")))],
        (), EXPIRED, "failed with exit code 255",
    ),
    "a helper that is missing": (
        lambda b: [b.write("f", b.with_helper("aws-sso-nowhere", installHint="install it from the intranet"))],
        (), "executable aws-sso-nowhere not found", "install it from the intranet",
    ),
    "a helper that answers nonsense": (
        lambda b: [b.write("f", b.with_helper(b.program("odd", "echo hello")))], (), "decoding stdout", "",
    ),
    "a helper of another version": (
        lambda b: [
            b.write("f", b.with_helper(b.program("old", f"echo '{credential('x', OLD_API)}'")))
        ],
        (), OLD_API, "",
    ),
    "a helper that gives nothing": (
        lambda b: [b.write("f", b.with_helper(b.program("none", f"echo '{credential('')}'")))],
        (), "didn't return a token or cert/key pair", "",
    ),
    "a helper whose token is not accepted": (
        lambda b: [b.write("f", b.with_helper(b.program("stale", f"echo '{credential('stale')}'")))],
        (), "ou must be logged in to the server", "",
    ),
    "a token that has expired": (
        lambda b: [b.write("f", b.with_user(token="expired"))], (), "ou must be logged in to the server", "",
    ),
    "no context that is chosen": (
        lambda b: [b.write("f", b.changed(**{"current-context": "", "contexts": [], "clusters": []}))],
        (), "", "current-context is not set",
    ),
    "a current context that is missing": (
        lambda b: [b.write("f", b.changed(**{"current-context": "mars"}))], (), "mars", "does not exist",
    ),
    "a context of the flag that is missing": (
        lambda b: [b.write("f", b.sound)], ("--context", "mars"), 'context "mars" does not exist', "there are",
    ),
    "a file of the flag that is missing": (
        lambda b: [b.write("f", b.sound)], ("--kubeconfig", "/nowhere/config"), "/nowhere/config: no such file", "",
    ),
    "a cluster that is missing": (lambda b: [b.write("f", b.changed(clusters=[]))], (), "", "does not exist"),
    "no YAML": (lambda b: [b.write("f", "not: [a kubeconfig")], (), "error loading config file", "while parsing"),
    "a list": (lambda b: [b.write("f", "- a\n- b\n")], (), "error loading config file", ""),
    "a token file that is missing": (
        lambda b: [b.write("f", b.with_user(tokenFile="gone"))], (), "", "gone: no such file or directory",
    ),
    "a certificate that is missing": (
        lambda b: [b.write("f", b.with_user(**{"client-certificate": "c.pem", "client-key": "k.pem"}))],
        (), "c.pem: no such file or directory", "",
    ),
    "nothing at all": (lambda b: [str(b.folder / "missing")], (), "", "no kubeconfig"),
}  # fmt: skip


@pytest.mark.parametrize("what", FAILS)
def test_what_fails_with_kubectl_fails_with_its_words(bench: Bench, what: str) -> None:
    """One line, exit code 7, the credential plugin's message if any; no failed login is reported as a missing right."""
    files, flags, in_both, in_ours = FAILS[what]

    kubectl, ours = bench.run(*files(bench), flags=flags)

    assert 0 != kubectl.returncode
    assert (7, "") == (ours.returncode, ours.stdout), ours.stderr
    assert in_both in " ".join(kubectl.stderr.split())
    assert in_both in ours.stderr
    assert in_ours in ours.stderr
    assert "anonymous" not in ours.stderr
    assert "may not" not in ours.stderr
    assert 1 == len(ours.stderr.strip().splitlines())


def test_a_user_without_credentials_is_told_so(bench: Bench) -> None:
    """The server treats the user as anonymous, which no role would help against."""
    _, ours = bench.run(bench.write("f", bench.with_user()))

    assert 7 == ours.returncode
    assert "You must be logged in to the server" in ours.stderr
    assert "may not" not in ours.stderr
