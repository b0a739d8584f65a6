"""The children of a pipeline: what is rendered, for which components, and what changes it."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sheetanchor.runtime.command_line import load
from sheetanchor.runtime.settings import InferSettings, IngestSettings, ProcessSettings, ReanchorSettings
from sheetanchor_operator.children.manifests import children
from sheetanchor_operator.children.pod_template import WorkloadRole, pod_template
from sheetanchor_operator.children.prerequisites import claims_needed, config_maps_needed, secrets_needed
from sheetanchor_operator.names import (
    PIPELINE_LABEL,
    SETTINGS_HASH,
    Component,
    child_name,
    selector_of,
)
from sheetanchor_operator.observation import Observed
from support.pipeline_parts import (
    DEFAULTS,
    NOW_US,
    OWN_EXCHANGE,
    ZONES,
    one_of,
    password,
    pipeline,
    rendered,
    templates,
)
from support.pod_security import violations

EXTERNAL = {
    "redis": {
        "external": {
            "url": "rediss://cache.example:6380/1",
            "username": "sheet",
            "passwordSecret": {"name": "cache"},
            "caSecret": {"name": "cache-ca"},
        }
    }
}
MODEL_MAP = {"inference": {"model": {"configMap": {"name": "momentum"}}}}
MODEL_CLAIM = {"inference": {"model": {"persistentVolumeClaim": {"claimName": "models", "path": "prod"}}}}
BUSY = {
    "image": "own:1",
    "imagePullPolicy": "Always",
    "imagePullSecrets": [{"name": "registry"}],
    "scheduling": {
        "nodeSelector": {"disk": "fast"},
        "priorityClassName": "high",
        "tolerations": [{"key": "market", "operator": "Exists"}],
    },
    "podMetadata": {"labels": {"example.com/team": "markets"}, "annotations": {"example.com/logs": "json"}},
}
VARIANTS: list[dict[str, Any]] = [{}, EXTERNAL, MODEL_MAP, MODEL_CLAIM, BUSY, {"exchange": OWN_EXCHANGE}]
ROLES: dict[str, type[BaseModel]] = {
    "ingest": IngestSettings,
    "process": ProcessSettings,
    "infer": InferSettings,
    "reanchor": ReanchorSettings,
}
variants = pytest.mark.parametrize("spec", VARIANTS, ids=lambda spec: "+".join(spec) or "defaults")


def reanchor_template(spec: dict[str, Any]) -> dict[str, Any]:
    role = WorkloadRole(Component.REANCHOR, pipeline(spec).spec.reanchor.resources, served=False)
    return pod_template(pipeline(spec), Observed(NOW_US), DEFAULTS, role)


@variants
def test_every_pod_satisfies_the_restricted_profile(spec: dict[str, Any]) -> None:
    """Whatever a pipeline's spec contains, its pods may run in a namespace that enforces Pod Security "restricted"."""
    found = {name: violations(one["spec"]) for name, one in templates(rendered(spec)).items()}

    assert {name: [] for name in found} == found
    assert [] == violations(reanchor_template(spec)["spec"])


@variants
def test_every_child_belongs_to_its_pipeline(spec: dict[str, Any]) -> None:
    """Each has the owner that takes it along, the labels that find it, and a name that no other has."""
    manifests = rendered(spec)

    names = [(one["kind"], one["metadata"]["name"]) for one in manifests]
    assert len(set(names)) == len(names)
    for one in manifests:
        owner = one["metadata"]["ownerReferences"][0]
        assert ("PredictionPipeline", "btc", "0b1c", True) == tuple(
            owner[key] for key in ("kind", "name", "uid", "controller")
        )
        assert "market" == one["metadata"]["namespace"]
        assert "btc" == one["metadata"]["labels"][PIPELINE_LABEL]
        assert one["metadata"]["name"].startswith("btc-")


@variants
def test_manifests_are_plain_data(spec: dict[str, Any]) -> None:
    """They survive JSON and YAML unchanged, so that what is compared is what is sent."""
    for one in rendered(spec):
        assert one == json.loads(json.dumps(one))
        assert one == yaml.safe_load(yaml.safe_dump(one))


