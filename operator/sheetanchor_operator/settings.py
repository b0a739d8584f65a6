"""Settings of `sheetanchor-operator`: each is a flag, a variable (`SHEETANCHOR_…`) and an entry of a file."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sheetanchor.runtime.settings import HTTP_HOST_HELP, PROBE_PORT_HELP, Common, Port, setting
from sheetanchor_operator.api.network_peers import peer_of


def _peer(text: str) -> str:
    peer_of(text)
    return text


class OperatorSettings(Common):
    """`sheetanchor-operator`."""

    operator_image: str = setting("", "image of the workloads of pipelines that name none", max_length=512)
    operator_image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = setting(
        "", "when nodes pull images; overrides the pipelines' own; empty leaves it to them"
    )
    operator_image_pull_secrets: list[str] = setting(
        [], "pull secret of pipelines that name none, in each one's namespace; repeat for several"
    )
    operator_namespaces: list[str] = setting([], "namespace to manage; repeat for several; none means all")
    operator_cluster_domain: str = setting("cluster.local", "DNS domain of the cluster's services")
    operator_monitoring_namespaces: list[str] = setting(
        [], "namespace that may scrape metrics; repeat for several; none means all"
    )
    operator_api_server_ports: list[int] = setting(
        [443, 6443],
        "port at which pods reach the API server: that of its Service and those of its endpoints; repeat for several",
        min_length=1,
    )
    operator_dns_ports: list[int] = setting(
        [53], "port at which the cluster's DNS pods listen; repeat for several", min_length=1
    )
    operator_assign_ids: bool = setting(
        True,
        "have pods run as the image's user and group; false leaves their ids to the cluster, as OpenShift requires",
    )
    operator_dns_peers: list[Annotated[str, AfterValidator(_peer)]] = setting(
        [],
        "DNS servers that pods may query: NAMESPACE/LABEL=VALUE, or a block of addresses; repeat for several; none "
        "means any",
    )
    operator_nodes: bool = setting(True, "read the nodes' zones; needs the right to list nodes")
    operator_lease: str = setting("sheetanchor-operator", "name of the Lease that the leader holds")
    operator_workers: int = setting(8, "pipelines that are reconciled at the same time", ge=1, le=100)
    operator_resync_s: float = setting(
        10.0, "seconds between two reconciles of a pipeline that does not change", ge=1, le=3600
    )
    operator_ask_through: Literal["direct", "apiserver"] = setting(
        "direct", "how workloads are reached: at their pods' addresses, or through the API server's proxy"
    )
    kubeconfig: Path | None = setting(None, "kubeconfig to use outside of a cluster; default KUBECONFIG")
    operator_listen_address: str = setting(
        "*", "address that workloads listen on: * is every address, by IPv4 and IPv6", min_length=1
    )
    http_host: str = setting("localhost", HTTP_HOST_HELP)
    http_port: Port = setting(8080, "port of health and metrics; 0 picks a free one")
    probe_port: Port = setting(0, PROBE_PORT_HELP)
    pod_name: str = Field(
        default_factory=socket.gethostname, description="", json_schema_extra={"variable": "POD_NAME"}
    )
    node_name: str = Field("", description="", json_schema_extra={"variable": "NODE_NAME"})
    pod_namespace: str = Field("default", description="", json_schema_extra={"variable": "POD_NAMESPACE"})
