"""Which pods count as lost although their kubelets last reported them as ready."""

from __future__ import annotations

from typing import Any

import pytest

from sheetanchor_operator.controller import observe
from sheetanchor_operator.controller.observe import SILENT_FOR_S, Observer
from sheetanchor_operator.kube.workload_probe import PodResponses
from sheetanchor_operator.names import Component
from sheetanchor_operator.observation import PodResponse
from support.pipeline_parts import pod

KEY = ("market", "btc")
GONE = PodResponse(error="TimeoutError", silent=True)
UNWELL = PodResponse(error="HTTP 503")


def pods() -> tuple[dict[str, Any], ...]:
    found = [pod(Component.PROCESS, 0), pod(Component.PROCESS, 1), pod(Component.INFER, 0)]
    for one in found:
        one["metadata"]["uid"] = f"uid of {one['metadata']['name']}"
    return tuple(found)


class Asked:
    """An observer whose clock is ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_s = 100.0
        self.observer = Observer(None, None, None)  # type: ignore[arg-type]  # only its memory is of interest
        monkeypatch.setattr(observe.time, "monotonic", lambda: self.at_s)

    def after(self, seconds: float, *answers: PodResponse, lost_nodes: tuple[str, ...] = ()) -> set[str]:
        self.at_s += seconds
        processors = {f"btc-process-{number}": answer for number, answer in enumerate(answers)}
        given = PodResponses(states=processors, predictions={("btc-infer-0", "BTCUSDT"): PodResponse(body={})})
        return set(self.observer._unanswered(KEY, pods(), given, lost_nodes))


def test_one_time_out_is_no_loss_and_two_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as they are two seconds apart; after the first one the pipeline is worth asking again soon."""
    asked = Asked(monkeypatch)

    assert set() == asked.after(0, GONE, PodResponse(body={}))
    assert asked.observer.is_waiting(KEY)
    assert set() == asked.after(SILENT_FOR_S / 2, GONE, PodResponse(body={}))
    assert {"btc-process-0"} == asked.after(SILENT_FOR_S / 2, GONE, PodResponse(body={}))
    assert set() == asked.after(3, PodResponse(body={}), UNWELL)
    assert not asked.observer.is_waiting(KEY)


def test_an_error_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that answers that it is unhealthy is not lost, so its kubelet's report of it is current."""
    asked = Asked(monkeypatch)

    assert set() == asked.after(0, UNWELL, UNWELL) | asked.after(9, UNWELL, UNWELL)


def test_in_a_lost_zone_once_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """The zone has been silent for seconds, so one failed poll is enough; a pod there that answers is counted."""
    asked = Asked(monkeypatch)

    assert {"btc-process-0"} == asked.after(0, GONE, PodResponse(body={}), lost_nodes=("node-0", "node-1"))


def test_an_operator_that_reaches_nobody_takes_the_kubelets_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator is more likely cut off than all pods lost."""
    asked = Asked(monkeypatch)
    given = PodResponses(states={"btc-process-0": GONE}, predictions={("btc-infer-0", "BTCUSDT"): GONE})

    for _ in range(3):
        asked.at_s += 5
        assert frozenset() == asked.observer._unanswered(KEY, pods(), given, ())
