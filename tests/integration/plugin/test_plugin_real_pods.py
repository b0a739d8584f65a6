"""What `kubectl reanchor explain` makes of the answers of real roles: their shapes are those that it reads."""

from __future__ import annotations

import json
import time
import urllib.error
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from sheetanchor_operator.names import Component
from sheetanchor_operator.plugin.explain.explanation import Explanation, explain
from sheetanchor_operator.plugin.explain.facts import PodAnswer, facts_of
from sheetanchor_operator.plugin.explain.meanings import DOUBTS
from sheetanchor_operator.plugin.explain.text import text_of_explanation
from support.explain_parts import OLD, body, why
from support.pipeline import Pipeline, pipeline, request

pytestmark = pytest.mark.slow

PATHS = {
    Component.PROCESS: ("/state",),
    Component.INFER: ("/predictions/BTCUSDT", "/health/detailed"),
    Component.INGEST: ("/health/detailed",),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Pipeline]:
    """A pipeline that is anchored and predicting."""
    with pipeline() as started:
        yield started


def roles(running: Pipeline) -> Iterator[tuple[Component, str, int]]:
    """Give the component, a name and the HTTP port of each role that runs."""
    for child in psutil.Process(running.local.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a re-anchor that has just ended
            command = child.cmdline()
            for component in PATHS:
                if str(component) in command and "--http-port" in command:
                    yield component, f"{component}-{child.pid}", int(command[command.index("--http-port") + 1])


def explained(running: Pipeline) -> Explanation:
    """Ask every role, as the plugin asks pods, and explain; the status is of before and shows nothing by itself."""
    answers = [
        answered(PodAnswer(name, str(component), path), port)
        for component, name, port in roles(running)
        for path in PATHS[component]
    ]
    found = body(phase="Running", lastPredictionAt=OLD, operator=None)
    return explain(facts_of(found, "", time.time_ns() // 1_000, answers=answers))


def answered(asked: PodAnswer, port: int) -> PodAnswer:
    """Ask a role; one that does not listen yet has no answer, as a pod has none."""
    try:
        return replace(asked, body=request(f"http://127.0.0.1:{port}{asked.path}"))
    except urllib.error.HTTPError as error:  # an unhealthy role answers 503, with the reasons
        body = json.loads(error.read())
        return replace(asked, body=body) if "checks" in body else replace(asked, error=str(error))
    except OSError as error:
        return replace(asked, error=str(error))


def test_real_answers_are_understood(running: Pipeline) -> None:
    """Sound while all is well; without an exchange degraded, by reasons that all have a meaning, with the evidence."""
    running.wait(lambda: explained(running).verdict == "sound", 30, "a sound pipeline is explained as sound")
    components = {component for component, _, _ in roles(running)}

    running.exchange.terminate()
    looks: list[Explanation] = []

    def is_stale() -> bool:
        looks.append(explained(running))
        return "stale" in [reason for _, reason in why(looks[-1])]

    running.wait(is_stale, 40, "the feed is stale")
    one = looks[-1]  # not another one: what it says changes while lines try to connect
    stale = next(cause for cause in one.causes if cause.reason == "stale")
    assert set(PATHS) == components
    assert ("degraded", False) == (one.verdict, one.predictions_sound)
    assert any("its connection to the exchange: " in line for line in stale.evidence), one.causes
    assert {reason for _, reason in why(one)} <= {*DOUBTS, "Suspect", "sbe_websocket"}
    assert "update it" not in text_of_explanation(one)
