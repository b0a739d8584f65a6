"""A pipeline's specification as it is read, and the words that the cluster sees."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.contract import SYMBOLS_MAX
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES
from sheetanchor.runtime.settings import IngestSettings, ProcessSettings, ReanchorSettings
from sheetanchor_operator import names
from sheetanchor_operator.api.pipeline import BadSpec, parse
from sheetanchor_operator.api.pipeline_spec import PipelineSpec
from sheetanchor_operator.children.manifests import children
from sheetanchor_operator.names import Component, Condition, EventReason, Phase, Reason, child_name, labels_of
from sheetanchor_operator.observation import Observed
from support.pipeline_parts import DEFAULTS, NOW_US, password, pipeline, rendered


def test_symbols_are_all_that_a_pipeline_needs() -> None:
    """Everything else has a default."""
    spec = pipeline().spec

    assert ("BTCUSDT",) == spec.symbols
    assert (2, 3, 15) == (spec.processor.replicas, spec.inference.replicas, spec.processor.self_reanchor_after_seconds)
    assert spec.network_policy.enabled
    assert not spec.suspend
    assert "768Mi" == pipeline().managed_redis.max_memory  # type: ignore[union-attr]  # the claim is that there is one


def test_defaults_are_those_of_the_workloads() -> None:
    """A field that a pipeline leaves out means the same as a setting that a role does not get."""
    spec = pipeline().spec
    ingest, process, reanchor = IngestSettings(), ProcessSettings(), ReanchorSettings()

    assert (ingest.ws_url, process.rest_url) == (spec.exchange.websocket_url, spec.exchange.rest_url)
    assert tuple(ingest.streams) == spec.ingestion.streams
    assert (ingest.silence_s, ingest.connection_loss_s, ingest.rotate_after_s, ingest.queue_bytes_max) == (
        spec.ingestion.silence_seconds,
        spec.ingestion.connection_loss_seconds,
        spec.ingestion.rotate_after_hours * 3600,
        spec.ingestion.queue_megabytes * 2**20,
    )
    gaps = spec.processor.gaps
    assert (process.gap_threshold, process.gap_wait_ms, process.time_gap_s, process.volume_sigmas) == (
        gaps.sequence_threshold,
        gaps.wait_milliseconds,
        gaps.time_seconds,
        gaps.volume_sigmas,
    )
    assert (process.price_jump, process.self_reanchor_after_s) == (
        gaps.price_jump,
        spec.processor.self_reanchor_after_seconds,
    )
    assert (reanchor.depth_limit, reanchor.timeout_s) == (spec.reanchor.depth_limit, spec.reanchor.timeout_seconds)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"symbols": []}, r"spec\.symbols = .*at least 1 item"),
    ({"symbols": ["X"] * (SYMBOLS_MAX + 1)}, r"spec\.symbols = .*at most 10"),
    ({"mode": "fast"}, r"spec\.mode: Extra inputs are not permitted"),
    ({"logLevel": "loud"}, r"spec\.logLevel = 'loud': Input should be 'debug'"),
    ({"processor": {"gaps": {"timeSeconds": 0}}}, r"spec\.processor\.gaps\.timeSeconds = '0': .*greater than"),
    ({"redis": {"external": {}}}, r"spec\.redis\.external\.url: Field required"),
    *(
        (
            {"exchange": {"websocketURL": url}},
            r"spec\.exchange\.websocketURL = '.*': expected ws:// or wss:// with a host",
        )
        for url in ("wss://h:99999", "wss://h:port", "wss://[::1", "wss://h:0", "https://h", "wss://:80")
    ),
    *(
        ({"exchange": {"restURL": url}}, r"spec\.exchange\.restURL = '.*': expected http:// or https:// .* 1 to 65535")
        for url in ("https://h:x", "https://[h]", "wss://h")
    ),
    *(
        ({"redis": {"external": {"url": url}}}, r"spec\.redis\.external\.url = '.*': expected (redis|sentinel)://")
        for url in ("redis://host:abc/0", "rediss://h:65536", "sentinel://h:x/s", "http://h", "sentinel://h,h")
    ),
    *(
        ({"reanchor": {"schedule": text}}, r"spec\.reanchor\.schedule = '.*': expected five fields in UTC: minute 0-59")
        for text in ("0 25 * * *", "99 * * * *", "0 0 31 2 *", "*/0 * * * *", "0 4 * *", "0 4 * * * *", "@daily")
    ),
]


@pytest.mark.parametrize(("spec", "expected"), BAD)
def test_a_mistake_is_reported_with_its_place(spec: dict[str, Any], expected: str) -> None:
    """An API server of another version may let through what this operator does not know."""
    with pytest.raises(BadSpec, match=expected):
        pipeline(spec)


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        ("exchange", {"websocketURL": "wss://[::1]:65535/x", "restURL": "http://h:1/"}),
        ("redis", {"external": {"url": "rediss://u@[::1]:6380/2"}}),
        ("redis", {"external": {"url": "sentinel://h1:26379,h2:26379/mymaster"}}),
        ("reanchor", {"schedule": "*/5 0-6,22 29 2 1-5"}),
    ],
)
def test_what_is_checked_is_left_as_it_is(block: str, fields: dict[str, Any]) -> None:
    """An address or a schedule means what was written, and its roles take it."""
    read = pipeline({block: fields}).spec.model_dump(mode="json", exclude_unset=True)[block]

    assert fields == {name: read[name] for name in fields}
    assert rendered({block: fields})


def test_what_the_metadata_says_is_read() -> None:
    """Annotations, deletion and age."""
    read = pipeline(
        annotations={"sheetanchor.dev/paused": "true", "sheetanchor.dev/reanchor": "42"},
        deletionTimestamp="2026-01-01T00:00:00Z",
    )

    assert (True, "42", True) == (read.paused, read.reanchor_request, read.deleting)
    assert NOW_US - 3_600_000_000 == read.created_us
    assert (False, "", False) == (pipeline().paused, pipeline().reanchor_request, pipeline().deleting)


def test_an_external_redis_leaves_no_managed_one() -> None:
    """`managed: {}` and nothing mean the same."""
    assert pipeline({"redis": {"external": {"url": "redis://h"}}}).managed_redis is None
    assert pipeline({"redis": {"managed": {}}}).managed_redis == pipeline().managed_redis


def test_a_read_specification_does_not_change() -> None:
    """Decisions share it."""
    with pytest.raises(ValueError, match="frozen"):
        pipeline().spec.suspend = True  # type: ignore[misc]  # that it is refused is the claim


def test_words_are_single_words() -> None:
    """Reasons and types can be matched by scripts and alerts."""
    for words in (Condition, Reason, EventReason, Phase):
        assert all(re.fullmatch(r"[A-Z][A-Za-z]+", word) for word in words)


@given(st.from_regex(r"[a-z][a-z0-9-]{0,38}[a-z0-9]", fullmatch=True), st.sampled_from(Component))
def test_labels_fit_whatever_a_pipeline_is_called(name: str, component: Component) -> None:
    """Values of labels and names of Services have at most 63 characters."""
    labels = labels_of(name, component, "z" * 31, "S" * 20)

    assert all(len(value) <= names.LABEL_LENGTH_MAX for value in labels.values())
    assert len(child_name(name, component)) <= names.LABEL_LENGTH_MAX
    assert all(re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", value) for value in labels.values())


def test_the_longest_names_fit_their_kinds() -> None:
    """A pipeline with a name of full length, on zones of full length, has children that the API server takes."""
    metadata = {"name": "p" * names.PIPELINE_NAME_LENGTH_MAX, "namespace": "market"}
    zones = ["x" * 31, "y" * 31]
    wanted = parse({"metadata": metadata, "spec": {"symbols": ["BTCUSDT"], "zones": zones}})

    made = children(wanted, Observed(NOW_US, zones=tuple(zones)), DEFAULTS, password)

    limits = {"Service": 63, "StatefulSet": 52}
    too_long = [one for one in made if len(one["metadata"]["name"]) > limits.get(one["kind"], 253)]
    labels = [value for one in made for value in one["metadata"]["labels"].values()]
    assert [] == too_long
    assert max(map(len, labels)) <= names.LABEL_LENGTH_MAX


def test_every_gap_rule_can_be_suppressed_by_name() -> None:
    """The schema knows the rules of the workloads."""
    spec = {"processor": {"gaps": {"suppress": sorted(GAP_DETECTION_RULES)}}}

    assert set(GAP_DETECTION_RULES) == set(pipeline(spec).spec.processor.gaps.suppress)


def test_a_specification_survives_being_written_and_read() -> None:
    """By alias, as the API server stores it."""
    spec = pipeline().spec

    body = {"metadata": {"name": "a", "namespace": "b"}, "spec": spec.model_dump(mode="json", exclude_none=True)}

    assert spec == parse(body).spec
    assert spec == PipelineSpec.model_validate(spec.model_dump())
