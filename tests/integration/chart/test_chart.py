"""The chart: what its values allow, what its rights suffice for, and a release's life on a real API server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.bed.tools import program
from sheetanchor_operator.api.network_peers import peers_of
from sheetanchor_operator.names import API_VERSION
from sheetanchor_operator.settings import OperatorSettings
from support.apiserver import ApiServer
from support.operator_parts import CRDS, create, namespace, reanchors, token_of
from support.operator_process import OperatorProcess, apply_pipeline, children_of, condition_of, settled, until
from support.rendered_parts import CHART, CHARTS, Manifest, rendered_chart

ROOT = CHART.parents[1]
RELEASE = "sheetanchor"
KINDS = (
    "deployment",
    "service",
    "serviceaccount",
    "poddisruptionbudget",
    "networkpolicy",
    "role",
    "rolebinding",
    "clusterrole",
    "clusterrolebinding",
    "validatingadmissionpolicy",
    "validatingadmissionpolicybinding",
    "customresourcedefinition",
)
VERBS = {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
VERBS |= {"move"}  # of this group only: what the policy about annotations looks for


def helm(
    *arguments: str | Path, values: dict[str, Any] | None = None, kubeconfig: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run helm, whatever comes of it; its own folders go with the kubeconfig's."""
    home = kubeconfig.parent if kubeconfig else Path("/nonexistent")
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "KUBECONFIG": str(kubeconfig or "")}
    command = [str(program("helm")), *map(str, arguments), *(["-f", "-"] if values is not None else [])]
    text = json.dumps(values) if values is not None else None
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=100, check=False, env=environ)


