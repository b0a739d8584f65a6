"""The client of the Kubernetes API server: the only module that sends it requests.

Children are applied server-side under one field manager. A refusal is raised as `ApiRefused`, with the server's
message; a failure that may be gone at the next try as `ApiUnavailable`. One module, since every request goes through
the same fence, timeout and translation of errors.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException

from sheetanchor.errors import shortened
from sheetanchor_operator import metrics
from sheetanchor_operator.kube.reconcile_timer import CURRENT_TIMER
from sheetanchor_operator.names import API_VERSION, FIELD_MANAGER, PIPELINE_KIND, REANCHOR_KIND

Body = dict[str, Any]

TIMEOUT_S: Final = 10.0
"""The API server answers within a second or not at all; the renewal of a Lease must not wait longer than this."""

FENCED_TIMEOUT_S: Final = 3.9
"""A write of a leader that is about to lose its Lease has ended before another candidate may take the Lease."""

EVENT_PAGES_MAX: Final = 4
"""Pages of Events that one reconcile reads of an object; they are kept for an hour, and a repeated one is counted, not
added."""
EVENTS_PER_PAGE: Final = 500

PAGE: Final = 100
"""Objects per page of a list: any of them may have the largest size that the API server accepts, and a page is in
memory at once."""

WATCH_S: Final = 240
"""Duration of a watch in seconds; a whole number, since the API server accepts no other."""

CONNECT_S: Final = 5.0
SILENCE_S: Final = 70.0
"""The API server sends a bookmark every minute: a stream without one for longer is broken."""

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
STRATEGIC_MERGE: Final = "application/strategic-merge-patch+json"
"""Merges lists of conditions by type; only kinds of Kubernetes' own know it."""

JSON_PATCH: Final = "application/json-patch+json"
JSON: Final = "application/json"
NAMES_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
NAME_ONLY: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
EXPIRED: Final = 410
SERVER_ERROR: Final = 500
TOO_MANY: Final = 429


class ApiError(Exception):
    """A request to the API server failed."""


class ApiUnavailable(ApiError):
    """No answer, or one that asks for a retry: the server is busy, or the object was written at the same moment.

    Attributes:
        retry_after_s: Wait before the retry that the server asks for; 0 if it names none.
    """

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ApiConflict(ApiUnavailable):
    """The object was written since it was read."""


