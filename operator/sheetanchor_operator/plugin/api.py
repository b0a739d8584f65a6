"""The Kubernetes API as the plugin needs it; every failure becomes one clear line."""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from sheetanchor_operator.names import GROUP, PIPELINES, REANCHORS, VERSION
from sheetanchor_operator.plugin.errors import (
    EXIT_FAILED,
    EXIT_FORBIDDEN,
    EXIT_NOT_FOUND,
    EXIT_UNREACHABLE,
    PluginError,
)
from sheetanchor_operator.plugin.kubeconfig import Access, find, log_in

TIMEOUT_S: Final = (5.0, 30.0)
"""Seconds to connect, and to wait for an answer."""

UNAUTHORIZED, FORBIDDEN, NOT_FOUND, CONFLICT = 401, 403, 404, 409
UNAVAILABLE: Final = frozenset({429, 500, 502, 503, 504})
ANONYMOUS: Final = "system:anonymous"
OWN_NAMESPACE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

ROLE: Final = "sheetanchor-reanchor"
MOVING_ROLE: Final = "sheetanchor-move"
"""ClusterRole of the chart that allows what this command does."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """The cluster and namespace to use.

    Attributes:
        context: Context of the kubeconfig, "" for the current one.
        namespace: Namespace, "" for the context's.
    """

    kubeconfig: str = ""
    context: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server, or a pod behind its proxy, answered.

    Attributes:
        status: HTTP status.
        error: Why the body is not whole; it is empty then.
        at_us: Time of the answer by the server's clock, to the second; 0 if it does not say.
    """

    status: int
    body: bytes
    error: str = ""
    at_us: int = 0


