"""Cluster and credentials: kubeconfig files are read by kubectl's rules, and failures reported in its wording.

The client library reads them by rules of its own: an empty file ends it, the last file's current context counts, and
where a login helper fails it sends requests as an anonymous user. So it is given one context with its credentials.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from sheetanchor_operator.plugin.errors import EXIT_UNREACHABLE, PluginError

Tree = dict[str, Any]

LISTS: Final = {"clusters": "cluster", "contexts": "context", "users": "user"}
FILE_FIELDS: Final = ("certificate-authority", "client-certificate", "client-key", "tokenFile")
HELPER_TIMEOUT_S: Final = 300
"""The user may have to log in with a browser; a helper that hangs for longer is terminated."""


@dataclass(frozen=True, slots=True)
class Access:
    """One cluster, and the credentials for it.

    Attributes:
        config: A kubeconfig with this one context, paths absolute.
        namespace: The context's, "" if it names none.
        helper: The login helper that credentials come from; {} without one.
    """

    config: Tree
    context: str
    namespace: str
    helper: Mapping[str, Any]


def unusable(message: str) -> PluginError:
    """Make the error for a kubeconfig that gives no access."""
    return PluginError(message, EXIT_UNREACHABLE)


def find(kubeconfig: str, context: str, environ: Mapping[str, str]) -> Access | None:
    """Find the cluster and the credentials; None if there is no kubeconfig at all.

    Args:
        kubeconfig: File given by flag, "" for KUBECONFIG or ~/.kube/config.
        context: Context given by flag, "" for the current one.
        environ: Variables of the environment.

    Raises:
        PluginError: A file cannot be read, or is incomplete.
    """
    paths = _paths(kubeconfig, environ)
    merged = _merged([_load(path, options=bool(kubeconfig)) for path in paths])
    where = ", ".join(map(str, paths))
    if not any(merged[name] for name in LISTS):
        if kubeconfig or context:
            raise unusable(
                f'context "{context}" does not exist: {where} holds nothing' if context else f"{where}: empty"
            )
        return None
    return _access(merged, context, where)


def _paths(kubeconfig: str, environ: Mapping[str, str]) -> list[Path]:
    named = [kubeconfig] if kubeconfig else environ.get("KUBECONFIG", "").split(os.pathsep)
    named = [name for name in named if name] or ["~/.kube/config"]
    return [Path(name).expanduser() for name in named]


def _load(path: Path, *, options: bool) -> Tree:
    """Read a file; a missing one counts as empty, unless it was given by flag."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if options:
            raise unusable(f"stat {path}: no such file or directory") from None
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise unusable(f'error loading config file "{path}": {error}') from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise unusable(f'error loading config file "{path}": expected a map, found {type(tree).__name__}')
    return _with_paths(tree, path)


def _with_paths(tree: Tree, path: Path) -> Tree:
    """Check the lists of a file, and make its relative paths absolute."""
    kept: Tree = {"current-context": tree.get("current-context") or ""}
    for name, inner in LISTS.items():
        kept[name] = {}
        entries = tree.get(name) or []
        if not isinstance(entries, list) or not all(isinstance(one, dict) and one.get("name") for one in entries):
            raise unusable(f'error loading config file "{path}": {name}: expected a list of entries with a name')
        for entry in entries:
            content = entry.get(inner) or {}
            if not isinstance(content, dict):
                raise unusable(f'error loading config file "{path}": {name} {entry["name"]}: expected a map')
            kept[name].setdefault(str(entry["name"]), _absolute(content, path.absolute().parent))
    return kept


def _absolute(content: Tree, folder: Path) -> Tree:
    named = {name: str(folder / content[name]) for name in FILE_FIELDS if content.get(name)}
    helper = content.get("exec")
    command = helper.get("command") if isinstance(helper, dict) else None
    if isinstance(helper, dict) and isinstance(command, str) and os.sep in command:
        named["exec"] = {**helper, "command": str(folder / command)}  # type: ignore[assignment]  # a map, unlike files
    return {**content, **named}


def _merged(trees: list[Tree]) -> Tree:
    """Merge files: of each name, and of the current context, the first one that is set counts."""
    merged: Tree = {"current-context": ""}
    for name in LISTS:
        merged[name] = {}
    for tree in trees:
        merged["current-context"] = merged["current-context"] or tree.get("current-context", "")
        for name in LISTS:
            merged[name] = {**tree.get(name, {}), **merged[name]}
    return merged


