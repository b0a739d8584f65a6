"""Re-anchors on a cluster: a gap, the annotation, the plugin and a schedule each end in a receipt."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from typing import Any

import pytest

from support.cluster_parts import Running, reading

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(420)]

SWAPPED_WITHIN_S = 20


def newer(btc: Running, known: set[str]) -> list[dict[str, Any]]:
    """ReAnchors that were not there before."""
    return [item for item in btc.reanchors() if item["metadata"]["name"] not in known]


def names(btc: Running) -> set[str]:
    return {item["metadata"]["name"] for item in btc.reanchors()}


def finished(item: dict[str, Any]) -> bool:
    return item.get("status", {}).get("phase") in ("Succeeded", "Failed", "Skipped")


def results(items: list[dict[str, Any]]) -> list[str]:
    return [item.get("status", {}).get("result", "") for item in items]


def plugin(btc: Running, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `kubectl reanchor` as it is installed."""
    command = [sys.executable, "-m", "sheetanchor_operator.plugin", *words, "-n", btc.namespace]
    command += ["--kubeconfig", str(btc.cluster.kubeconfig)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_gap_is_rebuilt(btc: Running) -> None:
    """Lost updates → gap → ReAnchor → Job → swapped, without a missed slot; the receipt has every field."""
    known, epoch = names(btc), btc.state()["epoch"]
    with reading(btc.api, btc.namespace, btc.name):
        btc.fault(kind="drop", n=3)

        took_s = btc.wait(lambda: "swapped" in results(newer(btc, known)), SWAPPED_WITHIN_S, "a ReAnchor is swapped")
        btc.wait(lambda: btc.holds("Anchored") and btc.status["epoch"] > epoch, 15, "the status says so")

    print(f"gap to swapped receipt: {took_s:.1f} s")
    item = next(item for item in newer(btc, known) if item["status"]["result"] == "swapped")
    spec, status = item["spec"], item["status"]
    assert ("sequence_gap", "BTCUSDT", btc.name) == (spec["trigger"], spec["symbol"], spec["pipeline"])
    assert ("Succeeded", epoch + 1) == (status["phase"], status["epochAfter"])
    assert {"fetch", "build", "validate", "swap"} <= {phase["name"] for phase in status["phases"]}
    assert status["checks"]
    assert status["snapshotID"] > 0
    job = json.loads(btc.kubectl("get", "job", status["jobName"], "-o", "json"))
    assert item["metadata"]["name"] == job["metadata"]["ownerReferences"][0]["name"]
    assert "sequence_gap" == job["metadata"]["labels"]["sheetanchor.dev/trigger"]
    last = btc.status["lastReanchor"]
    assert (item["metadata"]["name"], "swapped", epoch + 1) == (last["name"], last["result"], last["epoch"])
    events = json.loads(btc.kubectl("get", "events", "-o", "json"))["items"]
    reasons = {event["reason"] for event in events if event["involvedObject"]["name"] == btc.name}
    assert {"GapFound", "ReanchorStarted", "ReanchorSucceeded"} <= reasons


def test_the_annotation_counts_once(btc: Running) -> None:
    """A new value of the annotation is one re-anchor; the same value again is none."""
    known = names(btc)
    value = f"by-hand-{uuid.uuid4().hex[:8]}"
    with reading(btc.api, btc.namespace, btc.name):
        btc.kubectl("annotate", "pp", btc.name, f"sheetanchor.dev/reanchor={value}", "--overwrite")
        took_s = btc.wait(
            lambda: ["swapped"] == results(newer(btc, known)), SWAPPED_WITHIN_S, "one ReAnchor is swapped"
        )
    print(f"annotation to swapped receipt: {took_s:.1f} s")

    btc.kubectl("annotate", "pp", btc.name, "sheetanchor.dev/reanchor-")
    btc.kubectl("annotate", "pp", btc.name, f"sheetanchor.dev/reanchor={value}", "--overwrite")
    time.sleep(8)

    assert 1 == len(newer(btc, known))
    assert value == btc.status["lastReanchorRequest"]


def test_the_plugin_waits_for_the_receipt(btc: Running) -> None:
    """`kubectl reanchor NAME --wait -o json` ends with the receipt of what it asked for."""
    epoch = btc.state()["epoch"]

    with reading(btc.api, btc.namespace, btc.name):
        started_s = time.monotonic()
        done = plugin(btc, btc.name, "--reason", "a drill", "--wait", "-o", "json")
        took_s = time.monotonic() - started_s

    print(f"plugin to swapped receipt: {took_s:.1f} s")
    assert 0 == done.returncode, done.stderr
    assert epoch + 1 == btc.state()["epoch"]
    assert "swapped" in done.stdout
    assert "a drill" in btc.reanchors()[-1]["spec"]["reason"]


def test_a_dry_run_swaps_nothing(btc: Running) -> None:
    """`--dry-run` validates against the exchange and leaves epoch and keys alone."""
    epoch = btc.state()["epoch"]

    done = plugin(btc, btc.name, "--dry-run", "--wait")

    assert 0 == done.returncode, done.stderr
    assert "dry_run" == btc.reanchors()[-1]["status"]["result"]
    assert epoch == btc.state()["epoch"]


def test_status_and_history_are_readable(btc: Running) -> None:
    """The plugin's status and history show what the objects hold."""
    status, history = plugin(btc, "status", btc.name), plugin(btc, "history", btc.name)

    assert (0, 0) == (status.returncode, history.returncode), status.stderr + history.stderr
    assert "BTCUSDT" in status.stdout
    assert "swapped" in history.stdout
    unknown = plugin(btc, "nosuch")
    assert 0 != unknown.returncode
    assert "nosuch" in unknown.stderr
    assert btc.name in unknown.stderr


def test_a_failing_reanchor_says_why_and_is_retried(btc: Running) -> None:
    """An exchange that answers 500: each run fails with that reason, it is tried again, given up, the keys stay."""
    known, state, book = names(btc), btc.state(), btc.hot_keys()

    def one() -> dict[str, Any]:
        return dict(newer(btc, known)[0].get("status", {}))

    with reading(btc.api, btc.namespace, btc.name):
        fault = btc.fault(kind="rest_status", code=500, n=10_000)
        try:
            done = plugin(btc, btc.name, "--reason", "against a broken exchange")
            assert 0 == done.returncode, done.stderr
            btc.wait(lambda: one().get("attempts", 0) >= 2, 60, "a second try")
            btc.wait(lambda: one()["phase"] == "Failed", 150, "it is given up")
            described = btc.kubectl("describe", "ra", newer(btc, known)[0]["metadata"]["name"])
            during, kept = btc.state(), btc.hot_keys()
        finally:
            btc.clear(fault)
        assert 0 == plugin(btc, btc.name, "--wait", "--force", "--reason", "the exchange is well").returncode

    failed = newer(btc, known)[0]["status"]
    assert ("failed", 3) == (failed["result"], failed["exitCode"])
    assert "500" in failed["message"]
    assert "500" in described
    assert "ReanchorFailed" in described
    assert (state["epoch"], "anchored") == (during["epoch"], during["state"])
    assert book == kept, "the same keys of the same epoch, and nothing beside them"


def test_a_schedule_is_kept(btc: Running) -> None:
    """A cron expression in the spec re-anchors by itself, but not again what was rebuilt since that minute began."""
    known = names(btc)

    def scheduled() -> list[dict[str, Any]]:
        return [item for item in newer(btc, known) if item["spec"]["trigger"] == "schedule"]

    btc.patch({"reanchor": {"schedule": "* * * * *"}})
    try:
        btc.wait(lambda: "swapped" in results(scheduled()), 100, "a scheduled ReAnchor is swapped")
    finally:
        btc.patch({"reanchor": {"schedule": ""}})

    others = [item["status"] for item in scheduled() if finished(item) and item["status"]["result"] != "swapped"]
    assert {"the last run is newer than what it is about"} >= {status["message"] for status in others}


def test_history_is_bounded(btc: Running) -> None:
    """No more finished ReAnchors are kept than the spec says, the newest ones."""
    btc.patch({"reanchor": {"history": {"successful": 2, "failed": 1}}})
    try:
        btc.wait(lambda: len([i for i in btc.reanchors() if finished(i)]) <= 3, 30, "old ReAnchors are removed")
        newest = btc.status["lastReanchor"]["name"]
        assert newest in names(btc)
    finally:
        btc.patch({"reanchor": {"history": None}})
    btc.until_sound()