class Api:
    """The API server of a target.

    Raises:
        PluginError: There is no usable kubeconfig.
    """

    def __init__(self, target: Target) -> None:
        self._access = find(target.kubeconfig, target.context, os.environ)
        self._client = _connect(self._access)
        named = self._access.namespace if self._access is not None else _own_namespace()
        self.namespace = target.namespace or named or "default"
        self._objects = client.CustomObjectsApi(self._client)

    def _log_in_again(self) -> bool:
        """Call the login helper again; false if there is none. Its credentials may have expired during a long wait."""
        if self._access is None or not self._access.helper:
            return False
        self._client = _connect(self._access)
        self._objects = client.CustomObjectsApi(self._client)
        return True

    def pipeline(self, name: str) -> Object:
        """Read a pipeline.

        Raises:
            PluginError: It does not exist (names those that do), or may not be read.
        """
        try:
            return self._call("get", PIPELINES, "get_namespaced_custom_object", name)
        except PluginError as error:
            if error.exit_code != EXIT_NOT_FOUND:
                raise
            raise PluginError(self._no_such(name, str(error)), EXIT_NOT_FOUND) from error

    def _no_such(self, name: str, detail: str) -> str:
        try:
            names = [one["metadata"]["name"] for one in self.pipelines()]
        except PluginError as error:
            if error.exit_code == EXIT_NOT_FOUND:
                return f"this cluster has no PredictionPipelines: install the operator first, with its chart ({detail})"
            names = []
        there = f"there are {', '.join(sorted(names))}" if names else "it has none that can be listed"
        return f"no pipeline {name!r} in namespace {self.namespace}: {there}"

    def pipelines(self) -> list[Object]:
        """List the pipelines.

        Raises:
            PluginError: They may not be listed.
        """
        return self._items(self._call("list", PIPELINES, "list_namespaced_custom_object"))

    def reanchors(self, pipeline: str) -> list[Object]:
        """List the re-anchors of a pipeline, oldest first.

        Raises:
            PluginError: They may not be listed.
        """
        items = self._items(self._call("list", REANCHORS, "list_namespaced_custom_object"))
        own = [one for one in items if one.get("spec", {}).get("pipeline") == pipeline]
        return sorted(own, key=lambda one: (one["metadata"]["creationTimestamp"], one["metadata"]["name"]))

    def reanchor(self, name: str) -> Object | None:
        """Read a re-anchor; None if there is none of that name.

        Raises:
            PluginError: It may not be read.
        """
        try:
            return self._call("get", REANCHORS, "get_namespaced_custom_object", name)
        except PluginError as error:
            if error.exit_code == EXIT_NOT_FOUND:
                return None
            raise

    def create_reanchor(self, manifest: Object) -> Object | None:
        """Create a re-anchor; None if there is one of that name already.

        Raises:
            PluginError: It may not be created, or the API server refuses it.
        """
        try:
            return self._call("create", REANCHORS, "create_namespaced_custom_object", manifest)
        except _Exists:
            return None

    def annotate(
        self, pipeline: str, notes: Mapping[str, str | None], version: str, *, dry_run: bool = False
    ) -> Object:
        """Set annotations of a pipeline, or take them away.

        Args:
            pipeline: Its name.
            notes: Value of each annotation, None to take it away.
            version: Resource version that it must have: another user's change is not overwritten unseen.
            dry_run: Have the API server check it only.

        Raises:
            PluginError: It may not be written, or has changed meanwhile.
        """
        change = {"metadata": {"resourceVersion": version, "annotations": dict(notes)}}
        options = {"_content_type": "application/merge-patch+json", **({"dry_run": "All"} if dry_run else {})}
        return self._call("patch", PIPELINES, "patch_namespaced_custom_object", pipeline, change, **options)

    def read(self, path: str, bytes_max: int, timeout_s: float = TIMEOUT_S[1]) -> Answer:
        """Read a path with GET, whatever its status is; redirects are not followed.

        Args:
            path: Path and query.
            bytes_max: Longest body, counted after decompression: a pod may answer without end.
            timeout_s: Seconds for the whole answer.

        Raises:
            PluginError: There is no answer within that time.
        """
        connection = self._client
        until_s = time.monotonic() + timeout_s
        method, url, headers, *_ = connection.param_serialize(
            "GET", path, header_params={"Accept": "application/json"}, auth_settings=["BearerToken"]
        )
        try:
            timeouts: Any = (min(TIMEOUT_S[0], timeout_s), timeout_s)
            reply = connection.call_api(method, url, headers, _request_timeout=timeouts).response
            try:
                return _whole(reply, bytes_max, until_s)
            finally:
                reply.close()
        except (ApiException, HTTPError, OSError) as error:
            raise PluginError(f"no answer within {timeout_s:g} s: {_root(error)}", EXIT_UNREACHABLE) from error

    def whoami(self) -> str:
        """Give the caller's name as the API server knows it, "" if it does not say."""
        try:
            answer: Any = client.AuthenticationV1Api(self._client).create_self_subject_review(
                client.V1SelfSubjectReview(), _request_timeout=TIMEOUT_S
            )
        except (ApiException, HTTPError):
            return ""
        return str(answer.status.user_info.username or "")

    def _call(self, verb: str, plural: str, method: str, *arguments: Any, **options: Any) -> Object:
        try:
            return self._send(plural, method, *arguments, **options)
        except ApiException as error:
            if error.status == UNAUTHORIZED and self._log_in_again():
                try:
                    return self._send(plural, method, *arguments, **options)
                except ApiException as second:
                    error = second
            raise self._explain(error, verb, plural) from error

    def _send(self, plural: str, method: str, *arguments: Any, **options: Any) -> Object:
        send: Callable[..., Any] = getattr(self._objects, method)
        try:
            return dict(send(GROUP, VERSION, self.namespace, plural, *arguments, _request_timeout=TIMEOUT_S, **options))
        except HTTPError as error:
            server = self._client.configuration.host
            raise PluginError(f"the API server {server} does not answer: {_root(error)}", EXIT_UNREACHABLE) from error

    def _explain(self, error: ApiException, verb: str, plural: str) -> PluginError:
        detail = _message(error)
        if error.status == UNAUTHORIZED:
            credentials = (
                f"the credentials of context {self._access.context!r}" if self._access else "the pod's own token"
            )
            return PluginError(
                f"You must be logged in to the server ({detail or 'Unauthorized'}): {credentials} are not accepted, "
                "they may have expired: log in again",
                EXIT_UNREACHABLE,
            )
        if error.status == FORBIDDEN and f'User "{ANONYMOUS}"' in detail:
            return PluginError(
                f"You must be logged in to the server: it treats you as {ANONYMOUS}, the kubeconfig's user has no "
                f"credentials ({detail})",
                EXIT_UNREACHABLE,
            )
        if error.status == FORBIDDEN:
            return PluginError(self._forbidden(verb, plural, detail), EXIT_FORBIDDEN)
        if error.status == NOT_FOUND:
            return PluginError(detail or "not found", EXIT_NOT_FOUND)
        message = f"cannot {verb} {plural}: {error.status} {detail or error.reason}"
        if error.status == CONFLICT and _reason(error) == "AlreadyExists":
            return _Exists(message, EXIT_FAILED)
        return PluginError(message, EXIT_UNREACHABLE if error.status in UNAVAILABLE else EXIT_FAILED)

    def _forbidden(self, verb: str, plural: str, detail: str) -> str:
        if "is forbidden: User " not in detail:  # the message of a quota or a policy: binding a role would not help
            return f"the API server refuses to {verb} {plural} in namespace {self.namespace}: {detail or 'forbidden'}"
        you, role = self.whoami(), MOVING_ROLE if verb == "patch" else ROLE
        return (
            f"you may not {verb} {plural}.{GROUP} in namespace {self.namespace}: "
            f"the ClusterRole {role} of the chart allows it, ask an administrator to bind it with "
            f"kubectl create rolebinding {role} --clusterrole={role} {_subject(you)} -n {self.namespace}"
            f"{f' ({detail})' if detail else ''}"
        )

    @staticmethod
    def _items(answer: Object) -> list[Object]:
        return [dict(one) for one in answer.get("items") or ()]


