"""The chart's alerts: each fires when it should and not before, and has a runbook."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.bed.run import CannotHost
from support.alert_cases import CASES, Case, pipe
from support.prometheus_parts import CHART, RULES, promtool

DOCS = Path(__file__).parents[3] / "docs"
RUNBOOKS = DOCS / "runbooks"
FILES = sorted(RULES.glob("*.yaml"))
NOT_OF_A_PIPELINE = {"operator.yaml"}
OF_ALL_PIPELINES = {"SheetAnchorReanchorSlow"}
"""What it counts does not say whose it was; no re-anchor is started while a pipeline rests."""

NEVER_MUTED = {"SheetAnchorMaintenanceLong", *OF_ALL_PIPELINES}
"""The first is about the maintenance itself."""


def rules() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give every rule with its file."""
    for path in FILES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for one in group["rules"]:
                yield path, one


@pytest.fixture(scope="module")
def tool() -> str:
    """promtool, where it can be had; `.ci/hosts` says when not."""
    try:
        return promtool()
    except CannotHost as reason:
        pytest.skip(str(reason))


ALERTS = {rule["alert"]: (path, rule) for path, rule in rules() if "alert" in rule}


def evaluate(tool: str, folder: Path, cases: list[Case], name: str) -> subprocess.CompletedProcess[str]:
    """Let promtool play cases of one alert against the rules as they are shipped."""
    tests = [
        {
            "interval": "15s",
            "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) > 0 or vector(0)',
                    "eval_time": case.at,
                    "exp_samples": [{"labels": "{}", "value": int(case.fires)}],
                }
            ],
        }
        for case in cases
    ]
    files = [str(RULES / "recorded.yaml"), str(ALERTS[name][0])]
    groups = [
        group["name"] for one in files for group in yaml.safe_load(Path(one).read_text(encoding="utf-8"))["groups"]
    ]
    content = {
        "rule_files": files,
        "evaluation_interval": "15s",
        # promtool takes groups in any order: an alert would see what is recorded now at one time, now at the next.
        "group_eval_order": groups,
        "tests": tests,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return subprocess.run([tool, "test", "rules", path], capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_fires_above_its_threshold_and_not_below(tool: str, tmp_path: Path, name: str) -> None:
    """Each alert has a case in which it fires and one in which it does not, and behaves so."""
    cases = [case for case in CASES if case.alert == name]

    done = evaluate(tool, tmp_path, cases, name)

    assert {case.fires for case in cases} == {True, False}
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_case_speaks_of_an_alert_that_is_not_there() -> None:
    """A renamed alert takes its cases along."""
    assert {case.alert for case in CASES} <= set(ALERTS)


@pytest.mark.parametrize("name", [name for name, (path, _) in ALERTS.items() if path.name not in NOT_OF_A_PIPELINE])
def test_maintenance_mutes_a_pipelines_alerts(name: str) -> None:
    """All alerts about a pipeline look whether it rests on purpose."""
    _, rule = ALERTS[name]
    of_a_service = "sheetanchor:http_errors" in rule["expr"]  # a pipeline at rest gets no requests

    muted = "unless on (namespace, pipeline) sheetanchor:pipeline_at_rest" in rule["expr"]

    assert muted is (name not in NEVER_MUTED and not of_a_service)


@pytest.mark.parametrize("resting", ["maintenance", "suspended"])
def test_a_muted_alert_does_not_fire(tool: str, tmp_path: Path, resting: str) -> None:
    """An alert about a running pipeline does not fire for one that is in maintenance or suspended."""
    at_rest = {
        "maintenance": pipe("sheetanchor_pipeline_maintenance", "1x500"),
        "suspended": pipe("sheetanchor_pipeline_phase", "1x500", 'phase="Suspended"'),
    }[resting]
    of_pods = "SheetAnchorSbeDisconnected"
    of_the_operator = "SheetAnchorPipelineNotReady"
    of_runs = "SheetAnchorReanchorFailing"
    cases = {
        name: [Case(name, False, case.at, case.series | at_rest) for case in CASES if case.alert == name and case.fires]
        for name in (of_pods, of_the_operator, of_runs)
    }

    done = [evaluate(tool, tmp_path, cases[name], name) for name in cases]

    assert [one.returncode for one in done] == [0, 0, 0], [one.stdout for one in done]


def test_promtool_finds_nothing_wrong(tool: str) -> None:
    """Syntax and templates are what Prometheus takes."""
    done = subprocess.run([tool, "check", "rules", *FILES], capture_output=True, text=True, timeout=240, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_to_do(name: str) -> None:
    """Each has a severity, a summary, a description and the address of its runbook."""
    _, rule = ALERTS[name]
    notes = rule["annotations"]

    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert len(notes["description"]) > 40
    assert notes["runbook_url"].endswith(f"/docs/runbooks/{name}.md")


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    """None is missing, none is left over."""
    assert sorted(ALERTS) == sorted(path.stem for path in RUNBOOKS.glob("SheetAnchor*.md"))


def test_the_list_of_runbooks_says_what_the_rules_say() -> None:
    """Each alert stands in it with its severity and how long it must last, in the order of the rules."""
    text = (RUNBOOKS / "README.md").read_text(encoding="utf-8")

    listed = re.findall(r"^\| \[(\w+)\]\(\1\.md\) \| (\w+) \| ([^|]+) \|$", text, re.MULTILINE)

    assert listed == [
        (name, rule["labels"]["severity"], rule.get("for", "at once")) for name, (_, rule) in ALERTS.items()
    ]


def test_pages_name_alerts_that_exist() -> None:
    """Whatever looks like an alert of ours in a page is one."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}

    unknown = {
        (page, name)
        for page, text in texts.items()
        for name in re.findall(r"\bSheetAnchor[A-Z]\w+", text)
        if name not in ALERTS
    }

    assert set() == unknown


@pytest.mark.parametrize("name", ALERTS)
def test_a_runbook_has_its_four_parts(name: str) -> None:
    """Meaning, impact, diagnosis with commands, mitigation; in this order."""
    text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")

    assert text.splitlines()[0] == f"# {name}"
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert "```sh\n" in text.partition("## Diagnosis")[2].partition("## Mitigation")[0]


ALERTMANAGER = yaml.safe_load((CHART / "examples" / "alertmanager.yml").read_text(encoding="utf-8"))
"""The example, as it is shipped."""


def test_alerts_are_routed_by_severity() -> None:
    """Critical alerts go to the pager, Slack and the daily mail, warnings to the last two, all others nowhere."""
    found = [[one["receiver"] for one in taken(severity)] for severity in ("critical", "warning", "info")]

    assert [["daily-mail", "pagerduty", "slack"], ["daily-mail", "slack"], ["recorded"]] == found


def test_the_mail_comes_once_a_day() -> None:
    """It holds all pipelines, comes each 24 hours, and also then when nothing has changed."""
    (route,) = [one for one in taken("warning") if one["receiver"] == "daily-mail"]
    (mail,) = [one for one in ALERTMANAGER["receivers"] if one["name"] == "daily-mail"]
    (sent,) = mail["email_configs"]

    assert (["severity"], "24h") == (route["group_by"], route["group_interval"])
    assert 20 <= int(route["repeat_interval"].removesuffix("h")) < 24
    assert (True, True) == (sent["send_resolved"], sent["to"].endswith("@example.com"))


def test_the_example_holds_no_secret() -> None:
    """All credentials are names of files; every receiver that a route names exists."""
    secrets = re.compile(r"(?:password|secret|token|credentials|api_url|routing_key|service_key)(_file)?$")
    found = [match for key, _ in entries(ALERTMANAGER) if (match := secrets.search(key))]
    names = {one["name"] for one in ALERTMANAGER["receivers"]}

    assert 3 == len(found)
    assert all(match[1] for match in found)
    assert names == {value for key, value in entries(ALERTMANAGER["route"]) if key == "receiver"}


def test_what_is_held_back_exists() -> None:
    """Every pattern of the inhibitions fits alerts, as many as it has names or more."""
    for rule in ALERTMANAGER["inhibit_rules"]:
        for (matcher,) in (rule["source_matchers"], rule["target_matchers"]):
            pattern = matcher.partition('"')[2].rstrip('"')
            names = [name for name in ALERTS if re.fullmatch(pattern, name)]
            assert len(names) >= 1 + pattern.count("|"), pattern


def taken(severity: str) -> list[dict[str, Any]]:
    """Walk the routes as Alertmanager does: the first that matches, and the next ones while it says so."""
    found = []
    for one in ALERTMANAGER["route"]["routes"]:
        (matcher,) = one["matchers"]
        pattern = matcher.partition('"')[2].rstrip('"')
        if re.fullmatch(pattern, severity):
            found.append(one)
            if not one.get("continue"):
                break
    return found or [ALERTMANAGER["route"]]


def entries(node: Any) -> Iterator[tuple[str, Any]]:
    """Give every key of a document with its value."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from entries(value)
    elif isinstance(node, list):
        for one in node:
            yield from entries(one)