class ApiRefused(ApiError):
    """A refusal that stays the same until a user or an administrator changes something.

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
    """A kind of objects, and its paths in the API.

    Attributes:
        api_version: Group and version, for instance `apps/v1`.
        namespaced: Whether its objects are in namespaces; nodes are not.
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
METADATA_ONLY: Final = frozenset(kind for kind in CHILDREN if kind.name in ("ConfigMap", "Secret"))
"""Kinds that are watched by metadata only: any of them may hold a megabyte, and Secrets must not be kept in memory."""

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

    One class, since each kind of request is a few lines about the one that passes the fence.

    Args:
        configuration: Address and credentials, as the official client loads them.
    """

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._client = ApiClient(configuration)
        # A watch occupies its connection: in the same pool it could block a write, or the renewal of the Lease.
        endless = copy(configuration)
        endless.connection_pool_maxsize = 0
        self._streams = ApiClient(endless)
        self._may_write: Callable[[], bool] | None = None

    def fenced(self, may_write: Callable[[], bool]) -> Cluster:
        """Give the same connection with a guard: an operator that was suspended and lost the Lease must not write."""
        guarded = copy(self)
        guarded._may_write = may_write
        return guarded

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()
        await self._streams.close()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Body | list[Body] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        timeout_s: float = TIMEOUT_S,
    ) -> Body:
        """Send a request and give the object of the answer.

        Raises:
            ApiRefused: The server refuses it.
            ApiUnavailable: It does not answer, or cannot do it at the moment.
        """
        if method != "GET" and self._may_write is not None:
            if not self._may_write():
                raise ApiUnavailable(f"{method} {path}: not sent, since this operator may have lost the Lease")
            timeout_s = min(timeout_s, FENCED_TIMEOUT_S)
        url = self._configuration.host + path + (f"?{urlencode(query)}" if query else "")
        headers = await self._headers(f"{method} {path}", content_type, accept)
        asked_s = time.monotonic()
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._client.call_api(method, url, headers, body, _request_timeout=timeout_s)
                raw = await answer.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise _unanswered(f"{method} {path}", error) from error
        finally:
            if (timer := CURRENT_TIMER.get()) is not None:
                timer.answered(f"{method} {path}", time.monotonic() - asked_s)
        if answer.status < 300:
            return _json(raw)
        raise _not_granted(method, path, answer.status, raw, answer.headers.get("Retry-After", ""))

    async def _headers(self, what: str, content_type: str, accept: str) -> dict[str, str]:
        headers = {"Content-Type": content_type, "Accept": accept}
        try:
            credentials: Any = await self._configuration.auth_settings()
        except (ConfigException, OSError) as error:
            raise ApiUnavailable(
                f"{what}: not sent, since the operator's credentials cannot be read: {error}"
            ) from error
        for one in credentials.values():
            headers[one["key"]] = one["value"]
        return headers

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
    ) -> AsyncGenerator[tuple[str, list[Body]], None]:
        """Read all objects of a kind, page by page, each with the version that the whole list has."""
        query = {"limit": str(PAGE)}
        if selector:
            query["labelSelector"] = selector
        accept = NAMES_ONLY if metadata_only else JSON
        while True:
            page = await self.ask("GET", kind.path(namespace), query=query, accept=accept)
            metadata = page.get("metadata", {})
            items = [{**item, "kind": kind.name, "apiVersion": kind.api_version} for item in page.get("items") or ()]
            yield str(metadata.get("resourceVersion", "")), items
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def watch(
        self, kind: Kind, namespace: str = "", *, since: str, selector: str = "", metadata_only: bool = False
    ) -> AsyncGenerator[tuple[str, Body], None]:
        """Give the changes of the objects of a kind after a version, as type of event and object, for some minutes.

        The first is ("OPENED", {}), as soon as the server has granted it. Bookmarks are passed on.

        Raises:
            ApiRefused: The server refuses it; `code` 410 if that version is too old to continue from.
            ApiUnavailable: It does not answer, or cannot do it at the moment.
        """
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(WATCH_S)}
        query |= {"resourceVersion": since} | ({"labelSelector": selector} if selector else {})
        what, path = f"watch of {kind.path(namespace)}", kind.path(namespace)
        url = f"{self._configuration.host}{path}?{urlencode(query)}"
        headers = await self._headers(what, JSON, NAME_ONLY if metadata_only else JSON)
        patience = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        try:
            answer = await self._streams.call_api("GET", url, headers, _request_timeout=patience)
            response: aiohttp.ClientResponse = answer.response
            async with response:
                if response.status >= 300:
                    after = response.headers.get("Retry-After", "")
                    raise _not_granted("GET", path, response.status, await response.read(), after)
                yield "OPENED", {}
                async for line in _lines(response.content):
                    event = _json(line)
                    body = event.get("object") or {}
                    if event.get("type") == "ERROR":
                        raise _not_granted("GET", path, int(body.get("code") or SERVER_ERROR), line, "", body)
                    yield str(event.get("type")), {**body, "kind": kind.name, "apiVersion": kind.api_version}
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise _unanswered(what, error) from error

    async def apply(self, manifest: Body, uid: str) -> Body:
        """Apply a manifest: every field that it names gets its value; fields of other managers stay.

        Args:
            manifest: The desired object.
            uid: Uid of the live object: another one of the same name is refused.
        """
        kind, metadata = KINDS[manifest["kind"]], manifest["metadata"]
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        path = kind.path(metadata["namespace"], metadata["name"])
        body = {**manifest, "metadata": {**metadata, "uid": uid}}
        metrics.APPLIES.labels(kind.name).inc()
        return await self.ask("PATCH", path, query=query, body=body, content_type=APPLY)

    async def own_fields(self, live: Body) -> None:
        """Make the fields of a created object count as applied, so that those removed from the manifest are removed.

        The API server keeps both apart: a field that was set by a creation stays when a later apply leaves it out.
        """
        metadata = live["metadata"]
        entries = metadata.get("managedFields") or ()
        ours = [one for one in entries if one.get("manager") == FIELD_MANAGER and not one.get("subresource")]
        if not any(one.get("operation") == "Update" for one in ours):
            return
        applied = [one for one in ours if one.get("operation") == "Apply"] or [{**ours[0], "operation": "Apply"}]
        others = [one for one in entries if one not in ours]
        change = [
            {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
            {"op": "test", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]},
            {"op": "replace", "path": "/metadata/managedFields", "value": [*others, *applied]},
        ]
        kind = KINDS[live["kind"]]
        path = kind.path(metadata["namespace"], metadata["name"])
        await self.ask("PATCH", path, query={"fieldManager": FIELD_MANAGER}, body=change, content_type=JSON_PATCH)

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
        """Delete an object and, after it, what it owns; a missing object is no error."""
        body: Body = {"propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self.ask("DELETE", kind.path(namespace, name), body=body)
        except ApiRefused as error:
            if error.code != 404 and error.reason != "Conflict":
                raise

    async def merge(self, kind: Kind, namespace: str, name: str, change: Body, subresource: str = "") -> Body | None:
        """Merge fields into an object or its status; None if the object does not exist."""
        path = kind.path(namespace, name, subresource)
        query = {"fieldManager": FIELD_MANAGER}
        try:
            return await self.ask("PATCH", path, query=query, body=change, content_type=MERGE)
        except ApiRefused as error:
            if error.code == 404:
                return None
            raise

    async def set_condition(
        self, kind: Kind, namespace: str, name: str, version: str, condition: Body, *, timeout_s: float
    ) -> Body | None:
        """Set one condition in an object's status, if it still is at a version; None if the object is gone.

        Raises:
            ApiConflict: It was written since.
            ApiRefused: The server will not do it.
            ApiUnavailable: It cannot do it just now.
        """
        path = kind.path(namespace, name, "status")
        body = {"metadata": {"resourceVersion": version}, "status": {"conditions": [condition]}}
        query = {"fieldManager": FIELD_MANAGER}
        try:
            return await self.ask(
                "PATCH", path, query=query, body=body, content_type=STRATEGIC_MERGE, timeout_s=timeout_s
            )
        except ApiRefused as error:
            if error.code == 404:
                return None
            raise

    async def evict(self, namespace: str, name: str, uid: str) -> bool:
        """Delete a pod as a drain does, if the budgets allow it; false if it is gone, or another one by now.

        Raises:
            ApiRefused: The server will not do it.
            ApiUnavailable: A budget does not allow it now, or the server cannot do it just now.
        """
        body: Body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
        if uid:
            body["deleteOptions"] = {"preconditions": {"uid": uid}}
        try:
            await self.ask("POST", POD.path(namespace, name, "eviction"), body=body)
        except ApiConflict:
            return False
        except ApiRefused as error:
            if error.code == 404:
                return False
            raise
        return True

    async def warnings(self, namespace: str, kind: str, name: str, uid: str) -> list[Body]:
        """Read the Warning events about an object, newest last.

        The server sorts by name, so pages are read until the bound; Events of an earlier object of the same name are
        left out by its uid.
        """
        about = f"type=Warning,involvedObject.kind={kind},involvedObject.name={name},involvedObject.uid={uid}"
        query = {"fieldSelector": about, "limit": str(EVENTS_PER_PAGE)}
        found: list[Body] = []
        for _ in range(EVENT_PAGES_MAX):
            page = await self.ask("GET", f"/api/v1/namespaces/{quote(namespace)}/events", query=query)
            found += page.get("items") or ()
            rest = (page.get("metadata") or {}).get("continue", "")
            if not rest:
                break
            query["continue"] = rest
        return sorted(found, key=_event_time)


def _event_time(event: Body) -> str:
    """Give when an Event was last seen, as text that sorts by time."""
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")


def _unanswered(what: str, error: BaseException) -> ApiUnavailable:
    metrics.API_ERRORS.labels("none").inc()
    return ApiUnavailable(f"{what}: no answer from the API server: {str(error) or type(error).__name__}")


def _not_granted(
    method: str, path: str, code: int, raw: bytes, retry_after: str, status: Body | None = None
) -> ApiRefused | ApiUnavailable:
    """Turn an error answer into an exception: refused, or worth another try."""
    metrics.API_ERRORS.labels(str(code)).inc()
    content = _json(raw) if status is None else status
    message = str(content.get("message") or shortened(raw.decode(errors="replace"), 200) or f"HTTP {code}")
    # A conflict on a DELETE or a PUT is the precondition that the request set itself, and is a refusal. Elsewhere, as
    # in a create that collided with another update of the same quota, the next try succeeds.
    collided = content.get("reason") == "Conflict" and method in ("POST", "PATCH")
    if collided:
        return ApiConflict(f"{method} {path}: {message}")
    if code == TOO_MANY or code >= SERVER_ERROR:
        return ApiUnavailable(f"{method} {path}: {message}", float(retry_after) if retry_after.isdigit() else 0.0)
    return ApiRefused(code, str(content.get("reason", "")), message)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Split a stream into lines of any length: an object may be larger than the library's line buffer."""
    rest = bytearray()
    async for chunk in content.iter_any():
        rest += chunk
        if b"\n" in chunk:
            *whole, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            for line in whole:
                if line.strip():
                    yield line


def _json(raw: bytes) -> Body:
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