@variants
def test_the_roles_take_their_settings(spec: dict[str, Any], tmp_path: Path) -> None:
    """Each rendered file is read by the role's own command line without an error."""
    files = one_of(rendered(spec), "ConfigMap", "btc-settings")["data"]

    read = {}
    for role, model in ROLES.items():
        path = tmp_path / f"{role}.yaml"
        path.write_text(files[path.name])
        read[role] = load(model, {"config": str(path)}, {})

    assert {f"{role}.yaml" for role in ROLES} == set(files)
    assert all(["BTCUSDT"] == settings.symbol for settings in read.values())  # type: ignore[attr-defined]  # all have it


def test_what_is_specified_reaches_the_role(tmp_path: Path) -> None:
    """Values arrive in the role's own units."""
    spec = {
        "logLevel": "debug",
        "ingestion": {"silenceSeconds": 7, "rotateAfterHours": 2, "queueMegabytes": 3},
        "processor": {"selfReanchorAfterSeconds": 9, "gaps": {"timeSeconds": 8, "suppress": ["time_gap"]}},
        "reanchor": {"depthLimit": 100, "timeoutSeconds": 60},
    }
    files = one_of(rendered(spec), "ConfigMap", "btc-settings")["data"]
    ingest, process, reanchor = (yaml.safe_load(files[f"{role}.yaml"]) for role in ("ingest", "process", "reanchor"))

    assert (7, 7200, 3 * 2**20) == (ingest["silence_s"], ingest["rotate_after_s"], ingest["queue_bytes_max"])
    assert (9, 8, ["time_gap"]) == tuple(
        process[name] for name in ("self_reanchor_after_s", "time_gap_s", "suppress_rules")
    )
    assert ("btc", "0b1c", "market") == tuple(
        process[name] for name in ("pipeline", "pipeline_uid", "pipeline_namespace")
    )
    assert (100, 60, "debug") == (reanchor["depth_limit"], reanchor["timeout_s"], reanchor["log_level"])


def test_the_managed_redis_is_reached_by_sentinel_and_by_each_role_as_itself() -> None:
    """The URL names all nodes and the role's user; the password comes from a file."""
    files = one_of(rendered(), "ConfigMap", "btc-settings")["data"]

    hosts = ",".join(f"btc-redis-{number}.btc-redis.market.svc.cluster.local.:26379" for number in range(3))
    for role in ROLES:
        settings = yaml.safe_load(files[f"{role}.yaml"])
        assert f"sentinel://{role}@{hosts}/sheetanchor" == settings["redis_url"]
        assert "/etc/sheetanchor/secrets/redis-password" == settings["redis_password_file"]


def test_an_external_redis_is_reached_as_specified() -> None:
    """With its user and certificate authority; there are no children for a Redis of its own."""
    manifests = rendered(EXTERNAL)
    settings = yaml.safe_load(one_of(manifests, "ConfigMap", "btc-settings")["data"]["infer.yaml"])

    expected = "rediss://sheet@cache.example:6380/1"
    assert expected == settings["redis_url"]
    assert "/etc/sheetanchor/redis-ca/ca.crt" == settings["redis_ca_file"]
    assert not [one for one in manifests if one["metadata"]["name"].startswith("btc-redis")]


def mounted_secrets(template: dict[str, Any]) -> set[tuple[str, str]]:
    found = set()
    for volume in template["spec"]["volumes"]:
        for source in (volume.get("projected") or {}).get("sources", ()):
            secret = source.get("secret") or {}
            found |= {(secret["name"], item["key"]) for item in secret.get("items", ())}
    return found


def test_each_pod_mounts_only_its_own_secrets() -> None:
    """A role has its own password, ingestors also the API key, and no pod a whole Secret."""
    found = {name: mounted_secrets(one) for name, one in templates(rendered()).items() if "redis" not in name}

    key = ("binance-api-key", "api-key")
    assert {("btc-redis", "ingest"), key} == found["btc-ingest-zone-a"]
    assert {("btc-redis", "process")} == found["btc-process"]
    assert {("btc-redis", "infer")} == found["btc-infer"]
    assert {("btc-redis", "reanchor")} == mounted_secrets(reanchor_template({}))


