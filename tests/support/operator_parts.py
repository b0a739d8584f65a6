"""What the tests of the operator's edges share: definitions on a real API server, namespaces, accounts and tokens."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from sheetanchor_operator.api.pipeline import Pipeline, parse
from sheetanchor_operator.children.accounts import accounts
from sheetanchor_operator.names import API_VERSION, PIPELINE_KIND, REANCHOR_KIND
from support.apiserver import ApiServer

CRDS = Path(__file__).resolve().parents[2] / "crds"


def define(server: ApiServer) -> None:
    """Install the custom resource definitions and wait until they are served."""
    server.kubectl("apply", "--server-side", "--force-conflicts", "-f", CRDS)
    server.kubectl("wait", "--for=condition=Established", "--timeout=90s", "-f", CRDS)
    for plural in ("reanchors", "predictionpipelines"):
        _served(server, plural)


def _served(server: ApiServer, plural: str) -> None:
    """Wait for the objects: the server answers 429 while it prepares the storage of a definition that it knows."""
    until_s = time.monotonic() + 90
    while True:
        try:
            server.ask(f"/apis/{API_VERSION}/{plural}")
        except HTTPError as error:
            if error.code not in (404, 429) or time.monotonic() > until_s:
                raise
            time.sleep(0.1)
        else:
            return


@contextmanager
def namespace(server: ApiServer) -> Iterator[str]:
    """Make a namespace that no other test knows of."""
    name = f"test-{uuid.uuid4().hex[:8]}"
    server.ask("/api/v1/namespaces", method="POST", body={"metadata": {"name": name}})
    yield name
    for plural in ("reanchors", "predictionpipelines"):
        server.ask(f"/apis/{API_VERSION}/namespaces/{name}/{plural}", method="DELETE")


def make_pipeline(server: ApiServer, where: str, name: str = "btc", **spec: Any) -> Pipeline:
    """Create a pipeline and its accounts, as the operator would."""
    body = {"apiVersion": API_VERSION, "kind": PIPELINE_KIND, "metadata": {"name": name}}
    made = parse(create(server, where, {**body, "spec": {"symbols": ["BTCUSDT"], **spec}}))
    for manifest in accounts(made):
        create(server, where, manifest)
    return made


def create(server: ApiServer, where: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """Create an object; a field that no schema knows is an error."""
    group = "/api/v1" if manifest["apiVersion"] == "v1" else f"/apis/{manifest['apiVersion']}"
    path = f"{group}/namespaces/{where}/{manifest['kind'].lower()}s?fieldValidation=Strict"
    return dict(server.ask(path, method="POST", body=manifest))


def token_folder(server: ApiServer, where: str, account: str, folder: Path) -> Path:
    """Make the folder that a pod of an account would find mounted."""
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(token_of(server, where, account))
    (folder / "namespace").write_text(where)
    shutil.copy(server.folder / "certs" / "apiserver.crt", folder / "ca.crt")
    return folder


def token_of(server: ApiServer, where: str, account: str) -> str:
    """Have the server make a token of an account."""
    return server.kubectl("create", "token", account, "-n", where).strip()


def reanchors(server: ApiServer, where: str) -> dict[str, dict[str, Any]]:
    """Read all ReAnchors by name."""
    found = server.ask(f"/apis/{API_VERSION}/namespaces/{where}/reanchors")["items"]
    return {one["metadata"]["name"]: one for one in found}


def set_status(server: ApiServer, where: str, kind: str, name: str, status: dict[str, Any]) -> None:
    """Write a status, as the operator does."""
    plural = {PIPELINE_KIND: "predictionpipelines", REANCHOR_KIND: "reanchors"}[kind]
    path = f"/apis/{API_VERSION}/namespaces/{where}/{plural}/{name}/status"
    server.ask(path, method="PATCH", body={"status": status}, content_type="application/merge-patch+json")
