"""Everything that a pipeline puts into a cluster, judged by schemas, linters and a real API server."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from cluster.bed.host import reason_against_tools
from cluster.bed.tools import program
from support.apiserver import ApiServer
from support.operator_parts import define
from support.pod_security import violations
from support.prometheus_parts import CHART, RULES, SCRAPE_FILE
from support.rendered_parts import CHARTS, PIPELINES, SYSTEM, Manifest, manifests_of, pod_specs, rendered_chart

pytestmark = pytest.mark.skipif(bool(reason_against_tools()), reason="helm and kube-score cannot be compiled")

VERSIONS = ("1.31", "1.33", "1.35")
IGNORED = yaml.safe_load((Path(__file__).parents[2] / "data" / "kube-score.yaml").read_text(encoding="utf-8"))
PASSWORD = "password of"
"""What the generated passwords begin with here."""

charts = pytest.mark.parametrize("name", CHARTS)
pipelines = pytest.mark.parametrize("name", PIPELINES)


@pipelines
@pytest.mark.parametrize("version", VERSIONS)
def test_a_pipelines_children_fit_the_schemas_of_kubernetes(name: str, version: str) -> None:
    """No field is unknown, none is of a wrong type, in an old, a usual and a new Kubernetes."""
    for one in manifests_of(PIPELINES[name]):
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("name", [name for name in PIPELINES if name != "maintenance"])  # it has no pods on purpose
def test_a_linter_finds_nothing_in_a_pipelines_children(name: str) -> None:
    """kube-score finds nothing but what the list of exceptions gives a reason for."""
    assert score(manifests_of(PIPELINES[name]), *IGNORED["everywhere"]) == []


def score(manifests: list[Manifest], *ignored: str) -> list[str]:
    """Let kube-score judge; it should not demand CPU limits, since a throttled workload misses its deadlines."""
    flags = [flag for check in ignored for flag in ("--ignore-test", check)]
    command = [program("kube-score"), "score", "--output-format", "ci", "--ignore-container-cpu-limit", *flags, "-"]
    done = subprocess.run(
        command, input=yaml.safe_dump_all(manifests), capture_output=True, text=True, timeout=60, check=False
    )
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    return [line for line in lines if line.startswith(("[CRITICAL]", "[WARNING]"))]


@pipelines
def test_every_container_has_requests_and_a_memory_limit(name: str) -> None:
    """What one component uses is not what another one lacks."""
    for place, pod in pod_specs(manifests_of(PIPELINES[name])).items():
        for container in pod["spec"]["containers"]:
            resources = container["resources"]

            assert {"cpu", "memory"} <= set(resources["requests"]), place
            assert "memory" in resources["limits"], place


@pipelines
def test_passwords_are_in_their_secret_only(name: str) -> None:
    """No generated password shows in any other object, be it an argument, a variable or an annotation."""
    others = [one for one in manifests_of(PIPELINES[name]) if one["kind"] != "Secret"]

    assert PASSWORD not in json.dumps(others)
    assert [] == [one for one in values_of_environment(others) if "KEY" in one or "PASSWORD" in one]


def values_of_environment(manifests: list[Manifest]) -> Iterator[str]:
    """Give the name of each environment variable."""
    for pod in pod_specs(manifests).values():
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", ()):
                yield variable["name"]


@pipelines
def test_no_role_has_a_wildcard(name: str) -> None:
    """Rights are listed one by one."""
    assert [] == wildcards(manifests_of(PIPELINES[name]))


def wildcards(manifests: list[Manifest]) -> list[str]:
    """Name the roles of which a rule says "all"."""
    return [
        one["metadata"]["name"]
        for one in manifests
        if one["kind"] in ("Role", "ClusterRole")
        for rule in one["rules"]
        if "*" in [*rule["verbs"], *rule.get("resources", ()), *rule.get("apiGroups", ())]
    ]


@pytest.fixture(scope="module")
def restricted(apiserver: ApiServer) -> str:
    """A namespace that enforces Pod Security "restricted"."""
    define(apiserver)
    apiserver.kubectl("create", "namespace", SYSTEM)
    apiserver.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted")
    return SYSTEM


def dry_run(server: ApiServer, namespace: str, manifests: list[Manifest]) -> subprocess.CompletedProcess[str]:
    """Apply on the server without storing anything; unknown and doubled fields are errors."""
    flags = ["--server-side", "--dry-run=server", "--validate=strict", "-n", namespace]
    return server.try_kubectl("apply", *flags, "-f", "-", text_in=yaml.safe_dump_all(manifests))


def pods_of(manifests: list[Manifest], namespace: str) -> list[Manifest]:
    """Make a pod of each template, as its controller would."""
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {**pod["metadata"], "name": place.lower().replace("/", "-"), "namespace": namespace},
            "spec": {"restartPolicy": "Always", **pod["spec"]},
        }
        for place, pod in pod_specs(manifests).items()
    ]


@pipelines
def test_a_real_api_server_takes_a_pipelines_children(apiserver: ApiServer, restricted: str, name: str) -> None:
    """Server-side, strictly validated, nothing is refused and nothing warned of."""
    done = dry_run(apiserver, restricted, manifests_of(PIPELINES[name], restricted))

    assert (done.returncode, done.stderr) == (0, "")


@pipelines
def test_real_pod_security_takes_a_pipelines_pods(apiserver: ApiServer, restricted: str, name: str) -> None:
    """Kubernetes' own admission lets every pod into a namespace that enforces "restricted"."""
    pods = pods_of(manifests_of(PIPELINES[name], restricted), restricted)

    done = dry_run(apiserver, restricted, pods)

    assert [] == [line for pod in pods for line in violations(pod["spec"])]
    assert (done.returncode, done.stderr) == (0, "")