def test_only_the_processor_has_an_api_token() -> None:
    """And it may create ReAnchors in its namespace, nothing else."""
    manifests = rendered()
    tokens = {
        name
        for name, one in templates(manifests).items()
        for volume in one["spec"]["volumes"]
        for source in (volume.get("projected") or {}).get("sources", ())
        if "serviceAccountToken" in source
    }

    assert {"btc-process"} == tokens
    assert all(one["spec"]["automountServiceAccountToken"] is False for one in templates(manifests).values())
    assert [{"apiGroups": ["sheetanchor.dev"], "resources": ["reanchors"], "verbs": ["create"]}] == [
        rule for one in manifests if one["kind"] == "Role" for rule in one["rules"]
    ]
    accounts = [one for one in manifests if one["kind"] == "ServiceAccount"]
    assert all(one["automountServiceAccountToken"] is False for one in accounts)
    used = {one["spec"]["serviceAccountName"] for one in templates(manifests).values()}
    assert used <= {one["metadata"]["name"] for one in accounts}


def test_a_roll_out_never_takes_away_what_serves() -> None:
    """A new pod is ready for a while before an old one goes, and two missed probes take a pod out of service."""
    for one in rendered():
        if one["kind"] != "Deployment":
            continue
        spec, container = one["spec"], one["spec"]["template"]["spec"]["containers"][0]
        assert {"maxUnavailable": 0, "maxSurge": 1} == spec["strategy"]["rollingUpdate"]
        assert spec["minReadySeconds"] >= 5
        assert (5, 2) == tuple(container["readinessProbe"][name] for name in ("periodSeconds", "failureThreshold"))
        assert "/health/live" == container["livenessProbe"]["httpGet"]["path"]
        limits, requests = container["resources"]["limits"], container["resources"]["requests"]
        assert ({"memory"}, {"cpu", "memory"}) == (set(limits), set(requests))


def test_probes_have_a_port_that_no_policy_opens() -> None:
    """Who reads a pod's other ports cannot keep the kubelet out; and it finds each probe's port, by either family."""
    manifests = rendered()
    served = {kind: one for kind, one in templates(manifests).items() if one["spec"]["containers"][0].get("ports")}
    opened = {
        port["port"]
        for one in manifests
        if one["kind"] == "NetworkPolicy"
        for rule in one["spec"].get("ingress", [])
        for port in rule["ports"]
    }
    probed = []
    for template in served.values():
        for container in template["spec"]["containers"]:
            ports = {one["name"]: one["containerPort"] for one in container["ports"]}
            names = {
                container[probe]["httpGet"]["port"] for probe in ("startupProbe", "livenessProbe", "readinessProbe")
            }
            probed += [ports[name] for name in names]

    assert {8082, 8083} == set(probed)
    assert set() == opened & set(probed)
    files = next(one for one in manifests if one["metadata"]["name"] == "btc-settings")["data"]
    for role in ("ingest", "process", "infer"):
        assert {"http_host": "*", "http_port": 8080, "probe_port": 8082}.items() <= yaml.safe_load(
            files[f"{role}.yaml"]
        ).items()


def test_budgets_let_one_pod_of_a_component_go_at_a_time() -> None:
    """Of all lines together one may be away, of processors one, of inference one."""
    budgets = {one["metadata"]["name"]: one["spec"] for one in rendered() if one["kind"] == "PodDisruptionBudget"}

    assert {"btc-ingest", "btc-process", "btc-infer"} <= set(budgets)
    for component in ("ingest", "process", "infer"):
        assert 1 == budgets[f"btc-{component}"]["maxUnavailable"]
        assert selector_of("btc", component) == budgets[f"btc-{component}"]["selector"]["matchLabels"]