def _whole(reply: Any, bytes_max: int, until_s: float) -> Answer:
    """Read an answer to its end, within a length and a time."""
    body = bytearray()
    for piece in reply.stream(65_536, decode_content=True):
        body += piece
        if len(body) > bytes_max:
            return Answer(reply.status, b"", f"the answer has more than {bytes_max} bytes")
        if time.monotonic() > until_s:
            return Answer(reply.status, b"", "the answer takes too long")
    return Answer(reply.status, bytes(body), at_us=_date_of(reply))


def _date_of(reply: Any) -> int:
    try:
        return int(parsedate_to_datetime(reply.headers.get("Date") or "").timestamp()) * 1_000_000
    except (TypeError, ValueError):
        return 0


class _Exists(PluginError):
    """There is an object of that name already."""


def _subject(user: str) -> str:
    """Give the flag that names a user or service account in `kubectl create rolebinding`."""
    prefix, _, account = user.partition("system:serviceaccount:")
    if account and not prefix:
        return f"--serviceaccount={account}"
    return f"--user={shlex.quote(user)}" if user else "--user=YOU"


def _connect(access: Access | None) -> client.ApiClient:
    """Make a client.

    Raises:
        PluginError: There are no usable credentials.
    """
    made = client.Configuration()
    loader: Any = config  # its functions have no types
    try:
        if access is None:
            loader.load_incluster_config(client_configuration=made)
        else:
            loader.load_kube_config_from_dict(log_in(access, os.environ), client_configuration=made)
    except ConfigException as error:
        raise PluginError(_no_kubeconfig(error, access), EXIT_UNREACHABLE) from error
    except (OSError, TypeError, ValueError, KeyError, AttributeError) as error:
        message = f"{type(error).__name__}: {error}"
        raise PluginError(f"no usable kubeconfig: {message}", EXIT_UNREACHABLE) from error
    users = access.config["users"] if access is not None else []
    if users and users[0]["user"] and not (made.api_key or made.cert_file or made.username):
        # The library ignores credentials that it cannot use, and would send requests as an anonymous user.
        message = f"user {users[0]['name']!r} of the kubeconfig: no usable credentials in {', '.join(users[0]['user'])}"
        raise PluginError(f"You must be logged in to the server: {message}", EXIT_UNREACHABLE)
    made.retries = 0  # `--wait` retries by itself; without it a user sees at once that the server does not answer
    return client.ApiClient(made)


def _no_kubeconfig(error: ConfigException, access: Access | None) -> str:
    if access is not None:
        return f"no usable kubeconfig: {error}"
    where = os.environ.get("KUBECONFIG") or "~/.kube/config"
    return (
        f"no kubeconfig: there is no configuration in {where}, and this process does not run in a pod ({error}); "
        "use --kubeconfig FILE or set KUBECONFIG"
    )


def _own_namespace() -> str:
    try:
        return OWN_NAMESPACE.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _reason(error: ApiException) -> str:
    return _field(error, "reason")


def _message(error: ApiException) -> str:
    return _field(error, "message")


def _field(error: ApiException, name: str) -> str:
    try:
        return str(json.loads(error.body or "").get(name, ""))
    except (TypeError, ValueError, AttributeError, RecursionError):
        return ""


def _root(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason if reason is not None else error)
