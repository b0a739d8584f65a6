"""The custom resource definitions with their printer columns, rendered from the models of this package.

`make crds` runs it: `python -m sheetanchor_operator.api.schema crds`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel

from sheetanchor_operator.api.fields import RULES, rule
from sheetanchor_operator.api.pipeline_spec import PipelineSpec
from sheetanchor_operator.api.pipeline_status import PipelineStatus
from sheetanchor_operator.api.reanchor_spec import ReanchorSpec, ReanchorStatus
from sheetanchor_operator.names import (
    CATEGORY,
    GROUP,
    PIPELINE_KIND,
    PIPELINE_NAME_LENGTH_MAX,
    PIPELINES,
    REANCHOR_KIND,
    REANCHORS,
    VERSION,
)

Schema = dict[str, Any]

HEADER: Final = """\
# Rendered from the operator's models by `python -m sheetanchor_operator.api.schema crds`; a test compares the two.
"""

PIPELINE_TEXT: Final = (
    "A real-time prediction pipeline: ingestors, processors, Redis and inference for some trading pairs, kept "
    "anchored to the exchange. `spec: {symbols: [BTCUSDT]}` is a complete one."
)
REANCHOR_TEXT: Final = (
    "A request to rebuild a trading pair's hot state from the exchange, and the receipt of the result. Created "
    "by the processor when it finds a gap, and by the operator for an annotation or a schedule."
)
NAME_RULES: Final = [
    rule(
        f"self.metadata.name.size() <= {PIPELINE_NAME_LENGTH_MAX}",
        f"metadata.name must have at most {PIPELINE_NAME_LENGTH_MAX} characters, since its objects are named after it: "
        "choose a shorter one",
    ),
    rule(
        "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "metadata.name must begin with a letter and have only lowercase letters, digits and dashes, since Services "
        "are named after it: choose another",
    ),
]
STATUS_STAYS: Final = rule(
    "!has(oldSelf.status) || has(self.status)",
    "status must not be removed: its terms and epochs must not decrease; delete the object instead",
)
"""At the root: the API server skips the rules of the status itself where the whole status is removed."""

COLUMNS_OF_PIPELINES: Final = [
    ("Phase", "string", ".status.phase", "State of the whole pipeline", 0),
    ("Ready", "string", ".status.ready", "Ready pods of those that there should be", 0),
    ("Zone", "string", ".status.activeZone", "Where the active processor runs", 0),
    (
        "Anchored",
        "string",
        '.status.conditions[?(@.type=="Anchored")].status',
        "Whether the state agrees with the exchange",
        0,
    ),
    ("Prediction", "date", ".status.lastPredictionAt", "Age of the newest prediction that is not degraded", 0),
    ("Last-Reanchor", "date", ".status.lastReanchor.finishedAt", "Time since the last re-anchor ended", 0),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was created", 0),
    ("Epoch", "integer", ".status.epoch", "Which rebuild the state belongs to", 1),
    ("Term", "integer", ".status.term", "Rises with each takeover of the state", 1),
    ("Model", "string", ".status.model", "Model in use", 1),
    ("Message", "string", '.status.conditions[?(@.type=="Ready")].message', "What is the case and what to do", 1),
]
COLUMNS_OF_REANCHORS: Final = [
    ("Pipeline", "string", ".spec.pipeline", "Pipeline whose state it rebuilds", 0),
    ("Symbol", "string", ".spec.symbol", "Trading pair", 0),
    ("Trigger", "string", ".spec.trigger", "What requested it", 0),
    ("Phase", "string", ".status.phase", "How far it is", 0),
    ("Result", "string", ".status.result", "Result", 0),
    ("Seconds", "number", ".status.durationSeconds", "Duration of the run", 0),
    ("Epoch", "integer", ".status.epochAfter", "Epoch after the run", 0),
    ("Age", "date", ".metadata.creationTimestamp", "Time since it was requested", 0),
    ("Attempts", "integer", ".status.attempts", "Runs that were started", 1),
    ("Job", "string", ".status.jobName", "Job of the newest run", 1),
    ("Message", "string", ".status.message", "What happened, or why it waits", 1),
]


def structural(model: type[BaseModel]) -> Schema:
    """Render a model as a structural schema: without references, titles or nulls."""
    whole = model.model_json_schema(by_alias=True)
    return _structural(whole, whole.get("$defs", {}))


def _structural(node: Schema, blocks: dict[str, Schema]) -> Schema:
    node = dict(node)
    if "$ref" in node:
        block = blocks[node.pop("$ref").rsplit("/", 1)[1]]
        node = {**block, **node}
    if "anyOf" in node and any(one.get("type") == "null" for one in node["anyOf"]):
        kept = [one for one in node.pop("anyOf") if one.get("type") != "null"]
        return _structural({**kept[0], **node}, blocks)
    for name in ("title", "$defs"):
        node.pop(name, None)
    if node.get("default", ...) is None:
        del node["default"]
    if node.get("type") == "object" and "properties" in node:
        node.pop("additionalProperties", None)
        node["properties"] = {name: _structural(one, blocks) for name, one in node["properties"].items()}
        if "default" in node:  # complete, since the server checks a default by the rules before it fills it in
            node["default"] = _without_nulls(node["default"])
    if isinstance(node.get("items"), dict):
        node["items"] = _structural(node["items"], blocks)
    if node.get("type") == "integer":
        node["format"] = "int64"
    return node


def _without_defaults(node: Schema) -> Schema:
    """Leave out defaults: a status is what was observed, and must read back as it was written."""
    node = {name: value for name, value in node.items() if name != "default"}
    if "properties" in node:
        node["properties"] = {name: _without_defaults(one) for name, one in node["properties"].items()}
    if isinstance(node.get("items"), dict):
        node["items"] = _without_defaults(node["items"])
    return node


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return value


def definition(
    kind: str, plural: str, short: str, text: str, spec: type[BaseModel], status: type[BaseModel], columns: list[Any]
) -> Schema:
    """Render a custom resource definition without what differs between the two kinds."""
    root: Schema = {
        "description": text,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this schema."},
            "kind": {"type": "string", "description": "Kind of the object."},
            "metadata": {"type": "object"},
            "spec": structural(spec),
            "status": _without_defaults(structural(status)),
        },
    }
    # The API server drops a priority of 0: a comparison of the live object with what was sent would show a difference.
    shown = [
        {"name": name, "type": kind_of, "jsonPath": path, "description": description}
        | ({"priority": level} if level else {})
        for name, kind_of, path, description, level in columns
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "sheetanchor", "app.kubernetes.io/part-of": "sheetanchor"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                "shortNames": [short],
                "categories": [CATEGORY],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": shown,
                    "schema": {"openAPIV3Schema": root},
                }
            ],
        },
    }


def pipelines() -> Schema:
    """Render the definition of PredictionPipeline."""
    crd = definition(PIPELINE_KIND, PIPELINES, "pp", PIPELINE_TEXT, PipelineSpec, PipelineStatus, COLUMNS_OF_PIPELINES)
    version = crd["spec"]["versions"][0]
    version["subresources"]["scale"] = {
        "specReplicasPath": ".spec.inference.replicas",
        "statusReplicasPath": ".status.inference.replicas",
        "labelSelectorPath": ".status.inference.selector",
    }
    version["schema"]["openAPIV3Schema"][RULES] = [*NAME_RULES, STATUS_STAYS]
    return crd


def reanchors() -> Schema:
    """Render the definition of ReAnchor."""
    crd = definition(REANCHOR_KIND, REANCHORS, "ra", REANCHOR_TEXT, ReanchorSpec, ReanchorStatus, COLUMNS_OF_REANCHORS)
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"][RULES] = [STATUS_STAYS]
    crd["spec"]["versions"][0]["selectableFields"] = [{"jsonPath": ".spec.pipeline"}, {"jsonPath": ".spec.symbol"}]
    return crd


def files() -> dict[str, str]:
    """Render both definitions, by file name."""
    return {name: HEADER + render(crd) for name, crd in ((PIPELINES, pipelines()), (REANCHORS, reanchors()))}


class _Plain(yaml.SafeDumper):
    """Writes without anchors, and lists below their key."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def render(tree: Schema) -> str:
    """Render as readable YAML."""
    return yaml.dump(tree, Dumper=_Plain, sort_keys=False, width=118, allow_unicode=True)


def main() -> None:
    """Write both files into the folder that is named."""
    folder = Path(sys.argv[1])
    for name, text in files().items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