def named(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Give the manifests of a kind by name."""
    return {one["metadata"]["name"]: one for one in manifests if one["kind"] == kind}


# Values


@pytest.mark.parametrize("name", CHARTS)
def test_lint_finds_nothing(name: str) -> None:
    """`helm lint --strict` is content, whatever the values."""
    done = helm("lint", "--strict", CHART, values=CHARTS[name])

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"replicas": 0}, ("replicas", "minimum")),
        ({"replicas": "2"}, ("replicas", "integer")),
        ({"replica": 2}, ("replica", "not allowed")),
        ({"logLevel": "verbose"}, ("logLevel", "'debug'")),
        ({"image": {"tag": "a b"}}, ("image/tag", "pattern")),
        ({"image": {"repository": "registry.example/x@sha256:1"}}, ("image/repository", "pattern")),
        ({"image": {"digest": "sha256:12"}}, ("image/digest", "pattern")),
        ({"image": {"name": "x"}}, ("image", "'name' not allowed")),
        ({"image": {"pullPolicy": "Sometimes"}}, ("image/pullPolicy", "'Always'")),
        ({"watchNamespaces": ["Big"]}, ("watchNamespaces/0", "pattern")),
        ({"watchNamespaces": "market"}, ("watchNamespaces", "array")),
        ({"watchNamespaces": ["a", "a"]}, ("watchNamespaces", "equal")),
        ({"monitoring": {"podMonitor": "yes"}}, ("monitoring/podMonitor", "auto")),
        ({"monitoring": {"namespaces": [1]}}, ("monitoring/namespaces/0", "string")),
        ({"networkPolicy": {"apiServerPorts": [0]}}, ("networkPolicy/apiServerPorts/0", "minimum")),
        ({"resources": {"request": {}}}, ("resources", "'request' not allowed")),
        ({"crds": {"keep": "no"}}, ("crds/keep", "boolean")),
        ({"resyncSeconds": 0}, ("resyncSeconds", "minimum")),
        ({"networkPolicy": {"dnsPorts": []}}, ("networkPolicy/dnsPorts", "minItems")),
        ({"podLabels": {"n": 1}}, ("podLabels/n", "string")),
        ({"commonLabels": {"app.kubernetes.io/name": "mine"}}, ("commonLabels/app.kubernetes.io", "false")),
        ({"extraEnv": {"HTTPS_PROXY": "http://proxy.example:3128"}}, ("extraEnv", "array")),
        ({"extraEnv": [{"name": "DEBUG", "value": 1}]}, ("extraEnv/0/value", "string")),
        ({"priorityClassName": "High"}, ("priorityClassName", "pattern")),
        ({"priorityClassName": "a..b"}, ("priorityClassName", "pattern")),
        ({"serviceAccount": {"name": "a" * 254}}, ("serviceAccount/name", "maxLength")),
        ({"imagePullSecrets": [{"name": ""}]}, ("imagePullSecrets/0/name", "pattern")),
        ({"workloadImagePullSecrets": [{"name": "registry"}]}, ("workloadImagePullSecrets/0", "string")),
        ({"workloadImagePullSecrets": [""]}, ("workloadImagePullSecrets/0", "pattern")),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], words: tuple[str, ...]) -> None:
    """A value that cannot work is refused before anything is sent, and the message names it and what was expected."""
    done = helm("template", RELEASE, CHART, "--kube-version", "1.34.0", values=values)

    assert done.returncode != 0
    assert [] == [word for word in words if word not in done.stderr], done.stderr


def test_names_may_be_subdomains() -> None:
    """What Kubernetes lets be long and have dots, the chart does too."""
    long = ".".join(["priority" * 7] * 4)
    values = {
        "priorityClassName": long,
        "serviceAccount": {"name": "operator.sheet-anchor.example"},
        "imagePullSecrets": [{"name": "registry.example"}],
    }

    (operator,) = named(rendered_chart(values), "Deployment").values()

    pod = operator["spec"]["template"]["spec"]
    assert (long, "operator.sheet-anchor.example") == (pod["priorityClassName"], pod["serviceAccountName"])
    assert [{"name": "registry.example"}] == pod["imagePullSecrets"]


def test_common_labels_are_everywhere() -> None:
    """Every object and pod has them but the definitions; a pod's own wins, and what selects pods is as it was."""
    values = {"commonLabels": {"team": "market", "tier": "all"}, "podLabels": {"tier": "pod"}}
    monitoring = {"podMonitor": True, "prometheusRule": True}

    manifests = rendered_chart({**values, "monitoring": monitoring})

    without = [one for one in manifests if one["metadata"].get("labels", {}).get("team") != "market"]
    assert {"CustomResourceDefinition"} == {one["kind"] for one in without}
    (operator,) = named(manifests, "Deployment").values()
    labels = operator["spec"]["template"]["metadata"]["labels"]
    assert ("market", "pod") == (labels["team"], labels["tier"])
    assert "team" not in operator["spec"]["selector"]["matchLabels"]


def test_dns_may_listen_elsewhere() -> None:
    """The operator's policy and the test's allow the ports that are named, by UDP and TCP, and not the usual one."""
    policies = named(rendered_chart({"networkPolicy": {"dnsPorts": [5353]}}), "NetworkPolicy")

    for name, policy in policies.items():
        ports = [(one["port"], one["protocol"]) for rule in policy["spec"]["egress"] for one in rule["ports"]]
        assert {(5353, "UDP"), (5353, "TCP")} <= set(ports), name
        assert 53 not in dict(ports), name


@pytest.mark.parametrize("peers", [None, [], ["a/b.c/d=e", "fd00::/8"]])
def test_names_are_asked_of_whom_the_values_name(peers: list[str] | None) -> None:
    """Both policies allow DNS queries to the cluster's own DNS, to the servers that are named, or to any."""
    values = {} if peers is None else {"networkPolicy": {"dnsPeers": peers}}
    wanted = peers_of(tuple(["kube-system/k8s-app=kube-dns", "169.254.20.10/32"] if peers is None else peers))

    for policy in named(rendered_chart(values), "NetworkPolicy").values():
        (rule,) = [one for one in policy["spec"]["egress"] if {"port": 53, "protocol": "UDP"} in one["ports"]]

        assert wanted == {key: value for key, value in rule.items() if key == "to"}


def test_an_account_of_ones_own_must_be_named() -> None:
    """Without an account of the chart's, and without a name, nothing is rendered."""
    values = {"serviceAccount": {"create": False}}

    done = helm("template", RELEASE, CHART, "--kube-version", "1.34.0", values=values)

    assert done.returncode != 0
    assert "serviceAccount.name: name the account" in done.stderr


def test_an_old_kubernetes_is_refused() -> None:
    """The definitions' rules need 1.30, and helm says so."""
    done = helm("template", RELEASE, CHART, "--kube-version", "1.29.9")

    assert done.returncode != 0
    assert "requires kubeVersion: >=1.30.0" in done.stderr


def test_the_schema_knows_every_value() -> None:
    """Whatever values.yaml sets, the schema describes, down to the second level."""
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    known = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))["properties"]

    assert set(values) | {"global", "tags", "enabled"} == set(known)
    for name, block in values.items():
        if isinstance(block, dict) and "properties" in known[name]:
            assert set(block) <= set(known[name]["properties"]), name


