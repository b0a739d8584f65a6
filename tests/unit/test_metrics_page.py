"""The monitoring page, the rules and the code agree on the metrics."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from support.prometheus_parts import CHART, RULES

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "monitoring.md"
MODULES = (ROOT / "workloads/sheetanchor/runtime/metrics.py", ROOT / "operator/sheetanchor_operator/metrics.py")
SUFFIXES = {"Counter": ("_total",), "Gauge": ("",), "Histogram": ("_bucket", "_sum", "_count")}
OF_PROMETHEUS = {"up", "process_start_time_seconds", "process_resident_memory_bytes"}
"""Made by Prometheus itself and by its client library."""

SCRAPED = {"namespace", "pipeline", "pod", "service", "instance", "job", "node", "zone", "container"}
"""Labels that the scrape configuration gives."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as it is declared."""

    name: str
    kind: str
    labels: frozenset[str]

    @property
    def shown(self) -> str:
        """The name as people see it."""
        return self.name + ("_total" if self.kind == "Counter" else "")

    @property
    def samples(self) -> set[str]:
        """The names of its samples."""
        return {self.name + suffix for suffix in SUFFIXES[self.kind]}


def metrics_of(module: Path) -> list[Metric]:
    """Read the declarations; both modules cannot be imported into one process, since some names are in both."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    found = []
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SUFFIXES):
            continue
        name = ast.literal_eval(node.args[0]).removesuffix("_total" if node.func.id == "Counter" else "\0")
        labels = _labels(node.args[2], constants) if len(node.args) > 2 else []
        found.append(Metric(name, node.func.id, frozenset(labels)))
    return found


def _labels(node: ast.expr, constants: dict[str, ast.expr]) -> list[str]:
    if isinstance(node, ast.Name):
        node = constants[node.id]
    assert isinstance(node, ast.List)
    found: list[str] = []
    for one in node.elts:
        found += _labels(one.value, constants) if isinstance(one, ast.Starred) else [ast.literal_eval(one)]
    return found


WORKLOADS, OPERATOR = (metrics_of(module) for module in MODULES)
SAMPLES = {sample for metric in (*WORKLOADS, *OPERATOR) for sample in metric.samples} | OF_PROMETHEUS


def rules() -> list[dict[str, str]]:
    """Give every rule."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(RULES.glob("*.yaml"))]
    return [rule for text in texts for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def names_in(expression: str) -> set[str]:
    """Give the metrics that an expression asks for."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}", "", bare)
    bare = re.sub(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", bare)
    bare = re.sub(r"\[[^\]]*\]|\boffset\s+\w+", "", bare)
    words = re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w|\s*\()", bare)
    return set(words) - {"and", "or", "unless", "bool"}


def test_the_rules_ask_for_what_exists() -> None:
    """Every metric in a rule is one that the code declares, Prometheus makes, or another rule records."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}

    unknown = {name for rule in rules() for name in names_in(rule["expr"])} - SAMPLES - recorded

    assert set() == unknown


def test_what_is_recorded_is_asked_for() -> None:
    """No recorded series is without use."""
    used = {name for rule in rules() for name in names_in(rule["expr"])}

    assert set() == {rule["record"] for rule in rules() if "record" in rule} - used


@pytest.mark.parametrize(("title", "declared"), [("Workloads", WORKLOADS), ("Operator", OPERATOR)])
def test_the_page_lists_what_is_declared(title: str, declared: list[Metric]) -> None:
    """Each metric stands in the table of its section with its type and its labels, and no other does."""
    section = PAGE.read_text(encoding="utf-8").partition(f"\n### {title}\n")[2].partition("\n## ")[0]
    section = section.partition("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \|", section, re.MULTILINE)

    listed = {(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}

    assert listed == {(metric.shown, metric.kind.lower(), metric.labels) for metric in declared}


def test_pages_name_what_exists() -> None:
    """Whatever looks like a metric of ours in a page, a runbook or an example is one."""
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    families = {metric.name for metric in (*WORKLOADS, *OPERATOR)}
    paths = [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", *(CHART / "examples").iterdir()]
    texts = {path.name: path.read_text(encoding="utf-8") for path in paths}
    plain = r"(?:sheetanchor|ingestor|redis)_[a-z0-9_]+(?:_total|_seconds|_bytes)"
    of_histograms = r"(?:sheetanchor|ingestor)_[a-z0-9_]+_(?:bucket|count|sum)"
    pattern = re.compile(rf"(?<![\w./-])(?:{plain}|{of_histograms})(?!\w)")

    known = SAMPLES | recorded | families
    unknown = {(page, name) for page, text in texts.items() for name in pattern.findall(text) if name not in known}

    assert set() == unknown