def test_pod_security_is_at_work(apiserver: ApiServer, restricted: str) -> None:
    """A pod in its node's network is refused, so the claim before means something."""
    bad: dict[str, Any] = pods_of(manifests_of({}, restricted), restricted)[0]
    bad["spec"]["hostNetwork"] = True

    done = dry_run(apiserver, restricted, [bad])

    assert done.returncode != 0
    assert "violates PodSecurity" in done.stderr


def stored(server: ApiServer, namespace: str, manifests: list[Manifest]) -> list[Manifest]:
    """Give each manifest as the server would keep it."""
    flags = ["--server-side", "--dry-run=server", "-n", namespace, "-o", "json"]
    found: list[Manifest] = []
    for one in manifests:
        found.append(json.loads(server.kubectl("apply", *flags, "-f", "-", text_in=yaml.safe_dump(one))))
    return found


def lost(rendered: Any, kept: Any, place: str) -> list[str]:
    """Name the fields that are not kept as they are rendered; what the server adds does not count.

    `stringData` becomes `data`, which every tool that compares knows.
    """
    if isinstance(rendered, dict) and isinstance(kept, dict):
        both = {key: value for key, value in rendered.items() if key != "stringData"}
        return [one for key, value in both.items() for one in lost(value, kept.get(key), f"{place}.{key}")]
    if isinstance(rendered, list) and isinstance(kept, list) and len(rendered) == len(kept):
        pairs = enumerate(zip(rendered, kept, strict=True))
        return [one for index, (ours, theirs) in pairs for one in lost(ours, theirs, f"{place}.{index}")]
    return [] if rendered == kept else [f"{place}: {rendered!r} is kept as {kept!r}"]


@pytest.mark.parametrize("name", [*CHARTS, *PIPELINES])
def test_the_server_keeps_every_field_as_it_is_rendered(apiserver: ApiServer, restricted: str, name: str) -> None:
    """Whatever compares what is there with what was asked for, as Argo CD and Flux do, finds no difference for ever."""
    if name in CHARTS:
        manifests = known_to_kubernetes(rendered_chart(CHARTS[name]))
    else:
        manifests = manifests_of(PIPELINES[name], restricted)

    kept = stored(apiserver, restricted, manifests)

    pairs = zip(manifests, kept, strict=True)
    assert [] == [line for one, live in pairs for line in lost(one, live, f"{one['kind']}/{one['metadata']['name']}")]


def known_to_kubernetes(manifests: list[Manifest]) -> list[Manifest]:
    """Leave out what only the Prometheus operator defines."""
    return [one for one in manifests if not one["apiVersion"].startswith("monitoring.coreos.com/")]


def without_hooks(manifests: list[Manifest]) -> list[Manifest]:
    """Leave out what lives for the second of a `helm test`."""
    return [one for one in manifests if "helm.sh/hook" not in one["metadata"].get("annotations", {})]


@charts
@pytest.mark.parametrize("version", VERSIONS)
def test_the_chart_fits_the_schemas_of_kubernetes(name: str, version: str) -> None:
    """Whatever its values, the chart renders no unknown field and no wrong type."""
    for one in known_to_kubernetes(rendered_chart(CHARTS[name])):
        kubernetes_validate.validate(one, version, strict=True)


@pytest.mark.parametrize("name", [name for name in CHARTS if name != "bare"])  # who wants no policies gets none
def test_a_linter_finds_nothing_in_the_chart(name: str) -> None:
    """kube-score finds nothing but what the list of exceptions gives a reason for."""
    manifests = without_hooks(rendered_chart(CHARTS[name]))

    assert score(manifests, *IGNORED["everywhere"], *IGNORED["chart"]) == []