def _access(merged: Tree, context: str, where: str) -> Access:
    name = context or str(merged["current-context"])
    known = ", ".join(sorted(merged["contexts"])) or "none"
    if not name:
        raise unusable(
            f"no context is chosen: current-context is not set in {where}; "
            f"kubectl config use-context NAME sets it, --context NAME does without (there are {known})"
        )
    if name not in merged["contexts"]:
        raise unusable(f'context "{name}" does not exist in {where}: there are {known}')
    chosen = merged["contexts"][name]
    cluster, user = str(chosen.get("cluster") or ""), str(chosen.get("user") or "")
    if cluster not in merged["clusters"]:
        raise unusable(f'cluster "{cluster}" of context "{name}" does not exist in {where}')
    if not merged["clusters"][cluster].get("server"):
        raise unusable(f'cluster "{cluster}" has no server in {where}')
    if user and user not in merged["users"]:
        raise unusable(f'user "{user}" of context "{name}" does not exist in {where} (auth info)')
    credentials = merged["users"].get(user, {})
    for field in ("tokenFile", "client-certificate", "client-key"):
        if credentials.get(field) and not Path(credentials[field]).is_file():
            raise unusable(f'user "{user}": open {credentials[field]}: no such file or directory')
    config = {
        "current-context": name,
        "contexts": [{"name": name, "context": {**chosen, "cluster": cluster, "user": user}}],
        "clusters": [{"name": cluster, "cluster": merged["clusters"][cluster]}],
        "users": [{"name": user, "user": credentials}] if user else [],
    }
    helper = credentials.get("exec") or {}
    # As with kubectl, an existing token is used and the login helper is not called.
    return Access(config, name, str(chosen.get("namespace") or ""), {} if _has_token(credentials) else helper)


def _has_token(credentials: Mapping[str, Any]) -> bool:
    return bool(credentials.get("token") or credentials.get("tokenFile"))


def log_in(access: Access, environ: Mapping[str, str]) -> Tree:
    """Give the kubeconfig to connect with: a login helper's entry is replaced by its credentials.

    Raises:
        PluginError: The helper is missing or fails; with the helper's own message.
    """
    if not access.helper:
        return access.config
    status = _run_helper(access, environ)
    if status.get("token"):
        user: Tree = {"token": status["token"]}
    elif status.get("clientCertificateData") and status.get("clientKeyData"):
        user = {
            name: _base64(status[field])
            for name, field in (
                ("client-certificate-data", "clientCertificateData"),
                ("client-key-data", "clientKeyData"),
            )
        }
    else:
        raise unusable(f"getting credentials: exec: {access.helper['command']} didn't return a token or cert/key pair")
    return {**access.config, "users": [{"name": access.config["users"][0]["name"], "user": user}]}


def _base64(text: str) -> str:
    return base64.b64encode(str(text).encode()).decode()


def _run_helper(access: Access, environ: Mapping[str, str]) -> Tree:
    helper = access.helper
    command, version = str(helper.get("command") or ""), str(helper.get("apiVersion") or "")
    message = f"getting credentials: exec: executable {command}"
    given = {str(one.get("name")): str(one.get("value", "")) for one in helper.get("env") or ()}
    variables = {**environ, **given}
    if shutil.which(command, path=variables.get("PATH")) is None:
        hint = " ".join(str(helper.get("installHint") or "").split())
        raise unusable(f"{message} not found{': ' + hint if hint else ''}")
    by_hand = sys.stdin.isatty() and sys.stderr.isatty() and helper.get("interactiveMode") != "Never"
    spec: Tree = {"interactive": by_hand}
    if helper.get("provideClusterInfo"):
        spec["cluster"] = _cluster_info(access.config["clusters"][0]["cluster"])
    info = {"apiVersion": version, "kind": "ExecCredential", "spec": spec}
    try:
        done = subprocess.run(
            [command, *map(str, helper.get("args") or ())],
            stdin=None if by_hand else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=None if by_hand else subprocess.PIPE,  # a prompt for the user has to be visible at once
            env={**variables, "KUBERNETES_EXEC_INFO": json.dumps(info)},
            timeout=HELPER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise unusable(f"{message} has not answered within {HELPER_TIMEOUT_S} s") from None
    except OSError as error:
        raise unusable(f"{message} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        report = " ".join((done.stderr or b"").decode(errors="replace").split())
        raise unusable(f"{message} failed with exit code {done.returncode}{': ' + report if report else ''}")
    return _status_in(done.stdout, version, message)


def _status_in(raw: bytes, version: str, message: str) -> Tree:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise unusable(f"{message}: decoding stdout: {error}") from error
    if not isinstance(answer, dict) or answer.get("kind") != "ExecCredential":
        raise unusable(f"{message}: decoding stdout: expected an ExecCredential")
    if answer.get("apiVersion") != version:
        raise unusable(
            f"{message}: configured to use API version {version}, returned version {answer.get('apiVersion')}"
        )
    status = answer.get("status")
    return status if isinstance(status, dict) else {}


def _cluster_info(cluster: Mapping[str, Any]) -> Tree:
    """Give the cluster's data that is passed to a helper."""
    names = ("server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url")
    return {name: cluster[name] for name in names if name in cluster}