def test_versions_are_the_packages() -> None:
    """Chart and application are released together with the package."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert (chart["version"], chart["appVersion"]) == (package["version"], package["version"])


def test_the_operator_knows_every_variable() -> None:
    """No setting is misspelt: what the chart sets, the operator reads, with the value that was meant."""
    values = {
        "workloadImage": "registry.example/w:1",
        "workloadImagePullPolicy": "Never",
        "workloadImagePullSecrets": ["registry", "mirror.example"],
        "watchNamespaces": ["a", "b"],
        "monitoring": {"namespaces": ["m"]},
        "rbac": {"nodes": False},
        "assignIds": False,
        "networkPolicy": {"apiServerPorts": [16443, 443], "dnsPorts": [53, 5353], "dnsPeers": ["a/b=c", "10.0.0.0/8"]},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
        "workers": 3,
        "resyncSeconds": 2.5,
        "logLevel": "debug",
    }
    (operator,) = named(rendered_chart(values), "Deployment").values()
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    reported = {one["name"]: one.get("value") for one in container["env"]}

    fields = {name.removeprefix("SHEETANCHOR_").lower() for name in reported if name.startswith("SHEETANCHOR_")}
    assert fields <= set(OperatorSettings.model_fields)
    assert reported["SHEETANCHOR_OPERATOR_NAMESPACES"] == "a,b"
    assert reported["SHEETANCHOR_OPERATOR_MONITORING_NAMESPACES"] == "m"
    assert reported["SHEETANCHOR_OPERATOR_NODES"] == "false"
    assert reported["SHEETANCHOR_OPERATOR_ASSIGN_IDS"] == "false"
    assert reported["SHEETANCHOR_OPERATOR_API_SERVER_PORTS"] == "16443,443"
    assert reported["SHEETANCHOR_OPERATOR_DNS_PORTS"] == "53,5353"
    assert reported["SHEETANCHOR_OPERATOR_DNS_PEERS"] == "a/b=c,10.0.0.0/8"
    assert reported["SHEETANCHOR_OPERATOR_IMAGE_PULL_POLICY"] == "Never"
    assert reported["SHEETANCHOR_OPERATOR_IMAGE_PULL_SECRETS"] == "registry,mirror.example"
    assert reported["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert (reported["SHEETANCHOR_OPERATOR_WORKERS"], reported["SHEETANCHOR_OPERATOR_RESYNC_S"]) == ("3", "2.5")


# Definitions


def test_the_definitions_are_copies() -> None:
    """The chart's definitions are those of crds/, byte for byte."""
    ours = {path.name: path.read_bytes() for path in CRDS.glob("*.yaml")}

    assert {path.name: path.read_bytes() for path in (CHART / "files" / "crds").glob("*.yaml")} == ours


@pytest.mark.parametrize("keep", [True, False])
def test_definitions_are_rendered_as_they_are(keep: bool) -> None:
    """Rendering adds nothing but the annotation that makes helm leave them."""
    rendered = named(rendered_chart({"crds": {"keep": keep}}), "CustomResourceDefinition")
    policies = {name: one["metadata"].pop("annotations", {}) for name, one in rendered.items()}
    shipped = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in CRDS.glob("*.yaml")]

    assert rendered == {one["metadata"]["name"]: one for one in shipped}
    assert set(map(str, policies.values())) == {str({"helm.sh/resource-policy": "keep"} if keep else {})}


# Monitoring


@pytest.mark.parametrize("there", [True, False])
def test_monitoring_follows_the_clusters_api(there: bool) -> None:
    """Where the Prometheus operator's kinds are there they are used, elsewhere pods carry annotations."""
    kinds = ("PodMonitor", "PrometheusRule")
    flags = [word for kind in kinds for word in ("--api-versions", f"monitoring.coreos.com/v1/{kind}")] if there else []

    manifests = rendered_chart({}, *flags)

    (operator,) = named(manifests, "Deployment").values()
    annotations = operator["spec"]["template"]["metadata"]["annotations"]
    assert bool(named(manifests, "PodMonitor")) is there
    assert bool(named(manifests, "PrometheusRule")) is there
    assert ("prometheus.io/scrape" in annotations) is not there