def test_at_rest_workloads_are_scaled_to_zero() -> None:
    """Suspension and maintenance keep every object, and Redis running."""
    for spec in ({"suspend": True}, {"maintenance": {"enabled": True, "reason": "new nodes"}}):
        manifests = rendered(spec)
        assert {0} == {one["spec"]["replicas"] for one in manifests if one["kind"] == "Deployment"}
        assert {3} >= {one["spec"]["replicas"] for one in manifests if one["kind"] == "StatefulSet"}
        assert len(rendered()) == len(manifests)


def hashes(spec: dict[str, Any] | None = None, **seen: Any) -> dict[str, str]:
    found = templates(rendered(spec, Observed(NOW_US, zones=ZONES, **seen)))
    return {name: one["metadata"]["annotations"][SETTINGS_HASH] for name, one in found.items()}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in after if before.get(name) != after[name]}


LINES = {f"btc-ingest-{zone}" for zone in ZONES}


@pytest.mark.parametrize(
    ("spec", "rolled"),
    [
        ({"inference": {"warmRuns": 7}}, {"btc-infer"}),
        ({"processor": {"gaps": {"timeSeconds": 9}}}, {"btc-process"}),
        ({"ingestion": {"silenceSeconds": 9}}, LINES),
        ({"logLevel": "debug"}, {"btc-infer", "btc-process"} | LINES),
        ({"reanchor": {"cooldownSeconds": 60}}, set()),
        ({"reanchor": {"depthLimit": 100, "timeoutSeconds": 30}}, {"btc-process"}),
        ({"inference": {"replicas": 5}}, set()),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, set) else json.dumps(value),
)
def test_a_changed_setting_rolls_the_pods_that_read_it(spec: dict[str, Any], rolled: set[str]) -> None:
    """And no others."""
    assert rolled == changed(hashes(), hashes(spec))


def test_changed_content_rolls_the_pods_that_read_it() -> None:
    """A new version of a Secret or a model's ConfigMap does; first sight of the generated Secret does not."""
    given = {**MODEL_MAP, "exchange": {**OWN_EXCHANGE, "apiKeySecret": {"name": "key"}}}
    before = hashes(given, config_maps={"momentum": {"": "1"}}, secret_versions={"key": "1"})

    model = hashes(given, config_maps={"momentum": {"": "2"}}, secret_versions={"key": "1"})
    key = hashes(given, config_maps={"momentum": {"": "1"}}, secret_versions={"key": "2"})
    generated = hashes(given, config_maps={"momentum": {"": "1"}}, secret_versions={"key": "1", "btc-redis": "9"})

    assert ({"btc-infer"}, LINES, set()) == (changed(before, model), changed(before, key), changed(before, generated))


def test_what_is_missing_rolls_nothing() -> None:
    """Pods that could not restart keep what they have read; if it returns unchanged, nothing is rolled either."""
    given = {**MODEL_MAP, "exchange": {**OWN_EXCHANGE, "apiKeySecret": {"name": "key"}}}
    there: dict[str, Any] = {
        "secrets": {"key": frozenset({"api-key"})},
        "secret_versions": {"key": "1"},
        "config_maps": {"momentum": {"": "1"}},
    }
    manifests = rendered(given, Observed(NOW_US, zones=ZONES, **there))
    live = {(one["kind"], one["metadata"]["name"]): one for one in manifests}
    before = hashes(given, **there)

    for missing in (
        {"secrets": {"key": None}, "secret_versions": {}},
        {"secrets": {"key": frozenset()}, "secret_versions": {"key": "2"}},
        {"secrets": {}, "secret_versions": {}},
        {"config_maps": {"momentum": None}},
    ):
        assert set() == changed(before, hashes(given, **{**there, **missing}, children=live)), missing
    assert set() == changed(before, hashes(given, **there, children=live))
    assert LINES == changed(before, hashes(given, **{**there, "secret_versions": {"key": "2"}}, children=live))


def allowed(manifests: tuple[dict[str, Any], ...], name: str, way: str) -> list[tuple[str, tuple[int, ...]]]:
    rules = one_of(manifests, "NetworkPolicy", name)["spec"].get(way) or []
    return [
        ("inside" if rule.get("to") or rule.get("from") else "any", tuple(port["port"] for port in rule["ports"]))
        for rule in rules
    ]


