"""Which peers pods can reach: the table in docs/security.md, rule by rule."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor_operator.api.network_peers import peer_of, peers_of
from sheetanchor_operator.api.redis_spec import CIDR_PATTERN, ExternalRedis
from sheetanchor_operator.children.manifests import children
from sheetanchor_operator.observation import Observed
from support.pipeline_parts import DEFAULTS, NOW_US, OWN_EXCHANGE, ZONES, password, pipeline
from support.prometheus_parts import CHART

PEERS = tuple(yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["networkPolicy"]["dnsPeers"])
CIDRS = ["10.1.2.0/24", "fd00::/8"]
EXTERNAL = {"redis": {"external": {"url": "rediss://cache.example:443", "cidrs": CIDRS}}}
DNS = {
    "to": [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        },
        {"ipBlock": {"cidr": "169.254.20.10/32"}},
    ],
    "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}],
}


def egress_of(spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Give each policy's egress, with the chart's peers for DNS."""
    defaults = replace(DEFAULTS, dns_peers=PEERS)
    manifests = children(
        pipeline({"exchange": OWN_EXCHANGE, **spec}), Observed(NOW_US, zones=ZONES), defaults, password
    )
    policies = [one for one in manifests if one["kind"] == "NetworkPolicy"]
    return {one["metadata"]["name"].removeprefix("btc-"): one["spec"].get("egress", []) for one in policies}


def ports_to_anywhere(rules: list[dict[str, Any]]) -> set[int]:
    """Give the ports at which any address may be reached."""
    return {port["port"] for rule in rules if "to" not in rule for port in rule["ports"]}


@pytest.mark.parametrize("spec", [{}, EXTERNAL], ids=["managed", "external"])
def test_only_the_exchange_and_the_api_server_are_reached_at_any_address(spec: dict[str, Any]) -> None:
    """Inference and Redis reach named peers only, whichever Redis it is; the others their own port beside those."""
    anywhere = {name: ports_to_anywhere(rules) for name, rules in egress_of(spec).items()}

    expected = {
        "default-deny": set(),
        "infer": set(),
        "ingest": {8090},
        "reanchor": {8090},
        "process": {443, 6443, 8090},
    }
    assert expected | ({} if spec else {"redis": set()}) == anywhere


@pytest.mark.parametrize("name", ["infer", "ingest", "process", "reanchor", "redis"])
def test_names_are_asked_of_the_clusters_dns(name: str) -> None:
    """Port 53 of any other server cannot be reached."""
    assert DNS == egress_of({})[name][0]


def test_an_external_redis_is_reached_where_it_is() -> None:
    """Its port is open at the blocks that are named; where none is, at any address."""
    named, unnamed = (
        egress_of(EXTERNAL)["infer"][1],
        egress_of({"redis": {"external": {"url": "redis://c:6379"}}})["infer"][1],
    )

    assert [{"ipBlock": {"cidr": block}} for block in CIDRS] == named["to"]
    assert [443] == [one["port"] for one in named["ports"]]
    assert {"ports": [{"port": 6379, "protocol": "TCP"}]} == unnamed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "kube-system",
        "kube-system/k8s-app",
        "/k8s-app=kube-dns",
        "Kube/k8s-app=x",
        "a/=b",
        "a/b=c d",
        "a/b=c=d",
        "10.1.2.3/24",
        "10.1.2.0/33",
        "300.1.1.0/24",
        "fd00::1/8",
        "fd00::/129",
        "10.1.2",
        "any",
    ],
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    """A misspelt peer allows neither every peer nor none."""
    with pytest.raises(ValueError, match="expected"):
        peer_of(text)


def test_a_labels_key_may_have_a_prefix() -> None:
    """OpenShift's DNS pods have such a label."""
    found = peer_of("openshift-dns/dns.operator.openshift.io/daemonset-dns=default")

    assert {"matchLabels": {"dns.operator.openshift.io/daemonset-dns": "default"}} == found["podSelector"]
    assert {} == peers_of(())


NETWORKS = st.one_of(st.ip_addresses(), st.ip_addresses(v=6)).flatmap(
    lambda address: st.integers(0, address.max_prefixlen).map(
        lambda length: ipaddress.ip_network((address, length), False)
    )
)


@given(NETWORKS)
def test_any_block_of_addresses_is_taken(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    """The definition's pattern and the operator agree on what is a block."""
    text = str(network)

    assert re.fullmatch(CIDR_PATTERN, text)
    assert {"ipBlock": {"cidr": text}} == peer_of(text)
    assert (text,) == ExternalRedis.model_validate({"url": "redis://c", "cidrs": [text]}).cidrs