def test_alerts_keep_their_own_templates() -> None:
    """What a rule leaves to Prometheus to fill in is not filled in by helm."""
    rules = named(rendered_chart({"monitoring": {"prometheusRule": True}}), "PrometheusRule")

    assert "{{ $labels." in json.dumps(rules)


# Rights


def rules_of(manifests: list[Manifest], *kinds: str) -> list[dict[str, Any]]:
    return [rule for kind in kinds for one in named(manifests, kind).values() for rule in one["rules"]]


@pytest.mark.parametrize("name", CHARTS)
def test_every_right_is_written_out(name: str) -> None:
    """No rule of any role says "all", grants more than verbs on resources, or may raise rights."""
    for rule in rules_of(rendered_chart(CHARTS[name]), "Role", "ClusterRole"):
        assert set(rule["verbs"]) <= VERBS, rule
        assert "*" not in [*rule["apiGroups"], *rule["resources"]], rule
        assert {"pods/exec", "pods/attach", "pods/proxy", "nodes/proxy"}.isdisjoint(rule["resources"]), rule


def test_who_is_on_call_may_do_what_the_plugin_does_and_no_more() -> None:
    """Pipelines are read, re-anchors asked for, Events listed: no pod, no Secret, no change of a pipeline."""
    role = named(rendered_chart({}), "ClusterRole")["sheetanchor-reanchor"]

    given = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert given == {
        *(("sheetanchor.dev", "predictionpipelines", verb) for verb in ("get", "list", "watch")),
        *(("sheetanchor.dev", "reanchors", verb) for verb in ("get", "list", "watch", "create")),
        ("", "events", "list"),
    }


def test_who_moves_pipelines_may_patch_them_where_the_policy_holds_only() -> None:
    """Without it `patch` would be a right to the whole of a pipeline, so the role is not there."""
    roles = named(rendered_chart({}), "ClusterRole")
    rule = {"apiGroups": ["sheetanchor.dev"], "resources": ["predictionpipelines"], "verbs": ["get", "patch", "move"]}
    assert [rule] == roles["sheetanchor-move"]["rules"]
    unprotected = named(rendered_chart({"admissionPolicy": {"enabled": False}}), "ClusterRole")
    assert "sheetanchor-move" not in unprotected


def test_what_is_never_deleted_may_not_be() -> None:
    """The operator may delete what a change of a pipeline takes away, and nothing that goes with the pipeline only."""
    rules = rules_of(rendered_chart({"watchNamespaces": ["a"], "rbac": {"userRoles": False, "nodes": False}}), "Role")
    may = {resource for rule in rules if "delete" in rule["verbs"] for resource in rule["resources"]}

    assert not may & {"secrets", "configmaps", "roles", "rolebindings", "pods", "jobs", "predictionpipelines"}
    assert {"deployments", "networkpolicies", "reanchors"} <= may


def test_named_namespaces_need_no_cluster_wide_rights() -> None:
    """With namespaces named, and nodes not read, nothing is granted outside of them."""
    values = {"watchNamespaces": ["a", "b"], "rbac": {"nodes": False, "userRoles": False}}

    manifests = rendered_chart(values)

    assert {} == named(manifests, "ClusterRole") | named(manifests, "ClusterRoleBinding")
    bound = {one["metadata"]["namespace"] for one in manifests if one["kind"] == "RoleBinding"}
    assert bound == {"a", "b", "rendered-restricted"}


def test_the_operators_pods_are_not_the_tests() -> None:
    """Service, budget and policies select the operator's pods and no others."""
    manifests = rendered_chart({})
    (operator,) = named(manifests, "Deployment").values()
    (tester,) = named(manifests, "Pod").values()
    (service,) = named(manifests, "Service").values()
    wanted = set(service["spec"]["selector"].items())

    assert wanted <= set(operator["spec"]["template"]["metadata"]["labels"].items())
    assert not wanted <= set(tester["metadata"]["labels"].items())


class Granted:
    """The chart's roles on a real API server, in a namespace, and a kubeconfig of the operator's account."""

    def __init__(self, server: ApiServer, where: str, folder: Path, values: dict[str, Any]) -> None:
        manifests = rendered_chart(values, "--namespace", where)
        kinds = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")
        self.server, self.folder = server, folder
        self.manifests = [one for one in manifests if one["kind"] in kinds and not _is_hook(one)]
        server.apply(*self.manifests)
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(server.kubeconfig_text(token_of(server, where, f"{RELEASE}-operator")))


def _is_hook(manifest: Manifest) -> bool:
    return "helm.sh/hook" in manifest["metadata"].get("annotations", {})


