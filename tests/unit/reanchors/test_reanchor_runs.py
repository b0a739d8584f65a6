"""How a run ended is read from its own container, not from sidecars, and from any termination message."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheetanchor.contract import Receipt
from sheetanchor_operator.api.reanchor_spec import ReanchorStatus
from sheetanchor_operator.api.timestamps import text_of
from sheetanchor_operator.reanchors.run_receipt import receipt_in
from sheetanchor_operator.reanchors.runs import JobRun, read_reanchor, runs_of
from support.reanchor_world import BEGIN_US, SECOND, World

AT = text_of(BEGIN_US)
OTHERS = ("aaa", "istio-proxy", "linkerd-proxy", "vault-agent", "zzz")


def ended(code: int, message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "startedAt": AT, "finishedAt": AT}}


RUNNING = {"running": {"startedAt": AT}}


def waits(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def run_with(*containers: tuple[str, dict[str, Any]], init: tuple[tuple[str, dict[str, Any]], ...] = ()) -> JobRun:
    """Read the run of a Job whose pod has these containers."""
    world = World()
    world.add("one")
    owner = {"kind": "ReAnchor", "uid": "uid-one"}
    job = {"metadata": {"name": "one-1", "uid": "job-1", "ownerReferences": [owner], "creationTimestamp": AT}}
    status = {
        "phase": "Running",
        "initContainerStatuses": [{"name": name, "state": state} for name, state in init],
        "containerStatuses": [{"name": name, "state": state} for name, state in containers],
    }
    pod = {"metadata": {"name": "p", "labels": {"batch.kubernetes.io/job-name": "one-1"}}, "status": status}
    (run,) = runs_of(read_reanchor(world.reanchors["one"]), [job], [pod], BEGIN_US + 60 * SECOND)
    return run


STATES = {
    "runs": RUNNING,
    "ended well": ended(0),
    "ended badly": ended(1),
    "killed": ended(137),
    "cannot start": waits("ErrImagePull", "not found"),
}


@pytest.mark.parametrize("beside", STATES)
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("native", [False, True])
def test_only_its_own_container_ends_a_run(name: str, beside: str, *, native: bool) -> None:
    """Sidecars of any name, state and place, beside or among the init containers, change nothing about the end."""
    other = (name, STATES[beside])

    def read(own: dict[str, Any]) -> list[JobRun]:
        if native:
            return [run_with(("reanchor", own), init=(other,))]
        return [run_with(*order) for order in permutations([("reanchor", own), other])]

    for run in read(RUNNING):
        assert (None, "") == (run.ended, run.message)
    for code, result in ((0, "swapped"), (3, "failed"), (6, "lock_held"), (7, "superseded"), (137, "failed")):
        for run in read(ended(code)):
            assert run.ended is not None
            assert (code, result) == (run.ended.exit_code, run.ended.result)


@pytest.mark.parametrize(
    ("own", "others", "init", "reported"),
    [
        (waits("PodInitializing"), (), (("istio-init", waits("ImagePullBackOff", "no such image")),), "istio-init"),
        (waits("PodInitializing"), (), (("istio-proxy", waits("CrashLoopBackOff")),), "istio-proxy"),
        (waits("ContainerCreating"), (("aaa", waits("ErrImagePull")),), (), "aaa"),
        (waits("ErrImagePull", "nothing there"), (("aaa", RUNNING),), (), "the pod cannot start: ErrImagePull"),
        (RUNNING, (("aaa", waits("ErrImagePull")),), (), ""),
        (waits("PodInitializing"), (), (("istio-init", RUNNING),), ""),
    ],
)
def test_what_holds_a_run_up_is_named(own: Any, others: Any, init: Any, reported: str) -> None:
    """Whichever container it is; a run that has begun is not held up by others."""
    run = run_with(*others, ("reanchor", own), init=init)

    assert reported in run.message
    assert bool(reported) == bool(run.message)


def test_pods_of_another_job_of_the_same_name_are_not_its_own() -> None:
    """A Job that was deleted and made again has pods of its own; of two of its own the newer one counts."""
    world = World()
    world.add("one")
    owner = {"kind": "ReAnchor", "uid": "uid-one"}
    job = {"metadata": {"name": "one-1", "uid": "job-2", "ownerReferences": [owner], "creationTimestamp": AT}}

    def pod(uid: str, second: int, code: int) -> dict[str, Any]:
        metadata = {
            "name": f"p-{uid}-{second}",
            "labels": {"batch.kubernetes.io/job-name": "one-1"},
            "ownerReferences": [{"kind": "Job", "name": "one-1", "uid": uid}],
            "creationTimestamp": text_of(BEGIN_US + second * SECOND),
        }
        return {"metadata": metadata, "status": {"containerStatuses": [{"name": "reanchor", "state": ended(code)}]}}

    pods = [pod("job-1", 9, 0), pod("job-2", 1, 4), pod("job-2", 2, 5)]
    for order in permutations(pods):
        (run,) = runs_of(read_reanchor(world.reanchors["one"]), [job], order, BEGIN_US)
        assert run.ended is not None
        assert 5 == run.ended.exit_code


SOUND = {
    "id": "r", "symbol": "BTCUSDT", "reason": "", "trigger": "manual", "result": "swapped",
    "started_at_us": BEGIN_US, "finished_at_us": BEGIN_US + 1, "epoch_before": 1, "epoch_after": 2,
    "snapshot_id": 3, "update_id": 4, "exit_code": 0, "message": "done", "phases": {"lock": 0.1}, "checks": ["book"],
}  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=50), inner, max_size=3),
    max_leaves=6,
)
_ALMOST = st.builds(
    lambda name, value: json.dumps({**SOUND, name: value}), st.sampled_from([*sorted(SOUND), "more"]), _VALUES
)
_WORDS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=200),
    st.binary(max_size=200).map(lambda raw: raw.decode(errors="surrogateescape")),
    st.sampled_from(["[", '{"a":', '{"checks":[', "[[{"]).map(lambda part: part * 1_500),
    _ALMOST,
)


@given(_WORDS, st.integers(0, 255))
def test_whatever_a_run_says_last_can_be_written_down(words: str, code: int) -> None:
    """Nesting, wrong types, numbers beyond any range, half characters: the reconcile goes on, the status fits."""
    world = World()
    world.suspect()
    world.add("one")
    world.settle()
    world.dies("one-1", code, words)

    world.look()
    world.settle()

    status = world.of("one")
    ReanchorStatus.model_validate(status)
    json.dumps(status, ensure_ascii=False, allow_nan=False).encode()
    phases = status.get("phases", [])
    assert len(phases) == len({one["name"] for one in phases})
    for number in ("epochBefore", "epochAfter", "snapshotID", "updateID"):
        assert 0 <= status.get(number, 0) < 2**63
    assert status["message"].isprintable()
    assert 1 == status["attempts"]


def test_a_receipt_is_found_before_other_words() -> None:
    """The last line that is a receipt counts; more entries than this version knows do not make it none."""
    newer = json.dumps({**SOUND, "retries": 3, "steps": {"a": [1]}})

    found = receipt_in(f"{json.dumps({**SOUND, 'update_id': 9})}\n{newer}\nbye\n")

    assert isinstance(found, Receipt)
    assert (4, ("book",)) == (found.update_id, found.checks)
