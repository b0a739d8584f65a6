"""What an operator may do in a namespace of a test's API server, given and taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from support.apiserver import ApiServer
from support.rendered_parts import rendered_chart


@cache
def rules() -> tuple[dict[str, Any], ...]:
    """Give the rules that the chart gives the operator in a namespace that it watches."""
    found = rendered_chart({"watchNamespaces": ["somewhere"]})
    (role,) = [one for one in found if one["kind"] == "Role" and one["metadata"].get("namespace") == "somewhere"]
    return tuple(role["rules"])


def give_rights(
    server: ApiServer, where: str, *, account_of: str, without: Mapping[str, Sequence[str]] | None = None
) -> None:
    """Give an operator's account what the chart gives it in a namespace, and the Lease in its own.

    Args:
        where: The namespace.
        account_of: Namespace of the account.
        without: Verbs that are left out, by kind.
    """
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator", "namespace": account_of}}
    server.apply(account, role(where, without or {}), binding(where, account_of))


def take_rights(server: ApiServer, where: str) -> None:
    """Take all rights in a namespace away, as its deletion does."""
    server.kubectl("delete", "rolebinding", "operator", "-n", where)


def role(where: str, without: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    given = []
    for rule in rules():
        for resource in rule["resources"]:
            verbs = [verb for verb in rule["verbs"] if verb not in without.get(resource, ())]
            if verbs:
                given.append({"apiGroups": rule["apiGroups"], "resources": [resource], "verbs": verbs})
    leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create", "get", "update"]}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "operator", "namespace": where},
        "rules": [*given, leases],
    }


def binding(where: str, account_of: str) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "operator", "namespace": where},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
        "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": account_of}],
    }