@pytest.fixture
def where(apiserver: ApiServer) -> Iterator[str]:
    """A namespace with a pipeline."""
    apiserver.kubectl("apply", "--server-side", "--force-conflicts", "-f", CRDS)
    apiserver.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", CRDS)
    with namespace(apiserver) as name:
        apply_pipeline(apiserver, name)
        yield name


@pytest.mark.parametrize("nodes", [True, False])
def test_the_rights_suffice(apiserver: ApiServer, where: str, tmp_path: Path, nodes: bool) -> None:
    """With exactly the chart's rights the operator creates, repairs and reports, and no request is forbidden."""
    values = {"watchNamespaces": [where], "rbac": {"nodes": nodes, "userRoles": False}}
    granted = Granted(apiserver, where, tmp_path, values)
    flags = [] if nodes else ["--no-operator-nodes"]
    operator = OperatorProcess(apiserver, where, tmp_path, "rights", *flags)
    operator.kubeconfig = granted.kubeconfig
    asked = {"pipeline": "btc", "symbol": "BTCUSDT", "reason": "a test"}
    operator.start()
    try:
        until(
            lambda: settled(apiserver, where),
            within_s=60,
            what="children",
            operator=operator,
        )
        create(
            apiserver,
            where,
            {"apiVersion": API_VERSION, "kind": "ReAnchor", "metadata": {"name": "one"}, "spec": asked},
        )
        apiserver.kubectl("delete", "service", "btc-infer", "-n", where)

        until(
            lambda: "Service/btc-infer" in children_of(apiserver, where), within_s=30, what="mended", operator=operator
        )
        until(lambda: bool(condition_of(apiserver, where, "Ready")), within_s=30, what="reported", operator=operator)
        until(
            lambda: "ownerReferences" in reanchors(apiserver, where)["one"]["metadata"],
            within_s=30,
            what="the re-anchor is adopted",
            operator=operator,
        )
        until(
            lambda: bool(apiserver.json("events.events.k8s.io", "-n", where)["items"]),
            within_s=30,
            what="an Event",
            operator=operator,
        )
        refused = [name for name in operator.metrics() if 'code="403"' in name]
        assert [] == refused, operator.said()[-3000:]
    finally:
        operator.end()
    assert "forbidden" not in operator.said()


@pytest.mark.parametrize(
    ("role", "can", "cannot"),
    [
        ("view", ["get pp", "list ra", "watch pp"], ["patch pp", "create ra", "delete ra"]),
        ("edit", ["create pp", "patch pp", "delete pp", "create ra", "update pp/scale"], ["patch pp/status"]),
        ("admin", ["deletecollection pp", "create pp"], ["patch ra/status"]),
        (
            "reanchor",
            ["get pp", "list pp", "list ra", "watch ra", "create ra"],
            ["create pp", "delete pp", "patch pp", "update pp", "patch ra", "delete ra", "patch ra/status"],
        ),
    ],
)
def test_people_have_the_rights_of_their_role(
    apiserver: ApiServer, where: str, role: str, can: list[str], cannot: list[str]
) -> None:
    """The roles for people allow what they are for, and no more."""
    apiserver.apply(named(rendered_chart({}), "ClusterRole")[f"sheetanchor-{role}"])
    binding = f"{role}-{where}"
    apiserver.kubectl(
        "create", "rolebinding", binding, f"--clusterrole=sheetanchor-{role}", f"--user={binding}", "-n", where
    )

    def may(what: str) -> bool:
        verb, resource = what.split()
        plural, _, part = resource.partition("/")
        name = {"pp": "predictionpipelines", "ra": "reanchors"}[plural] + ".sheetanchor.dev"
        flags = [f"--subresource={part}"] if part else []
        question = ["auth", "can-i", verb, name, *flags, f"--as={binding}", "-n", where]
        return apiserver.try_kubectl(*question).returncode == 0

    assert {what: may(what) for what in [*can, *cannot]} == dict.fromkeys(can, True) | dict.fromkeys(cannot, False)


# A release's life


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """An API server of its own: definitions come and go."""
    server = ApiServer(tmp_path_factory.mktemp("chart"))
    try:
        yield server.start()
    finally:
        server.stop()


def kinds_there(server: ApiServer) -> set[str]:
    """Give what a release has left in its namespace and in the cluster, by kind."""
    found = server.json(",".join(KINDS), "-A", "-l", "app.kubernetes.io/part-of=sheetanchor")["items"]
    return {one["kind"] for one in found}


