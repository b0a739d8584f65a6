"""The chart as others carry it: null and odd values, parent charts, release names, labels."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from cluster.bed.host import reason_against_tools
from cluster.bed.tools import program
from support.rendered_parts import CHART, Manifest

pytestmark = [
    pytest.mark.skipif(bool(reason_against_tools()), reason="helm cannot be compiled"),
    pytest.mark.timeout(300),
]

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA = Draft7Validator(json.loads((CHART / "values.schema.json").read_text(encoding="utf-8")))
OPEN = ("resources", "tolerations")
"""What is a pod's own business: null takes the chart's default away, as helm has it."""


class Strict(yaml.CSafeLoader):
    """YAML as strict tools read it: a key that is there twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call]
        doubled = {key for key in keys if keys.count(key) > 1}
        if doubled:
            raise yaml.constructor.ConstructorError(None, None, f"doubled keys {doubled}", node.start_mark)
        return super().construct_mapping(node, deep)


def paths(values: dict[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    """Give the place of every value, sections among them."""
    for name, value in values.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from paths(value, *above, name)


PATHS = list(paths(VALUES))


def at(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Give values that set one thing."""
    return reduce(lambda below, name: {name: below}, reversed(path), value)  # type: ignore[return-value]


def template(chart: Path, values: dict[str, Any], release: str = "sheetanchor") -> subprocess.CompletedProcess[str]:
    command = [program("helm"), "template", release, chart, "-n", "sys", "--kube-version", "1.34.0", "-f", "-"]
    text = json.dumps(values)
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=False)


def manifests_of(done: subprocess.CompletedProcess[str]) -> list[Manifest]:
    """Read what was rendered, strictly: no key twice, nothing null, nothing that a template could not print.

    The definitions are left out: they are copied as they are.
    """
    assert done.returncode == 0, done.stderr
    texts = [text for text in re.split(r"(?m)^---\n", done.stdout) if "kind: CustomResourceDefinition" not in text]
    assert not re.search(r"<nil>|%!|map\[", "".join(texts))
    manifests = [one for text in texts if (one := yaml.load(text, Strict))]
    assert [] == [place for one in manifests for place in nulls(one, one["kind"])]
    return manifests


def nulls(node: Any, place: str) -> Iterator[str]:
    """Give the places of what is null."""
    if node is None:
        yield place
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from nulls(value, f"{place}.{key}")


def by_name(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {f"{one['kind']}/{one['metadata']['name']}": one for one in manifests}


@pytest.fixture(scope="module")
def plain() -> dict[str, Manifest]:
    """What the chart's own values give."""
    return by_name(manifests_of(template(CHART, {})))


@pytest.fixture
def umbrella(tmp_path: Path) -> Path:
    """A chart that contains this one, twice, the second under another name and left out unless it is asked for."""
    parent = tmp_path / "platform"
    (parent / "charts").mkdir(parents=True)
    shutil.copytree(CHART, parent / "charts" / "sheetanchor")
    here = {"name": "sheetanchor", "version": "0.1.0", "repository": ""}
    dependencies = [
        {**here, "condition": "sheetanchor.enabled"},
        {**here, "alias": "second", "condition": "second.enabled", "tags": ["second"]},
    ]
    chart = {"apiVersion": "v2", "name": "platform", "version": "1.0.0", "dependencies": dependencies}
    (parent / "Chart.yaml").write_text(json.dumps(chart))
    (parent / "values.yaml").write_text(json.dumps({"second": {"enabled": False}}))
    return parent


def test_the_copy_of_the_values_is_current() -> None:
    """Templates fill up from a copy, since they cannot read values.yaml; `make crds` writes it."""
    assert (CHART / "files" / "values.yaml").read_bytes() == (CHART / "values.yaml").read_bytes()


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a parent chart"])
def test_an_empty_value_is_as_if_not_written(umbrella: Path, plain: dict[str, Manifest], inside: bool) -> None:
    """Each value and section in turn null: the default holds; null resources and tolerations are none."""

    def rendered(path: tuple[str, ...]) -> dict[str, Manifest]:
        values = at(path, None)
        if not inside:
            return by_name(manifests_of(template(CHART, values)))
        done = template(umbrella, {"sheetanchor": values}, "sheetanchor")
        return by_name(manifests_of(done))

    with ThreadPoolExecutor(2) as pool:
        got = dict(zip(PATHS, pool.map(rendered, PATHS), strict=True))

    differ = {path for path, manifests in got.items() if manifests != plain}
    assert {path for path in PATHS if set(OPEN) & set(path)} == differ
    assert "resources" not in container(got["resources",])
    assert {"cpu": "100m", "memory": "192Mi"} == container(got["resources", "limits"])["resources"]["requests"]
    assert "tolerations" not in got["tolerations",]["Deployment/sheetanchor-operator"]["spec"]["template"]["spec"]


def container(manifests: dict[str, Manifest]) -> Manifest:
    """The operator's container."""
    found: Manifest = manifests["Deployment/sheetanchor-operator"]["spec"]["template"]["spec"]["containers"][0]
    return found


ODD: tuple[Any, ...] = ({}, [], "", "x", "a b", 0, -1, 1.5, True, False, [None], [{}], [[]], {"x": None}, {"x": {}})


def test_an_odd_value_is_rendered_or_refused_by_name() -> None:
    """Every value of every wrong kind gives what is sound, or a message that names it; never a template's error."""

    def outcome(case: tuple[tuple[str, ...], Any]) -> str:
        path, value = case
        done = template(CHART, at(path, value))
        if done.returncode == 0:
            try:
                manifests_of(done)
            except (AssertionError, yaml.YAMLError) as error:
                return f"{path} {value!r}: {error}"
            return ""
        reported = done.stderr
        named = "/".join(path) in reported.replace("'", "") or ".".join(path) in reported
        return "" if named and not re.search("nil pointer|executing|wrong type|error calling", reported) else reported

    # What the schema refuses it refuses by name: helm uses the same one, of which the next test has examples.
    cases = [(path, value) for path in PATHS for value in ODD if accepted(path, value)]
    with ThreadPoolExecutor(2) as pool:
        wrong = [one for one in pool.map(outcome, cases) if one]

    assert len(cases) > len(PATHS)
    assert [] == wrong


def accepted(path: tuple[str, ...], value: Any) -> bool:
    """Say whether the schema accepts a value; if not, the message must name the field."""
    errors = list(SCHEMA.iter_errors(at(path, value)))
    for error in errors:
        assert path[: len(error.absolute_path)] == tuple(error.absolute_path)[: len(path)], error
    return not errors


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image": {"repository": 5}}, ("image/repository", "string")),
        ({"image": "x"}, ("image", "object")),
        ({"podLabels": {"a": None}}, ("podLabels/a", "string")),
        ({"podLabels": {"app.kubernetes.io/name": "mine"}}, ("podLabels/app.kubernetes.io",)),
        ({"podLabels": {"team": "of two words"}}, ("podLabels/team", "pattern")),
        ({"commonLabels": {"team": "x" * 64}}, ("commonLabels/team", "pattern")),
        ({"commonLabels": {"a key": "x"}}, ("commonLabels", "a key")),
        ({"podAnnotations": {"/a": "x"}}, ("podAnnotations", "/a")),
        ({"resources": {"limits": {"memory": "1 GB"}}}, ("resources/limits/memory", "pattern")),
        ({"test": {"resources": {"limits": {"memory": "many"}}}}, ("test/resources/limits/memory", "pattern")),
        ({"imagePullSecrets": [None]}, ("imagePullSecrets/0", "object")),
        ({"networkPolicy": {"dnsPeers": ["kube-dns"]}}, ("networkPolicy/dnsPeers/0",)),
        ({"networkPolicy": {"dnsPeers": ["10.0.0.300/8"]}}, ("networkPolicy/dnsPeers/0",)),
        ({"enabled": False}, ("enabled",)),
        ({"enable": True}, ("enable", "not allowed")),
        ({"extraEnv": [{"name": "SHEETANCHOR_LOG_LEVEL"}]}, ("extraEnv: SHEETANCHOR_LOG_LEVEL is there already",)),
        ({"extraEnv": [{"name": "A"}, {"name": "A"}]}, ("extraEnv: A is there already",)),
    ],
)
def test_what_the_api_server_would_refuse_is_refused_before(values: dict[str, Any], words: tuple[str, ...]) -> None:
    """Nothing is made of a release of which a part could not be made."""
    done = template(CHART, values)

    assert done.returncode != 0
    assert [] == [word for word in words if word not in done.stderr.replace("'", "")], done.stderr


def test_variables_of_the_chart_are_all_known(plain: dict[str, Manifest]) -> None:
    """The list of variables that extraEnv must not name is that of the container."""
    values = {
        "workloadImagePullPolicy": "Never",
        "workloadImagePullSecrets": ["a"],
        "watchNamespaces": ["a"],
        "monitoring": {"namespaces": ["a"]},
        "assignIds": False,
    }
    reported = {one["name"] for one in container(by_name(manifests_of(template(CHART, values))))["env"]}
    helpers = (CHART / "templates" / "_helpers.tpl").read_text(encoding="utf-8")
    listed = re.search(r'define "sheetanchor\.variables" -\}\}\n(.*?)\{\{- end', helpers, re.S)

    assert listed
    assert set(yaml.safe_load(listed[1])) == reported | {one["name"] for one in container(plain)["env"]}


# Parent charts


def test_a_parent_chart_may_switch_it(umbrella: Path) -> None:
    """With a condition, values of the parent's and globals it renders; where the condition is false it is left out."""
    own = {"enabled": True, "x-note": {"any": "thing"}, "global": {"registry": "r"}}
    there = template(
        umbrella, {"sheetanchor": own, "global": {"imageRegistry": "r", "a": [1]}, "tags": {"second": False}}
    )
    gone = template(umbrella, {"sheetanchor": {"enabled": False, "replicas": "many"}})

    assert "Deployment/sheetanchor-operator" in by_name(manifests_of(there))
    assert [] == manifests_of(gone)


def test_a_parent_chart_may_contain_it_twice(umbrella: Path) -> None:
    """Two of them in one release have no object in common, and neither selects the other's pods."""
    shared = {"crds": {"install": False}, "rbac": {"userRoles": False}}
    both = {"sheetanchor": {"watchNamespaces": ["a"]}, "second": {**shared, "enabled": True, "watchNamespaces": ["b"]}}

    done = template(umbrella, both, "prod")

    names = [
        f"{one['kind']}/{one['metadata'].get('namespace')}/{one['metadata']['name']}" for one in manifests_of(done)
    ]
    assert [] == [name for name in names if names.count(name) > 1]
    operators = [one for one in manifests_of(done) if one["kind"] == "Deployment"]
    first, second = (one["spec"]["selector"]["matchLabels"] for one in operators)
    assert first != second
    assert [True, True] == [
        one["spec"]["selector"]["matchLabels"].items() <= one["spec"]["template"]["metadata"]["labels"].items()
        for one in operators
    ]


# Names


SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
RELEASES = [
    "sheetanchor",
    "prod",
    "1st",
    "my.release",
    "my-release",
    "0",
    "a.b.c.9",
    "a" * 53,
    "a" * 52 + "b",
    "9" * 53,
]


@pytest.mark.parametrize(
    ("values", "releases"),
    [
        ({}, RELEASES),
        ({"fullnameOverride": "9lives"}, ["prod"]),
        ({"fullnameOverride": "x" * 63}, ["prod"]),
        ({"nameOverride": "9"}, RELEASES),
        ({"nameOverride": "y" * 63}, RELEASES),
    ],
)
def test_whatever_a_release_is_called_its_names_are_names(values: dict[str, Any], releases: list[str]) -> None:
    """A Service's name begins with a letter, has no dot and at most 63 characters; no two releases share one."""
    seen: dict[str, str] = {}
    for release in releases:
        for name, one in by_name(manifests_of(template(CHART, values, release))).items():
            if (
                one["kind"] == "ClusterRole" and "operator" not in name
            ):  # the roles for people: one installation has them
                continue
            assert seen.setdefault(name, release) == release
            own = one["metadata"]["name"]
            if "." not in own:
                assert SERVICE_NAME.fullmatch(own), own
            assert len(own) <= 253
            labels = one["metadata"].get("labels", {}).values()
            assert all(re.fullmatch(r"([A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?)?", label) for label in labels), (
                labels
            )


def test_cluster_wide_names_of_two_installations_differ() -> None:
    """`a-b` in `c` and `a` in `b-c` join to the same text with a dash; long names to the same when they are cut."""
    places = [("c", "a-b"), ("b-c", "a"), ("n" * 63, "sheetanchor-one"), ("n" * 63, "sheetanchor-two")]
    names = []
    for where, release in places:
        command = [program("helm"), "template", release, CHART, "-n", where, "--kube-version", "1.34.0"]
        command += ["--set", "crds.install=false,rbac.userRoles=false"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        names += [name for name in by_name(manifests_of(done)) if name.startswith(("Cluster", "Validating"))]

    assert len(names) == len(set(names)) >= 4 * len(places)


# Labels and identities


EVERYWHERE = {
    "commonLabels": {"team": "market", "release": "all"},
    "podLabels": {"release": "pod", "empty": ""},
    "podAnnotations": {"prometheus.io/scrape": "false", "kubectl.kubernetes.io/default-container": "operator"},
    "serviceAccount": {"annotations": {"a": "b"}},
    "nodeSelector": {"disk": "fast"},
    "monitoring": {
        "podMonitor": "auto",
        "prometheusRule": True,
        "labels": {"release": "prometheus", "app.kubernetes.io/part-of": "mine"},
    },
}


def test_maps_are_joined_as_maps() -> None:
    """A key that several values set is there once, with the nearest one's value; what selects pods is ours."""
    manifests = by_name(manifests_of(template(CHART, EVERYWHERE)))
    pod = manifests["Deployment/sheetanchor-operator"]["spec"]["template"]["metadata"]

    assert ("pod", "", "market") == (pod["labels"]["release"], pod["labels"]["empty"], pod["labels"]["team"])
    assert "false" == pod["annotations"]["prometheus.io/scrape"]
    rules = [one for one in manifests.values() if one["kind"] == "PrometheusRule"]
    assert {("prometheus", "mine")} == {
        (one["metadata"]["labels"]["release"], one["metadata"]["labels"]["app.kubernetes.io/part-of"]) for one in rules
    }


def test_ids_can_be_left_to_the_platform(plain: dict[str, Manifest]) -> None:
    """For a platform that assigns ids no pod has any, and the operator gets the setting to leave them out too."""
    without = by_name(manifests_of(template(CHART, {"assignIds": False})))

    def ids(manifests: dict[str, Manifest]) -> list[str]:
        return re.findall("runAsUser|runAsGroup|fsGroup|65532", json.dumps(manifests))

    assert ids(plain)
    assert [] == ids(without)
    assert {"name": "SHEETANCHOR_OPERATOR_ASSIGN_IDS", "value": "false"} in container(without)["env"]
    for one in ("Deployment/sheetanchor-operator", "Pod/sheetanchor-test"):
        pod = without[one]["spec"].get("template", without[one])["spec"] if one[0] == "D" else without[one]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_the_pod_of_helm_test_can_be_sized() -> None:
    """A quota or a LimitRange lets it in."""
    resources = {"requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"cpu": "200m", "memory": "64Mi"}}

    pod = by_name(manifests_of(template(CHART, {"test": {"resources": resources}})))["Pod/sheetanchor-test"]

    assert [resources] == [one["resources"] for one in pod["spec"]["containers"]]


KINDS = ("PodMonitor", "PrometheusRule")


@pytest.mark.parametrize("there", [(), ("PodMonitor",), ("PrometheusRule",), KINDS, ("ServiceMonitor",)])
def test_a_group_is_not_taken_for_its_kinds(there: tuple[str, ...]) -> None:
    """Of the Prometheus operator's kinds only those are used that the API server has."""
    command = [program("helm"), "template", "x", CHART, "--kube-version", "1.34.0"]
    for api in ("monitoring.coreos.com/v1", *(f"monitoring.coreos.com/v1/{kind}" for kind in there)):
        command += ["--api-versions", api]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    assert set(there) & set(KINDS) == {one["kind"] for one in manifests_of(done)} & set(KINDS)
