"""The managed Redis as manifests."""

from __future__ import annotations

import argparse
import base64
from typing import Any

import pytest

from sheetanchor.managed_redis.command import nodes_of, tuning_of
from sheetanchor.runtime.command_line import add_flags, load
from sheetanchor.runtime.settings import REDIS_USERS, RedisSettings
from sheetanchor_operator.children.redis import CREATE_ONLY, bytes_of, redis_children
from sheetanchor_operator.names import SETTINGS_HASH
from sheetanchor_operator.observation import Observed
from support.pipeline_parts import DEFAULTS, NOW_US, pipeline
from support.pod_security import violations

STORED = {"redis": {"managed": {"storage": {"size": "4Gi", "storageClassName": "fast"}}}}
GIVEN = {"redis": {"managed": {"passwordSecret": {"name": "mine"}, "image": "own:2", "minReplicasToWrite": 0}}}
EXTERNAL = {"redis": {"external": {"url": "redis://cache:6379"}}}


def manifests(spec: dict[str, Any] | None = None, **observed: Any) -> dict[str, dict[str, Any]]:
    """Render the children of a pipeline by their kinds."""
    children = redis_children(pipeline(spec or {}), Observed(NOW_US, **observed), DEFAULTS, "password of {}".format)
    assert len(children) == len({one["kind"] for one in children})
    return {one["kind"]: one for one in children}


def pod(spec: dict[str, Any] | None = None, **observed: Any) -> dict[str, Any]:
    """Give the pod template."""
    template: dict[str, Any] = manifests(spec, **observed)["StatefulSet"]["spec"]["template"]
    return template


def settings(container: dict[str, Any]) -> RedisSettings:
    """Read a container's arguments as the command line does."""
    parser = argparse.ArgumentParser()
    add_flags(parser, RedisSettings)
    role, *flags = container["args"]
    assert role == "redis"
    return load(RedisSettings, vars(parser.parse_args(flags)), {})


def test_there_are_three_nodes_with_a_sentinel_each_and_one_may_be_away() -> None:
    """All three start at once, find one another before they are ready, and are replaced one by one."""
    found = manifests()

    spec = found["StatefulSet"]["spec"]
    assert (spec["replicas"], spec["podManagementPolicy"], spec["serviceName"]) == (3, "Parallel", "btc-redis")
    assert [one["name"] for one in spec["template"]["spec"]["containers"]] == ["redis", "sentinel"]
    assert (found["Service"]["spec"]["clusterIP"], found["Service"]["spec"]["publishNotReadyAddresses"]) == (
        "None",
        True,
    )
    assert found["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_the_secret_is_written_once_and_has_a_password_for_each_user() -> None:
    """Applying it again must not create new passwords for running servers."""
    secret = manifests()["Secret"]

    assert secret["metadata"]["annotations"] == {CREATE_ONLY: "true"}
    found = {user: base64.b64decode(value).decode() for user, value in secret["data"].items()}
    assert found == {user: f"password of {user}" for user in REDIS_USERS}


def test_a_secret_of_the_users_own_is_used_and_none_made() -> None:
    """The nodes read it, and are replaced when it changes."""
    before, after = (pod(GIVEN, secret_versions={"mine": version}) for version in ("1", "2"))

    assert "Secret" not in manifests(GIVEN)
    [secrets] = [one["secret"] for one in before["spec"]["volumes"] if one["name"] == "secrets"]
    assert (secrets["secretName"], {item["key"] for item in secrets["items"]}) == ("mine", set(REDIS_USERS))
    assert before["metadata"]["annotations"][SETTINGS_HASH] != after["metadata"]["annotations"][SETTINGS_HASH]
    assert pod() == pod(secret_versions={"btc-redis": "7"})
    assert {one["image"] for one in before["spec"]["containers"]} == {"own:2"}


def test_a_missing_secret_replaces_no_node() -> None:
    """Nodes that run go on; when the Secret is back as it was they have never been replaced."""
    there = {"secrets": {"mine": frozenset(REDIS_USERS)}, "secret_versions": {"mine": "1"}}
    live = {("StatefulSet", "btc-redis"): manifests(GIVEN, **there)["StatefulSet"]}
    before = pod(GIVEN, **there)

    assert before == pod(GIVEN, children=live, secrets={"mine": None})
    assert before == pod(GIVEN, children=live, secrets={"mine": frozenset({"infer"})}, secret_versions={"mine": "2"})
    assert before == pod(GIVEN, children=live, **there)
    assert before != pod(GIVEN, children=live, **{**there, "secret_versions": {"mine": "2"}})


@pytest.mark.parametrize("spec", [{}, STORED, GIVEN], ids=["defaults", "stored", "given"])
def test_nodes_get_settings_that_they_accept(spec: dict[str, Any]) -> None:
    """The role reads its arguments, and finds itself by its pod's name."""
    server, sentinel = (settings(one) for one in pod(spec)["spec"]["containers"])

    assert (server.sentinel, sentinel.sentinel) == (False, True)
    assert {server.http_port, sentinel.http_port} == {8080, 8081}
    assert server.data_dir != sentinel.data_dir
    assert server.persistent == (spec == STORED)
    assert tuning_of(server).maxmemory_bytes == 768 * 2**20
    assert server.min_replicas_to_write == (0 if spec == GIVEN else 1)
    own, nodes = nodes_of(server.model_copy(update={"node": server.nodes[1]}))
    assert (own.host, own.port, own.sentinel_port) == ("btc-redis-1.btc-redis.market.svc.cluster.local.", 6379, 26379)
    assert own == nodes[1]


def test_a_volume_is_asked_for_where_data_shall_outlive_the_pods() -> None:
    """And deleted with the pipeline; otherwise data is in memory only."""
    spec = manifests(STORED)["StatefulSet"]["spec"]

    [claim] = spec["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"] == {"storage": "4Gi"}
    assert claim["spec"]["storageClassName"] == "fast"
    assert spec["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete"
    assert "volumeClaimTemplates" not in manifests()["StatefulSet"]["spec"]


@pytest.mark.parametrize("spec", [{}, STORED, GIVEN], ids=["defaults", "stored", "given"])
def test_the_nodes_satisfy_the_restricted_profile_and_mount_all_they_name(spec: dict[str, Any]) -> None:
    """Every mount has its volume, every probe its port."""
    template = pod(spec)
    claims = manifests(spec)["StatefulSet"]["spec"].get("volumeClaimTemplates", [])
    volumes = {one["name"] for one in template["spec"]["volumes"]} | {one["metadata"]["name"] for one in claims}

    assert violations(template["spec"]) == []
    for container in template["spec"]["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        ports = {port["name"] for port in container["ports"]}
        probes = [container[name] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
        assert {probe["httpGet"]["port"] for probe in probes} <= ports


def test_an_external_redis_has_no_children() -> None:
    """The operator does not run it."""
    assert redis_children(pipeline(EXTERNAL), Observed(NOW_US), DEFAULTS, str) == ()


@pytest.mark.parametrize(("size", "expected"), [("1Mi", 2**20), ("768Mi", 768 * 2**20), ("2Gi", 2**31)])
def test_sizes_are_bytes(size: str, expected: int) -> None:
    """As Kubernetes counts them."""
    assert bytes_of(size) == expected
