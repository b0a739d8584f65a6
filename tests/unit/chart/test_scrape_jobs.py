"""The scrape configuration: which labels are trusted, and that it needs no label that a workload sets itself."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.bed.run import CannotHost
from support.prometheus_parts import RULES, SCRAPE_FILE, program

ROOT = Path(__file__).resolve().parents[3]
JOBS: dict[str, dict[str, Any]] = {
    one["job_name"]: one for one in yaml.safe_load(SCRAPE_FILE.read_text(encoding="utf-8"))["scrape_configs"]
}


def labels_of_workloads() -> dict[str, set[str]]:
    """Give the labels of each metric that the workloads declare."""
    tree = ast.parse((ROOT / "workloads" / "sheetanchor" / "runtime" / "metrics.py").read_text(encoding="utf-8"))
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            lists = [one for one in node.args[2:3] if isinstance(one, ast.List | ast.Tuple)]
            names = {one.value for each in lists for one in each.elts if isinstance(one, ast.Constant)}
            found[str(node.args[0].value)] = {str(one) for one in names}
    return found


def test_workloads_are_believed_nothing_about_themselves() -> None:
    """Labels of their metrics do not count, and what one pod may fill the store with has limits."""
    job = JOBS["sheetanchor"]

    assert not job.get("honor_labels", False)
    assert {"sample_limit", "label_limit", "label_name_length_limit", "label_value_length_limit"} <= set(job)


def test_the_operator_is_believed_in_its_own_namespace() -> None:
    """Labels are honoured only of pods in a namespace in which only the administrator creates pods."""
    job = JOBS["sheetanchor-operator"]
    (discovery,) = job["kubernetes_sd_configs"]

    assert job["honor_labels"] is True
    assert ["sheetanchor-system"] == discovery["namespaces"]["names"]


def test_no_label_of_a_workload_is_overridden() -> None:
    """A target's labels displace none of its metrics', but for `service`, of which no rule reads the metric's."""
    given = {one["target_label"] for one in JOBS["sheetanchor"]["relabel_configs"] if "target_label" in one}
    metrics = labels_of_workloads()

    assert len(metrics) > 40
    assert {"service"} == {label for labels in metrics.values() for label in labels & given}
    text = "".join(path.read_text(encoding="utf-8") for path in RULES.glob("*.yaml"))
    assert "exported_" not in text


@pytest.mark.parametrize("fails", ["update", "download"])
def test_a_machine_without_network_is_named_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    """Where Debian's package cannot be fetched, the alert tests are not hosted; they do not fail."""
    apt = tmp_path / "apt-get"
    apt.write_text(f'#!/bin/sh\ncase "$*" in *{fails}*) echo "Temporary failure resolving" >&2; exit 100;; esac\n')
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) if fails == "update" else f"{tmp_path}:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("os.geteuid", lambda: 0)

    with pytest.raises(CannotHost, match="cannot be had"):
        program("promtool")
