"""The Kubernetes API server: the only module that talks to it, watches apart.

Children are applied server-side under one field manager. What the server refuses is told as `ApiRefused`, with its own
words; what it cannot do just now as `ApiUnavailable`, which is worth another try later.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException

from sheetanchor_operator import metrics
from sheetanchor_operator.names import API_VERSION, FIELD_MANAGER, PIPELINE_KIND, REANCHOR_KIND

Body = dict[str, Any]

TIMEOUT_S: Final = 10.0
"""An answer of the API server comes within a second or not at all; a Lease must not wait longer than this."""

FENCED_TIMEOUT_S: Final = 3.9
"""A write of a leader that is about to lose its Lease has ended before anybody else may take it."""

EVENT_PAGES_MAX: Final = 4
"""Pages of Events that one look reads of an object; they are kept for an hour, and the same one again is one."""

PAGE: Final = 500
"""Objects per page of a list, as kubectl asks for."""

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
NAMES_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class ApiError(Exception):
    """The API server did not do what it was asked."""


class ApiUnavailable(ApiError):
    """No answer, or one that says to come again: the server is busy, or somebody has written at the same moment.

    Attributes:
        retry_after_s: When the server wants to be asked again; 0 if it did not say.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ApiRefused(ApiError):
    """An answer that will be the same as long as nobody changes anything.

    Attributes:
        code: HTTP status.
        reason: The server's machine-readable reason, for instance `AlreadyExists`.
    """

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Kind:
    """Where the objects of a kind are.

    Attributes:
        api_version: Group and version, for instance `apps/v1`.
        namespaced: False for nodes.
    """

    name: str
    api_version: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Give the path of an object, or of all in a namespace, or of all."""
        root = f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        parts = [root]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace)]
        parts += filter(None, [self.plural, quote(name), subresource])
        return "/".join(parts)


PIPELINE: Final = Kind(PIPELINE_KIND, API_VERSION, "predictionpipelines")
REANCHOR: Final = Kind(REANCHOR_KIND, API_VERSION, "reanchors")
NODE: Final = Kind("Node", "v1", "nodes", namespaced=False)
POD: Final = Kind("Pod", "v1", "pods")
JOB: Final = Kind("Job", "batch/v1", "jobs")
CHILDREN: Final = (
    Kind("ServiceAccount", "v1", "serviceaccounts"),
    Kind("Role", "rbac.authorization.k8s.io/v1", "roles"),
    Kind("RoleBinding", "rbac.authorization.k8s.io/v1", "rolebindings"),
    Kind("ConfigMap", "v1", "configmaps"),
    Kind("Secret", "v1", "secrets"),
    Kind("Service", "v1", "services"),
    Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies"),
    Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets"),
    Kind("Deployment", "apps/v1", "deployments"),
    Kind("StatefulSet", "apps/v1", "statefulsets"),
)
KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        PIPELINE,
        REANCHOR,
        NODE,
        POD,
        JOB,
        *CHILDREN,
        Kind("PersistentVolumeClaim", "v1", "persistentvolumeclaims"),
        Kind("Lease", "coordination.k8s.io/v1", "leases"),
    )
}


class Cluster:
    """A connection to the API server.

    Args:
        configuration: Where it is and who we are, as the official client loads it.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._client = ApiClient(configuration)
        self._may_write: Callable[[], bool] | None = None

    def fenced(self, may_write: Callable[[], bool]) -> Cluster:
        """Give the same connection with a guard: what was stopped and goes on must not write on somebody's heels."""
        guarded = copy(self)
        guarded._may_write = may_write
        return guarded

    async def aclose(self) -> None:
        """Give the connections back."""
        await self._client.close()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float = TIMEOUT_S,
    ) -> Body:
        """Send a request and give the object of the answer.

        Raises:
            ApiRefused: The server will not do it.
            ApiUnavailable: It cannot do it just now.
        """
        if method != "GET" and self._may_write is not None:
            if not self._may_write():
                raise ApiUnavailable(f"{method} {path}: not sent, since the Lease may be another's by now")
            timeout_s = min(timeout_s, FENCED_TIMEOUT_S)
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Content-Type": content_type, "Accept": accept}
        try:
            credentials: Any = await self._configuration.auth_settings()
        except (ConfigException, OSError) as error:
            raise ApiUnavailable(f"{method} {path}: not sent, the credentials cannot be read: {error}") from error
        for one in credentials.values():
            headers[one["key"]] = one["value"]
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._client.call_api(method, url, headers, body, _request_timeout=timeout_s)
                raw = await answer.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            metrics.API_ERRORS.labels("none").inc()
            told = str(error) or type(error).__name__
            raise ApiUnavailable(f"{method} {path}: no answer from the API server: {told}") from error
        content = _json(raw)
        if answer.status < 300:
            return content
        metrics.API_ERRORS.labels(str(answer.status)).inc()
        message = str(content.get("message") or raw[:200].decode(errors="replace") or answer.reason)
        # A condition on what is there ("Conflict" of a DELETE or a PUT) is the asker's own; where none was set, as in a
        # create that met another one's use of the same quota, it is a collision and gone the next time.
        collided = content.get("reason") == "Conflict" and method in ("POST", "PATCH")
        if answer.status == 429 or answer.status >= 500 or collided:
            after = answer.headers.get("Retry-After", "")
            raise ApiUnavailable(f"{method} {path}: {message}", float(after) if after.isdigit() else 0.0)
        raise ApiRefused(answer.status, str(content.get("reason", "")), message)

    async def get(self, kind: Kind, namespace: str, name: str) -> Body | None:
        """Read an object, None if it does not exist."""
        try:
            return await self.ask("GET", kind.path(namespace, name))
        except ApiRefused as error:
            if error.code == 404:
                return None
            raise

    async def pages(
        self, kind: Kind, namespace: str = "", *, selector: str = "", metadata_only: bool = False
    ) -> AsyncIterator[Body]:
        """Read all objects of a kind, page by page."""
        query = {"limit": str(PAGE)}
        if selector:
            query["labelSelector"] = selector
        accept = NAMES_ONLY if metadata_only else "application/json"
        while True:
            page = await self.ask("GET", kind.path(namespace), query=query, accept=accept)
            for item in page.get("items") or ():
                yield {**item, "kind": kind.name, "apiVersion": kind.api_version}
            rest = page.get("metadata", {}).get("continue", "")
            if not rest:
                return
            query["continue"] = rest

    async def apply(self, manifest: Body) -> Body:
        """Make an object be as the manifest says in every field that the manifest names; others' fields stay."""
        kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        path = kind.path(metadata["namespace"], metadata["name"])
        metrics.APPLIES.labels(kind.name).inc()
        return await self.ask("PATCH", path, query=query, body=manifest, content_type=APPLY)

    async def create(self, manifest: Body) -> Body | None:
        """Create an object; None if there is one of that name already."""
        kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
        query = {"fieldManager": FIELD_MANAGER}
        metrics.APPLIES.labels(kind.name).inc()
        try:
            return await self.ask("POST", kind.path(metadata["namespace"]), query=query, body=manifest)
        except ApiRefused as error:
            if error.reason == "AlreadyExists":
                return None
            raise

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str = "") -> None:
        """Delete an object and, after it, what it owns; that it is gone already is fine."""
        body: Body = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self.ask("DELETE", kind.path(namespace, name), body=body)
        except ApiRefused as error:
            if error.code != 404 and error.reason != "Conflict":
                raise

    async def merge(self, kind: Kind, namespace: str, name: str, change: Body, subresource: str = "") -> Body | None:
        """Merge fields into an object or its status; None if the object is gone."""
        path = kind.path(namespace, name, subresource)
        query = {"fieldManager": FIELD_MANAGER}
        try:
            return await self.ask("PATCH", path, query=query, body=change, content_type=MERGE)
        except ApiRefused as error:
            if error.code == 404:
                return None
            raise

    async def warnings(self, namespace: str, kind: str, name: str, uid: str) -> list[Body]:
        """Read the Warning events about an object, newest last.

        The server sorts by name: the first of them are no better than any, and those of an earlier object of the same
        name speak of that one.
        """
        about = f"type=Warning,involvedObject.kind={kind},involvedObject.name={name},involvedObject.uid={uid}"
        query = {"fieldSelector": about, "limit": str(PAGE)}
        found: list[Body] = []
        for _ in range(EVENT_PAGES_MAX):
            page = await self.ask("GET", f"/api/v1/namespaces/{quote(namespace)}/events", query=query)
            found += page.get("items") or ()
            rest = (page.get("metadata") or {}).get("continue", "")
            if not rest:
                break
            query["continue"] = rest
        return sorted(found, key=_told_at)


def _told_at(event: Body) -> str:
    """Give when an Event was last seen, as text that sorts by time."""
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")


def _json(raw: bytes) -> Body:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
