"""The committed custom resource definitions: that they are what the models say, and sound by the rules of schemas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sheetanchor_operator.api.fields import RULES
from sheetanchor_operator.api.schema import files
from sheetanchor_operator.names import GROUP, Condition, Reason
from support.pipeline_parts import pipeline

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "crds").glob("*.yaml"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def version_of(path: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(path.read_text())["spec"]["versions"][0])


def schema_of(path: Path) -> dict[str, Any]:
    return dict(version_of(path)["schema"]["openAPIV3Schema"])


def nodes(node: dict[str, Any], place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Give every node of a schema with its place."""
    yield place, node
    for name, below in (node.get("properties") or {}).items():
        yield from nodes(below, f"{place}.{name}")
    for word in ("items", "additionalProperties"):
        if isinstance(node.get(word), dict):
            yield from nodes(node[word], f"{place}[]")


def test_the_files_are_what_the_models_say() -> None:
    """`python -m sheetanchor_operator.api.schema crds` changes nothing."""
    assert files() == {path.stem: path.read_text() for path in FILES}


@each_file
def test_names_and_subresources_are_complete(path: Path) -> None:
    """Short name, category, status subresource, and columns with a priority."""
    crd = yaml.safe_load(path.read_text())
    names, version = crd["spec"]["names"], crd["spec"]["versions"][0]

    assert f"{names['plural']}.{GROUP}" == crd["metadata"]["name"]
    assert (["sheetanchor"], 1) == (names["categories"], len(names["shortNames"]))
    assert {} == version["subresources"]["status"]
    assert len([one for one in version["additionalPrinterColumns"] if "priority" not in one]) >= 6
    assert len([one for one in version["additionalPrinterColumns"] if one.get("priority") == 1]) >= 3


@each_file
def test_the_schema_is_structural_and_closed(path: Path) -> None:
    """Every node has one type, and nothing unknown is preserved."""
    for place, node in nodes(schema_of(path)):
        assert "x-kubernetes-preserve-unknown-fields" not in node, place
        assert "$ref" not in node, place
        assert node.get("type") or node.get("x-kubernetes-int-or-string"), place
        assert not ("properties" in node and "additionalProperties" in node), place


@each_file
def test_what_rules_look_at_is_bounded(path: Path) -> None:
    """Lists and maps of a specification are bounded, so that the cost of every rule is known in advance."""
    for place, node in nodes(schema_of(path)["properties"]["spec"], "spec"):
        if node.get("type") == "array":
            assert "maxItems" in node, place
            assert node.get("x-kubernetes-list-type") in ("set", "map", "atomic"), place
        if "additionalProperties" in node:
            assert "maxProperties" in node, place
        if node.get("type") == "string":
            assert "maxLength" in node or "enum" in node, place
        if node.get("type") == "integer":
            assert {"minimum", "maximum"} <= set(node) or place.endswith(("epoch", "atMicros")), place


def test_rules_name_a_field_and_a_remedy() -> None:
    """A message begins with the field, or what is wrong with it, and says what to do about it."""
    rules = [one for path in FILES for _, node in nodes(schema_of(path)) for one in node.get(RULES, ())]

    assert len(rules) >= 35
    assert len([one for one in rules if "oldSelf" in one["rule"]]) >= 6
    for one in rules:
        assert set(one) == {"rule", "message"}
        assert any(word in one["message"] for word in (":", "must be")), one["message"]


def defaulted(value: Any, node: dict[str, Any]) -> Any:
    """Fill in defaults as the API server does."""
    if not isinstance(value, dict) or "properties" not in node:
        return value
    filled = {name: defaulted(below, node["properties"][name]) for name, below in value.items()}
    for name, below in node["properties"].items():
        if name not in filled and "default" in below:
            filled[name] = defaulted(below["default"], below)
    return filled


@each_file
def test_a_status_reads_back_as_it_was_written(path: Path) -> None:
    """Nothing is filled in: an observation that was not made must not look like one."""
    assert [] == [
        place for place, node in nodes(schema_of(path)["properties"]["status"], "status") if "default" in node
    ]


SPECS: list[dict[str, Any]] = [
    {"symbols": ["BTCUSDT"]},
    {"symbols": ["BTCUSDT"], "redis": {"managed": {}}, "processor": {}, "inference": {"model": {}}},
    {"symbols": ["BTCUSDT"], "exchange": {"apiKeySecret": {"name": "x"}}, "ingestion": {"resources": {"limits": {}}}},
]


@pytest.mark.parametrize("spec", SPECS)
def test_the_schema_defaults_as_the_model_does(spec: dict[str, Any]) -> None:
    """Defaults are the same whether the API server or the model fills them in."""
    schema = schema_of(ROOT / "crds" / "predictionpipelines.yaml")["properties"]["spec"]

    by_schema = defaulted(spec, schema)

    assert pipeline(spec).spec.model_dump(mode="json", exclude_none=True) == by_schema


def test_the_words_of_conditions_are_listed() -> None:
    """The schema refuses a condition or reason that this operator does not know."""
    status = schema_of(ROOT / "crds" / "predictionpipelines.yaml")["properties"]["status"]["properties"]
    condition = status["conditions"]["items"]["properties"]

    assert list(Condition) == condition["type"]["enum"]
    assert list(Reason) == condition["reason"]["enum"]
    assert ["type"] == status["conditions"]["x-kubernetes-list-map-keys"]
