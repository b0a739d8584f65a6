"""The cause of a refusal of the API server, and its remedy, from the server's message. Pure.

The HTTP status alone says little: 403 is a missing right, a quota, a limit range, a policy or a namespace that is being
deleted, each with another remedy. A message that fits none of them is reported without a cause.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

from sheetanchor_operator.names import Reason


class Cause(StrEnum):
    """Why the API server refuses."""

    TERMINATING = "terminating"
    NO_NAMESPACE = "no-namespace"
    NAME_TAKEN = "name-taken"
    QUOTA = "quota"
    QUOTA_FIELD = "quota-field"
    LIMIT_RANGE = "limit-range"
    POD_SECURITY = "pod-security"
    POLICY = "policy"
    GRANT = "grant"
    RIGHTS = "rights"
    CREDENTIALS = "credentials"
    NO_KIND = "no-kind"
    NO_ACCOUNT = "no-account"
    NO_PRIORITY_CLASS = "no-priority-class"
    FIXED = "fixed"
    UNAVAILABLE = "unavailable"
    OTHER = "other"


NAME_TAKEN_REASON: Final = "NameTaken"
"""Machine-readable reason of the only refusal that the operator makes itself."""

_WORDS: Final = (
    (Cause.TERMINATING, r"because it is being terminated|NamespaceTerminating"),
    (Cause.NO_NAMESPACE, r'namespaces? "[^"]*" not found'),
    (Cause.QUOTA_FIELD, r"failed quota: .*must specify"),
    (Cause.QUOTA, r"exceeded quota|insufficient quota|status unknown for quota|failed quota"),
    (
        Cause.LIMIT_RANGE,
        r"(minimum|maximum) \S+ usage per (Container|Pod|PersistentVolumeClaim) is"
        r"|max limit to request ratio per (Container|Pod) is",
    ),
    (Cause.POD_SECURITY, r"violates PodSecurity|security context constraint"),
    (Cause.POLICY, r"ValidatingAdmissionPolicy|MutatingAdmissionPolicy|admission webhook .* denied|denied the request"),
    (Cause.GRANT, r"attempting to grant RBAC permissions|cannot set blockOwnerDeletion"),
    (Cause.NO_ACCOUNT, r"error looking up service account|serviceaccount .* not found"),
    (Cause.NO_PRIORITY_CLASS, r"no PriorityClass with name"),
    (Cause.RIGHTS, r"[Uu]ser .* cannot \S+|cannot \S+ (resource|path)"),
    (Cause.FIXED, r"immutable|cannot change roleRef|updates to statefulset spec for fields other than"),
)


def cause_of(code: int, reason: str, message: str) -> Cause:
    """Find the cause of a refusal.

    Args:
        code: HTTP status; 0 where there was no answer.
        reason: The server's machine-readable reason, "" if it gave none.
        message: The server's message.
    """
    if reason == NAME_TAKEN_REASON:
        return Cause.NAME_TAKEN
    for cause, words in _WORDS:
        if re.search(words, message, re.DOTALL):
            return cause
    if code == 401:
        return Cause.CREDENTIALS
    if code == 404:
        return Cause.NO_KIND
    if code == 0 or code >= 500:
        return Cause.UNAVAILABLE
    return Cause.OTHER


_RIGHTS: Final = (
    "give the operator this permission: install the chart of this version, with this namespace among those that it "
    "watches"
)
REMEDIES: Final = {
    Cause.TERMINATING: "the namespace is being deleted: nothing to do, or create the pipeline in another one",
    Cause.NO_NAMESPACE: "the namespace does not exist: create it again, or take it out of the chart's watchNamespaces",
    Cause.NAME_TAKEN: "delete that object, or give the pipeline another name",
    Cause.QUOTA: "raise the namespace's ResourceQuota",
    Cause.QUOTA_FIELD: "set the requests and limits that the ResourceQuota requires in the component's resources",
    Cause.LIMIT_RANGE: "set resources of the pipeline's component within the namespace's LimitRange",
    Cause.POD_SECURITY: "the namespace's Pod Security or SecurityContextConstraints refuse it: allow it there, or, "
    "where the cluster assigns user ids (OpenShift), install the operator with assignIds=false",
    Cause.POLICY: "an admission policy of the cluster refuses it: satisfy it, or make an exception there",
    Cause.GRANT: _RIGHTS,
    Cause.RIGHTS: _RIGHTS,
    Cause.CREDENTIALS: "the operator's credentials are not accepted: see its ServiceAccount's token or its kubeconfig",
    Cause.NO_KIND: "the API server does not serve this kind: install the chart's definitions, of this version",
    Cause.NO_ACCOUNT: "the ServiceAccount is missing: see the pipeline's other conditions and Events",
    Cause.NO_PRIORITY_CLASS: "create the PriorityClass, or correct scheduling.priorityClassName",
    Cause.FIXED: "delete that object if it is to change: the operator creates it again",
    Cause.UNAVAILABLE: "see the API server's own log",
    Cause.OTHER: "correct the field of the pipeline that it comes from",
}
"""What to do, by cause; without `; `, after the last of which a message has its remedy."""

REASONS: Final = {
    Cause.TERMINATING: Reason.NAMESPACE_TERMINATING,
    Cause.NO_NAMESPACE: Reason.NAMESPACE_TERMINATING,
    Cause.NAME_TAKEN: Reason.NAME_TAKEN,
    Cause.QUOTA: Reason.QUOTA_EXCEEDED,
    Cause.QUOTA_FIELD: Reason.LIMITS_REFUSED,
    Cause.LIMIT_RANGE: Reason.LIMITS_REFUSED,
    Cause.POD_SECURITY: Reason.POLICY_REFUSED,
    Cause.POLICY: Reason.POLICY_REFUSED,
    Cause.GRANT: Reason.APPLY_FORBIDDEN,
    Cause.RIGHTS: Reason.APPLY_FORBIDDEN,
    Cause.CREDENTIALS: Reason.APPLY_FORBIDDEN,
}
"""The reason of a condition, by cause; others are `ApplyRefused`, or `PodRefused` where pods are refused."""
