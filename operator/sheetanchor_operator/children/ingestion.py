"""The ingestors: a Deployment of one pod for each line."""

from __future__ import annotations

from typing import Final

from sheetanchor_operator.api.pipeline import Pipeline
from sheetanchor_operator.children.object_meta import Defaults, Manifest, disruption_budget, metadata_of
from sheetanchor_operator.children.pod_template import WorkloadRole, apart_on_nodes, deployment_spec, pod_template
from sheetanchor_operator.children.settings_files import NO_API_KEY, api_key_entry
from sheetanchor_operator.names import TOPOLOGY_ZONE, Component, child_name, selector_of
from sheetanchor_operator.observation import Observed
from sheetanchor_operator.zones.lines import Line, lines

OVERLAP_S: Final = 5
"""A new pod is ready with its first message. For this long both pods append to the line, so that no frame is missed in
between: readers recognise duplicates by their ids, as when one process renews its connection."""

GRACE_S: Final = 15
"""Closing the connection and sending what waits takes up to 5 s, and a blocked Redis call 2 s."""


def _affinity(pipeline: Pipeline, line: Line) -> Manifest:
    affinity = apart_on_nodes(pipeline, Component.INGEST)
    if line.bound:
        terms = [{"matchExpressions": [{"key": TOPOLOGY_ZONE, "operator": "In", "values": [line.name]}]}]
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return affinity


def _deployment(pipeline: Pipeline, observed: Observed, defaults: Defaults, line: Line) -> Manifest:
    env = () if api_key_entry(pipeline) is not None else ({"name": "BINANCE_API_KEY", "value": NO_API_KEY},)
    role = WorkloadRole(
        Component.INGEST,
        pipeline.spec.ingestion.resources,
        args=("--line", line.name),
        grace_s=GRACE_S,
        env=env,
        zone=line.name,
    )
    template = pod_template(pipeline, observed, defaults, role)
    template["spec"]["affinity"] = _affinity(pipeline, line)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata_of(
            pipeline, Component.INGEST, child_name(pipeline.name, Component.INGEST, line.name), line.name
        ),
        "spec": deployment_spec(
            0 if pipeline.scaled_to_zero else 1,
            selector_of(pipeline.name, Component.INGEST, line.name),
            template,
            OVERLAP_S,
        ),
    }


def ingestion(pipeline: Pipeline, observed: Observed, defaults: Defaults) -> list[Manifest]:
    """Render what belongs to the ingestors."""
    budget = disruption_budget(pipeline, Component.INGEST, child_name(pipeline.name, Component.INGEST))
    return [budget, *(_deployment(pipeline, observed, defaults, line) for line in lines(pipeline, observed))]
