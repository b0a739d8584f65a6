"""Peers that a network policy may allow: pods of a namespace by a label, or addresses."""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Final

_PODS: Final = re.compile(
    r"(?P<namespace>[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/"
    r"(?P<key>([a-z0-9]([-.a-z0-9]*[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)="
    r"(?P<value>([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?)"
)
_NAMESPACE: Final = "kubernetes.io/metadata.name"


def block_of(text: str) -> str:
    """Give a block of addresses in the form that network policies take.

    Raises:
        ValueError: It is no block of addresses, or has bits beyond its length.
    """
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"expected a block of addresses such as 10.1.0.0/16: {error}") from None


def peer_of(text: str) -> dict[str, Any]:
    """Read NAMESPACE/LABEL=VALUE or a block of addresses as a peer of a NetworkPolicy.

    Raises:
        ValueError: It is neither of the two.
    """
    pods = _PODS.fullmatch(text)
    if pods:
        return {
            "namespaceSelector": {"matchLabels": {_NAMESPACE: pods["namespace"]}},
            "podSelector": {"matchLabels": {pods["key"]: pods["value"]}},
        }
    if "=" in text:
        raise ValueError(f"{text!r}: expected NAMESPACE/LABEL=VALUE, for instance kube-system/k8s-app=kube-dns")
    return {"ipBlock": {"cidr": block_of(text)}}


def peers_of(texts: tuple[str, ...]) -> dict[str, Any]:
    """Give a rule's `to`; nothing, which is any address, where no peer is named."""
    return {"to": [peer_of(text) for text in texts]} if texts else {}