def test_traffic_is_denied_but_for_what_is_needed() -> None:
    """Only ingestors and whatever re-anchors reach the exchange; inference reaches DNS and Redis and nothing else."""
    manifests = rendered({"exchange": OWN_EXCHANGE, "processor": {"selfReanchorAfterSeconds": 0}})
    base = [("any", (53, 53)), ("inside", (6379, 26379))]

    deny = one_of(manifests, "NetworkPolicy", "btc-default-deny")["spec"]
    assert {PIPELINE_LABEL: "btc"} == deny["podSelector"]["matchLabels"]
    assert (["Ingress", "Egress"], None, None) == (deny["policyTypes"], deny.get("ingress"), deny.get("egress"))
    assert base == allowed(manifests, "btc-infer", "egress")
    assert [*base, ("any", (8090,))] == allowed(manifests, "btc-ingest", "egress")
    assert [*base, ("any", (8090,))] == allowed(manifests, "btc-reanchor", "egress")
    assert [*base, ("any", (443, 6443))] == allowed(manifests, "btc-process", "egress")
    assert [] == allowed(manifests, "btc-reanchor", "ingress")
    assert [("inside", (6379, 26379)), ("any", (8080, 8081))] == allowed(manifests, "btc-redis", "ingress")
    assert [("any", (8080,))] == allowed(manifests, "btc-infer", "ingress")


def test_the_cluster_is_as_the_operator_was_configured() -> None:
    """Where the API server and DNS are, and with what images are pulled, is the cluster's, not the pipeline's."""
    defaults = replace(DEFAULTS, api_server_ports=(16443,), dns_ports=(5353,), pull_secrets=("registry",))
    spec = {"exchange": OWN_EXCHANGE, "processor": {"selfReanchorAfterSeconds": 0}}
    observed = Observed(NOW_US, zones=ZONES)
    manifests = children(pipeline(spec), observed, defaults, password)
    own = children(pipeline({**spec, "imagePullSecrets": [{"name": "mine"}]}), observed, defaults, password)

    assert ("any", (16443,)) == allowed(manifests, "btc-process", "egress")[-1]
    for name in ("ingest", "process", "infer", "reanchor", "redis"):
        assert ("any", (5353, 5353)) == allowed(manifests, f"btc-{name}", "egress")[0]
    assert [{"name": "registry"}] == one_and_all(manifests, "imagePullSecrets")
    assert [{"name": "mine"}] == one_and_all(own, "imagePullSecrets")


def one_and_all(manifests: tuple[dict[str, Any], ...], field: str) -> Any:
    """Give what every pod template has in a field, the same in all of them."""
    first, *others = [template["spec"][field] for template in templates(manifests).values()]
    assert [first] * len(others) == others
    return first


def test_a_processor_that_may_rebuild_by_itself_reaches_the_exchange() -> None:
    """It runs the same program as a Job would."""
    assert ("any", (8090,)) in allowed(rendered({"exchange": OWN_EXCHANGE}), "btc-process", "egress")


def test_network_policies_can_be_left_out() -> None:
    """A cluster with rules of its own gets none."""
    manifests = rendered({"networkPolicy": {"enabled": False}})

    assert not [one for one in manifests if one["kind"] == "NetworkPolicy"]


def test_what_people_must_provide_is_known() -> None:
    """Secrets, ConfigMaps and claims that the children mount are those that are looked for."""
    assert {"binance-api-key": {"api-key"}} == secrets_needed(pipeline())
    assert {} == secrets_needed(pipeline({"exchange": OWN_EXCHANGE}))
    own_key = {"exchange": {**OWN_EXCHANGE, "apiKeySecret": {"name": "key", "key": "k"}}}
    assert {"key": {"k"}} == secrets_needed(pipeline(own_key))
    found = secrets_needed(pipeline({**EXTERNAL, "exchange": OWN_EXCHANGE}))
    assert {"cache": {"password"}, "cache-ca": {"ca.crt"}} == found
    users = {"ingest", "process", "infer", "reanchor", "replica", "sentinel"}
    own_redis = {"exchange": OWN_EXCHANGE, "redis": {"managed": {"passwordSecret": {"name": "mine"}}}}
    assert {"mine": users} == secrets_needed(pipeline(own_redis))
    assert {"momentum": {"model.onnx", "manifest.json"}} == config_maps_needed(pipeline(MODEL_MAP))
    assert {"models"} == claims_needed(pipeline(MODEL_CLAIM))