@charts
def test_a_real_api_server_takes_the_chart(apiserver: ApiServer, restricted: str, name: str) -> None:
    """Server-side, strictly validated, nothing is refused and nothing warned of."""
    done = dry_run(apiserver, restricted, known_to_kubernetes(rendered_chart(CHARTS[name])))

    assert (done.returncode, done.stderr) == (0, "")


@charts
def test_real_pod_security_takes_the_charts_pods(apiserver: ApiServer, restricted: str, name: str) -> None:
    """Operator and test pod run in a namespace that enforces "restricted"."""
    pods = pods_of(rendered_chart(CHARTS[name]), restricted)

    done = dry_run(apiserver, restricted, pods)

    assert [] == [line for pod in pods for line in violations(pod["spec"])]
    assert (done.returncode, done.stderr) == (0, "")


@charts
def test_the_chart_holds_no_secret_and_no_wildcard(name: str) -> None:
    """It has nothing to keep secret, and its rights are listed one by one."""
    manifests = rendered_chart(CHARTS[name])

    assert [] == [one["metadata"]["name"] for one in manifests if one["kind"] == "Secret"]
    assert [] == wildcards(manifests)


def test_images_come_from_the_values() -> None:
    """No image is named anywhere but in the values."""
    manifests = rendered_chart(CHARTS["everything"])
    containers = [one for pod in pod_specs(manifests).values() for one in pod["spec"]["containers"]]
    variables = {one["name"]: one.get("value") for container in containers for one in container.get("env", ())}

    assert {one["image"] for one in containers} == {f"registry.example/sheetanchor@sha256:{'0' * 64}"}
    assert variables["SHEETANCHOR_OPERATOR_IMAGE"] == "registry.example/workloads:1"
    assert "localhost/" not in json.dumps(manifests)


def test_rules_reach_the_cluster_as_they_are() -> None:
    """Each rule file is a PrometheusRule of the same content."""
    shipped = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(RULES.glob("*.yaml"))]
    manifests = rendered_chart(CHARTS["everything"])

    objects = [one["spec"] for one in manifests if one["kind"] == "PrometheusRule"]

    assert sorted(objects, key=str) == sorted(shipped, key=str)


@pytest.mark.parametrize(("job_name", "monitor_name"), [("sheetanchor-operator", "-operator"), ("sheetanchor", "")])
def test_both_ways_of_scraping_do_the_same(job_name: str, monitor_name: str) -> None:
    """Each PodMonitor relabels, trusts and limits as the job of the plain configuration does, at the same interval."""
    jobs = {one["job_name"]: one for one in yaml.safe_load(SCRAPE_FILE.read_text(encoding="utf-8"))["scrape_configs"]}
    monitors = [one for one in rendered_chart(CHARTS["everything"]) if one["kind"] == "PodMonitor"]
    (monitor,) = [one for one in monitors if one["metadata"]["name"].removeprefix("sheetanchor") == monitor_name]
    job, limits = jobs[job_name], ("sample_limit", "label_limit", "label_name_length_limit", "label_value_length_limit")
    plain = {
        one["target_label"]: (one["source_labels"], one.get("replacement", "$1"))
        for one in job["relabel_configs"]
        if not one.get("target_label", "__").startswith("__")
    }

    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        own = {
            one["targetLabel"]: (one["sourceLabels"], one.get("replacement", "$1"))
            for one in endpoint["relabelings"]
            if "targetLabel" in one
        }
        dropped = [{_snake(key): value for key, value in one.items()} for one in endpoint.get("metricRelabelings", ())]

        assert own == plain
        assert (endpoint["honorLabels"], endpoint["interval"]) == (job.get("honor_labels", False), "15s")
        assert dropped == job.get("metric_relabel_configs", [])
    assert {name: job[name] for name in limits if name in job} == {
        _snake(key): value for key, value in monitor["spec"].items() if _snake(key) in limits
    }


def _snake(name: str) -> str:
    return re.sub("([A-Z])", r"_\1", name).lower()


@pytest.mark.parametrize("name", ["pipeline.yaml", "recorded-market.yaml"])
def test_a_real_api_server_takes_the_examples(apiserver: ApiServer, restricted: str, name: str) -> None:
    """What a reader applies first is taken as it is, its pods by Pod Security too."""
    manifests = [one for one in yaml.safe_load_all((CHART / "examples" / name).read_text(encoding="utf-8")) if one]
    pods = pods_of(manifests, restricted)

    done = [dry_run(apiserver, restricted, some) for some in (manifests, pods) if some]

    assert [(0, "")] * len(done) == [(one.returncode, one.stderr) for one in done]
