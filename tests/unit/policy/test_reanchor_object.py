"""How requests are named and rendered, and what a processor needs to know to make them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.errors import BadSettings
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES, Finding, gap_of
from sheetanchor.policy.reanchor_object import (
    NAME_LENGTH_MAX,
    Owner,
    ReAnchorRequest,
    bounded_name,
    object_name,
    reanchor_object,
)
from sheetanchor.process.reanchor_requests import api_url, owner_of, request_of_gap
from sheetanchor.runtime.command_line import load
from sheetanchor.runtime.settings import ProcessSettings
from sheetanchor_operator.api.reanchor_spec import ReanchorSpec
from sheetanchor_operator.reanchors.job import job_name

OWNER = Owner("btc", "trading", "uid-1")


def settings_of(**fields: str) -> ProcessSettings:
    return load(ProcessSettings, {"pipeline": "btc", "reanchor_requests": "kubernetes", **fields}, {})


@given(
    st.from_regex(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True), st.from_regex(r"[A-Z0-9]{2,20}", fullmatch=True)
)
def test_names_fit_where_they_are_used(pipeline: str, symbol: str) -> None:
    """The longest pipeline and symbol give names that a ReAnchor, its Job and a label may have."""
    name = object_name(pipeline, symbol, "s30000000")

    assert len(name) <= NAME_LENGTH_MAX
    assert len(job_name(name, 10)) <= 63
    assert name == object_name(pipeline, symbol, "s30000000")
    assert name != object_name(pipeline, symbol, "s30000001")


def test_shortened_names_differ() -> None:
    """What is cut off still counts."""
    long = "x" * 80

    assert bounded_name(long + "a") != bounded_name(long + "b")
    assert "short" == bounded_name("short")


@pytest.mark.parametrize("rule", GAP_DETECTION_RULES)
def test_every_gap_is_a_valid_request(rule: str) -> None:
    """Whatever rule found it and whatever its reason is, the schema takes the request."""
    gap = gap_of(Finding(rule, "two\nlines " + "x" * 2_000), "BTCUSDT", "process", 1_800_000_000_000_000, 3)

    body = reanchor_object(OWNER, request_of_gap(gap, "processor-1"))

    spec = ReanchorSpec.model_validate(body["spec"])
    assert (rule, gap.action, 3) == (spec.trigger, spec.action, spec.epoch)
    assert spec.reason.startswith("two lines xxx")


def test_owner_is_left_out_where_it_is_not_known() -> None:
    """Without a uid there is nothing to refer to; the operator adds the owner then."""
    ask = ReAnchorRequest("BTCUSDT", "x", "immediate_reanchor", "r", "manual", "me", 1)

    assert "ownerReferences" not in reanchor_object(Owner("btc", "trading"), ask)["metadata"]
    assert "uid-1" == reanchor_object(OWNER, ask)["metadata"]["ownerReferences"][0]["uid"]


def test_pipeline_has_to_be_named() -> None:
    """A request without a pipeline's name would belong to no pipeline."""
    with pytest.raises(BadSettings, match="pipeline = '': expected the PredictionPipeline's name"):
        load(ProcessSettings, {"reanchor_requests": "kubernetes"}, {})


@pytest.mark.parametrize(
    ("fields", "environ", "expected"),
    [
        ({}, {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "6443"}, "https://10.96.0.1:6443"),
        ({}, {"KUBERNETES_SERVICE_HOST": "fd00::1"}, "https://[fd00::1]:443"),
        ({"kubernetes_url": "https://api:1"}, {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, "https://api:1"),
    ],
)
def test_api_is_found(fields: dict[str, str], environ: dict[str, str], expected: str) -> None:
    """A setting wins over what the kubelet says."""
    assert expected == api_url(settings_of(**fields), environ)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """Outside a pod both have to be set, and the message says so."""
    settings = settings_of(service_account_dir=str(tmp_path))

    with pytest.raises(BadSettings, match="kubernetes_url = '': expected the URL of the Kubernetes API"):
        api_url(settings, {})
    with pytest.raises(BadSettings, match="pipeline_namespace = '': expected it here or in"):
        owner_of(settings)
    (tmp_path / "namespace").write_text("trading\n")
    assert Owner("btc", "trading") == owner_of(settings)