def test_an_exchange_of_ones_own_wants_no_key() -> None:
    """The role gets a placeholder; Binance's stream gets the key as a file."""

    def ingestor(spec: dict[str, Any]) -> dict[str, Any]:
        return dict(templates(rendered(spec))["btc-ingest-zone-a"]["spec"]["containers"][0])

    assert {"name": "BINANCE_API_KEY", "value": "none"} in ingestor({"exchange": OWN_EXCHANGE})["env"]
    assert "BINANCE_API_KEY" not in json.dumps(ingestor({}))


def test_the_model_is_mounted_where_the_role_looks() -> None:
    """Both files of a ConfigMap, or the folder of a volume; by default the image's own."""
    for spec, kind in ((MODEL_MAP, "configMap"), (MODEL_CLAIM, "persistentVolumeClaim")):
        manifests = rendered(spec)
        template = templates(manifests)["btc-infer"]["spec"]
        settings = yaml.safe_load(one_of(manifests, "ConfigMap", "btc-settings")["data"]["infer.yaml"])
        mount = next(one for one in template["containers"][0]["volumeMounts"] if one["name"] == "model")
        assert kind in next(one for one in template["volumes"] if one["name"] == "model")
        assert settings["models"] == mount["mountPath"]
        assert mount["readOnly"]
    assert "models" not in yaml.safe_load(one_of(rendered(), "ConfigMap", "btc-settings")["data"]["infer.yaml"])


def test_pods_go_where_the_pipeline_says() -> None:
    """Image, pull Secrets, selector, tolerations and priority reach every pod."""
    for template in templates(rendered(BUSY)).values():
        spec = template["spec"]
        assert ("own:1", "Always") == tuple(spec["containers"][0][key] for key in ("image", "imagePullPolicy"))
        assert ([{"name": "registry"}], {"disk": "fast"}, "high") == tuple(
            spec[key] for key in ("imagePullSecrets", "nodeSelector", "priorityClassName")
        )
        assert {"key": "market", "operator": "Exists"} in spec["tolerations"]
        lost = [one for one in spec["tolerations"] if one.get("tolerationSeconds") == 10]
        assert 2 == len(lost)


def test_pods_carry_what_is_asked_for_beside_what_is_ours() -> None:
    """Selectors, policies and scraping use the operator's labels and annotations, so users cannot replace them."""
    stolen = {PIPELINE_LABEL: "other", "prometheus.io/scrape": "false"}
    labels, annotations = {"team": "markets"}, {"example.com/logs": "json"}
    asked = {"podMetadata": {"labels": labels | stolen, "annotations": annotations | stolen}}

    plain, found = (templates(rendered(spec)) for spec in ({}, asked))
    for name, template in plain.items():
        metadata = template["metadata"]
        assert labels | stolen | metadata["labels"] == found[name]["metadata"]["labels"]
        assert annotations | stolen | metadata["annotations"] == found[name]["metadata"]["annotations"]
        assert "btc" == found[name]["metadata"]["labels"][PIPELINE_LABEL]
        assert "true" == found[name]["metadata"]["annotations"]["prometheus.io/scrape"]
        assert template["spec"] == found[name]["spec"]


