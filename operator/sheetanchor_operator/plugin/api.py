"""The Kubernetes API as the plugin needs it; every failure becomes one clear line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from sheetanchor_operator.names import GROUP, PIPELINES, REANCHOR_ANNOTATION, REANCHORS, VERSION
from sheetanchor_operator.plugin.errors import (
    EXIT_FAILED,
    EXIT_FORBIDDEN,
    EXIT_NOT_FOUND,
    EXIT_UNREACHABLE,
    PluginError,
)

TIMEOUT_S: Final = (5.0, 30.0)
"""To connect, and to be answered."""

ROLE: Final = "sheetanchor-reanchor"
"""ClusterRole of the chart that allows what this command does."""

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """Which cluster and namespace.

    Attributes:
        context: "" for the current one.
        namespace: "" for the context's.
    """

    kubeconfig: str = ""
    context: str = ""
    namespace: str = ""


class Api:
    """The API server of a target.

    Raises:
        PluginError: There is no usable kubeconfig.
    """

    def __init__(self, target: Target) -> None:
        try:
            self._client, namespace = _connect(target)
        except (ConfigException, OSError, TypeError, ValueError, KeyError, yaml.YAMLError) as error:
            where = target.kubeconfig or "KUBECONFIG or ~/.kube/config"
            words = " ".join(str(error).split())
            raise PluginError(f"no usable kubeconfig in {where}: {words}", EXIT_UNREACHABLE) from error
        self.namespace = target.namespace or namespace or "default"
        self._objects = client.CustomObjectsApi(self._client)

    def pipeline(self, name: str) -> Object:
        """Read a pipeline.

        Raises:
            PluginError: It does not exist (names those that do), or may not be read.
        """
        try:
            return self._call("get", PIPELINES, self._objects.get_namespaced_custom_object, name)
        except PluginError as error:
            if error.exit_code != EXIT_NOT_FOUND:
                raise
            raise PluginError(self._no_such(name, str(error)), EXIT_NOT_FOUND) from error

    def _no_such(self, name: str, said: str) -> str:
        try:
            names = [one["metadata"]["name"] for one in self.pipelines()]
        except PluginError as error:
            if error.exit_code == EXIT_NOT_FOUND:
                return f"this cluster has no PredictionPipelines: the operator is not installed ({said})"
            names = []
        there = f"there are {', '.join(sorted(names))}" if names else "there are none that can be listed"
        return f"no pipeline {name!r} in namespace {self.namespace}: {there}"

    def pipelines(self) -> list[Object]:
        """List the pipelines.

        Raises:
            PluginError: They may not be listed.
        """
        return self._items(self._call("list", PIPELINES, self._objects.list_namespaced_custom_object))

    def reanchors(self, pipeline: str) -> list[Object]:
        """List the re-anchors of a pipeline, oldest first.

        Raises:
            PluginError: They may not be listed.
        """
        items = self._items(self._call("list", REANCHORS, self._objects.list_namespaced_custom_object))
        own = [one for one in items if one.get("spec", {}).get("pipeline") == pipeline]
        return sorted(own, key=lambda one: (one["metadata"]["creationTimestamp"], one["metadata"]["name"]))

    def reanchor(self, name: str) -> Object | None:
        """Read a re-anchor; None if there is none of that name.

        Raises:
            PluginError: It may not be read.
        """
        try:
            return self._call("get", REANCHORS, self._objects.get_namespaced_custom_object, name)
        except PluginError as error:
            if error.exit_code == EXIT_NOT_FOUND:
                return None
            raise

    def annotate(self, name: str, value: str) -> None:
        """Write the annotation that asks for a re-anchor.

        Raises:
            PluginError: The pipeline may not be patched.
        """
        patch = {"metadata": {"annotations": {REANCHOR_ANNOTATION: value}}}
        self._call(
            "patch",
            PIPELINES,
            self._objects.patch_namespaced_custom_object,
            name,
            patch,
            _content_type="application/merge-patch+json",
        )

    def who_am_i(self) -> str:
        """Give the name that the API server knows the caller by, "" if it does not say."""
        try:
            answer: Any = client.AuthenticationV1Api(self._client).create_self_subject_review(
                client.V1SelfSubjectReview(), _request_timeout=TIMEOUT_S
            )
        except (ApiException, HTTPError):
            return ""
        return str(answer.status.user_info.username or "")

    def _call(self, verb: str, plural: str, method: Callable[..., Any], *arguments: Any, **options: Any) -> Object:
        try:
            answer = method(GROUP, VERSION, self.namespace, plural, *arguments, _request_timeout=TIMEOUT_S, **options)
        except ApiException as error:
            raise self._explain(error, verb, plural) from error
        except HTTPError as error:
            server = self._client.configuration.host
            raise PluginError(f"the API server {server} does not answer: {_root(error)}", EXIT_UNREACHABLE) from error
        return dict(answer)

    def _explain(self, error: ApiException, verb: str, plural: str) -> PluginError:
        said = _message(error)
        if error.status == 401:
            return PluginError(f"the API server does not know you: {said or 'log in again'}", EXIT_FORBIDDEN)
        if error.status == 403:
            told = (
                f"you may not {verb} {plural}.{GROUP} in namespace {self.namespace}: "
                f"the ClusterRole {ROLE} of the chart allows it, bind it with "
                f"kubectl create rolebinding NAME --clusterrole={ROLE} --user=YOU -n {self.namespace}"
            )
            return PluginError(f"{told} ({said})" if said else told, EXIT_FORBIDDEN)
        if error.status == 404:
            return PluginError(said or "not found", EXIT_NOT_FOUND)
        return PluginError(f"cannot {verb} {plural}: {error.status} {said or error.reason}", EXIT_FAILED)

    @staticmethod
    def _items(answer: Object) -> list[Object]:
        return [dict(one) for one in answer.get("items") or ()]


def _connect(target: Target) -> tuple[client.ApiClient, str]:
    """Make a client of the target, and give the namespace that its context names."""
    file, context = target.kubeconfig or None, target.context or None
    made = client.Configuration()
    loader: Any = config  # its functions have no types
    try:
        loader.load_kube_config(config_file=file, context=context, client_configuration=made)
        contexts, active = loader.list_kube_config_contexts(config_file=file)
        chosen = next((one for one in contexts if one["name"] == context), active)
        namespace = (chosen or {}).get("context", {}).get("namespace") or ""
    except ConfigException:
        if file or context:
            raise
        loader.load_incluster_config(client_configuration=made)
        namespace = ""
    made.retries = 0  # whoever waits asks again; a person sees at once that nobody answers
    return client.ApiClient(made), namespace


def _message(error: ApiException) -> str:
    try:
        return str(json.loads(error.body or "").get("message", ""))
    except (TypeError, ValueError, AttributeError):
        return ""


def _root(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason if reason is not None else error)