@pytest.mark.usefixtures("apiserver")  # where the programs are
def test_a_releases_life(empty: ApiServer) -> None:
    """Installed, changed, rolled back, uninstalled: what is not wanted goes, definitions stay if they should."""
    system = ["-n", "system", "--create-namespace"]

    def run(*arguments: str | Path, values: dict[str, Any] | None = None) -> str:
        done = helm(*arguments, values=values, kubeconfig=empty.kubeconfig)
        assert done.returncode == 0, done.stderr
        return done.stdout

    notes = run("install", RELEASE, CHART, *system, values={})
    assert "PodDisruptionBudget" in kinds_there(empty)
    assert "kubectl apply" in notes
    empty.kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", CRDS)
    apply_pipeline(empty, "default")

    bare = {
        "replicas": 1,
        "networkPolicy": {"enabled": False},
        "watchNamespaces": ["default"],
        "rbac": {"nodes": False},
    }
    run("upgrade", RELEASE, CHART, *system, values={**bare, "logLevel": "debug"})
    assert {"PodDisruptionBudget", "NetworkPolicy", "ClusterRoleBinding"}.isdisjoint(kinds_there(empty))

    run("rollback", RELEASE, "1", *system[:2])
    assert {"PodDisruptionBudget", "NetworkPolicy", "ClusterRoleBinding"} <= kinds_there(empty)

    reported = run("uninstall", RELEASE, *system[:2])
    assert "predictionpipelines.sheetanchor.dev" in reported
    assert kinds_there(empty) == {"CustomResourceDefinition"}
    assert len(empty.json("pp", "-n", "default")["items"]) == 1

    notes = run("install", RELEASE, CHART, *system, values={"crds": {"keep": False}})
    assert "ALL PIPELINES" in notes
    assert len(empty.json("pp", "-n", "default")["items"]) == 1

    run("uninstall", RELEASE, *system[:2])
    empty.wait(lambda: kinds_there(empty) == set(), within_s=90, what="nothing is left")


@pytest.mark.usefixtures("apiserver")  # where the programs are
@pytest.mark.parametrize("release", ["1st", "my.release", "9" * 53, "a" * 53])
def test_a_release_of_any_name_is_installed_whole(empty: ApiServer, release: str) -> None:
    """What helm takes as a release's name does not leave a half-made release behind."""
    values = {"crds": {"install": False}, "rbac": {"userRoles": False}}
    system = ["-n", "system", "--create-namespace"]

    done = helm("install", release, CHART, *system, values=values, kubeconfig=empty.kubeconfig)
    helm("uninstall", release, *system[:2], kubeconfig=empty.kubeconfig)

    assert (0, "STATUS: deployed") == (done.returncode, "".join(re.findall("STATUS: .*", done.stdout))), done.stderr


@pytest.mark.usefixtures("apiserver")  # where the programs are
def test_an_upgrade_brings_new_definitions(empty: ApiServer, tmp_path: Path) -> None:
    """What a newer chart's definitions have more than those that are there is there after `helm upgrade`."""
    older = tmp_path / "sheetanchor"
    shutil.copytree(CHART, older)
    path = older / "files" / "crds" / "predictionpipelines.yaml"
    definition = yaml.safe_load(path.read_text())
    version = definition["spec"]["versions"][0]
    removed = version["additionalPrinterColumns"].pop()["name"]
    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["logLevel"]
    path.write_text(yaml.safe_dump(definition))

    def columns() -> list[str]:
        found = empty.json("crd", "predictionpipelines.sheetanchor.dev")["spec"]["versions"][0]
        fields = found["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        return [
            *(one["name"] for one in found["additionalPrinterColumns"]),
            *(["logLevel"] if "logLevel" in fields else []),
        ]

    system = ["-n", "system", "--create-namespace"]
    for action, chart in (("install", older), ("upgrade", CHART)):
        done = helm(action, RELEASE, chart, *system, values={"crds": {"keep": False}}, kubeconfig=empty.kubeconfig)
        assert done.returncode == 0, done.stderr
        assert ({removed, "logLevel"} <= set(columns())) == (action == "upgrade"), action

    helm("uninstall", RELEASE, *system[:2], kubeconfig=empty.kubeconfig)
    empty.wait(lambda: kinds_there(empty) == set(), within_s=90, what="nothing is left")