symbols = st.lists(st.from_regex(r"[A-Z0-9]{2,20}", fullmatch=True), min_size=1, max_size=10, unique=True)
specs = st.fixed_dictionaries(
    {"symbols": symbols},
    optional={
        "ingestion": st.builds(
            lambda silence, more, hours, size: {
                "silenceSeconds": silence,
                "connectionLossSeconds": silence + more,
                "rotateAfterHours": hours,
                "queueMegabytes": size,
            },
            st.integers(1, 300),
            st.integers(1, 300),
            st.integers(1, 23),
            st.integers(1, 1024),
        ),
        "processor": st.builds(
            lambda count, own, wait, quiet, sigmas, jump: {
                "replicas": count,
                "selfReanchorAfterSeconds": own,
                "gaps": {
                    "waitMilliseconds": wait,
                    "timeSeconds": quiet,
                    "volumeSigmas": sigmas,
                    "priceJump": jump,
                },
            },
            st.integers(1, 3),
            st.integers(0, 3600),
            st.integers(0, 10_000),
            st.integers(1, 3600),
            st.floats(0.5, 100),
            st.floats(0.0001, 1),
        ),
        "reanchor": st.builds(
            lambda depth, time: {"depthLimit": depth, "timeoutSeconds": time},
            st.integers(5, 5000),
            st.integers(10, 140),
        ),
        "inference": st.builds(
            lambda count, runs: {"replicas": count, "warmRuns": runs}, st.integers(1, 10), st.integers(0, 100)
        ),
        "exchange": st.sampled_from([OWN_EXCHANGE, {}]),
        "zones": st.lists(
            st.from_regex(r"[a-z][a-z0-9-]{0,10}[a-z0-9]", fullmatch=True), min_size=2, max_size=3, unique=True
        ),
        "redis": st.sampled_from([{}, {"managed": {}}, EXTERNAL["redis"]]),
    },
)


@given(specs)
def test_whatever_the_schema_takes_the_roles_take(spec: dict[str, Any]) -> None:
    """Every specification within the schema's ranges renders, and the same one renders alike."""
    wanted, seen = pipeline(spec), Observed(NOW_US, zones=ZONES)

    first, second = (children(wanted, seen, DEFAULTS, password) for _ in range(2))

    assert first == second
    names = [(one["kind"], one["metadata"]["name"]) for one in first]
    assert all(before != after for before, after in pairwise(sorted(names)))


def test_children_are_named_by_one_rule() -> None:
    """A name is the pipeline's, the component's, and the line's."""
    assert "btc-ingest-a" == child_name("btc", Component.INGEST, "a")
    assert "btc-default-deny" == child_name("btc", "default-deny")


def test_a_cluster_that_gives_ids_is_left_to_do_so() -> None:
    """Where each namespace has ids of its own no pod names any, and all else that restricts pods stays."""
    one = pipeline({"redis": {"managed": {"storage": {"size": "4Gi"}}}})
    role = WorkloadRole(Component.REANCHOR, one.spec.reanchor.resources, served=False)
    ids = {"runAsUser", "runAsGroup", "fsGroup", "fsGroupChangePolicy"}
    found = {}
    for assign in (True, False):
        defaults = replace(DEFAULTS, assign_ids=assign)
        observed = Observed(NOW_US, zones=ZONES)
        found[assign] = templates(children(one, observed, defaults, password))
        found[assign]["btc-reanchor"] = pod_template(one, observed, defaults, role)
    for name, template in found[False].items():
        left, given = (found[assign][name]["spec"]["securityContext"] for assign in (False, True))
        assert not ids & set(json.dumps(template["spec"]).split('"')), name
        assert ids == set(given) - set(left), name
        assert left["runAsNonRoot"], name


def test_an_evacuated_zone_is_left_by_what_is_not_bound_to_it() -> None:
    """Processors and inference are kept out; the zone's line and Redis stay; without an evacuation none is."""

    def kept_out(status: dict[str, Any]) -> dict[str, list[str]]:
        made = children(pipeline(status=status), Observed(NOW_US, zones=ZONES), DEFAULTS, password)
        return {
            name: [
                zone
                for term in affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
                for one in term["matchExpressions"]
                if one["operator"] == "NotIn"
                for zone in one["values"]
            ]
            for name, template in templates(made).items()
            if (affinity := template["spec"]["affinity"].get("nodeAffinity"))
        }

    lines = {f"btc-ingest-{zone}": [] for zone in ZONES}
    assert lines == kept_out({})
    assert {**lines, "btc-process": ["zone-b"], "btc-infer": ["zone-b"]} == kept_out({"evacuatedZone": "zone-b"})
