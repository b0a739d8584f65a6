"""A writer and a Redis master that are moved on request: no slot is missed, and nothing is rebuilt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import free_port_number
from sheetanchor.web.control import NONCE_PATH, signature
from support.control_requests import control, nonce_of, post
from support.pipeline import request
from support.replicated_path import SYMBOL, HotPath, hot_path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def path(tmp_path: Path) -> Iterator[HotPath]:
    """A running hot path on a replicated Redis."""
    with hot_path(tmp_path) as running:
        yield running


def state(port: int) -> dict[str, Any]:
    """What a processor says of the symbol; empty before it answers."""
    try:
        answer = request(f"http://127.0.0.1:{port}/state")
    except OSError:
        return {}
    return {"replica": answer["replica"], **answer["symbols"][SYMBOL]}


STARVED_S = 1.0


def assert_went_on(path: HotPath, port: int, term: int, epoch: int, before_s: list[float]) -> None:
    """It writes in the term that it has taken, and nothing was rebuilt.

    If it had no processor for a second, the other one was as free to go on as it was, in a later term; and a line that
    had none, or a processor, is doubted: what comes so late might be of another market.
    """
    now = state(port)
    starved_s = max(after - before for before, after in zip(before_s, path.starved_s(), strict=True))
    print(f"the role that waited longest for a processor waited {starved_s:.2f} s")
    if starved_s < STARVED_S:
        assert (True, term, epoch) == (now["active"], now["term"], now["epoch"])
    assert now["term"] >= term


def test_a_pipeline_is_moved_without_a_missed_slot(path: HotPath) -> None:
    """The standby takes the term that it is asked to take, the master is handed over, and the standby takes once more.

    Every slot meanwhile has its prediction, and nothing is rebuilt. A request without the password, one that is
    repeated, and one for a term that is not above the stored one change nothing.
    """
    members, port = path.members, free_port_number()
    path.role("process-2", "process", port, "--self-reanchor-after-s", "0")
    members.wait(lambda: state(port).get("state") == "anchored", 60, "the standby has read the state")
    before = state(port)
    assert not before["active"]
    password = members.passwords["process"]
    path.look()
    first_slot = path.last_slot
    taken = {"replica": before["replica"], "term": before["term"] + 3, "symbols": [SYMBOL]}

    assert 401 == control(port, "take", taken, "a guess")[0]
    status, answer = control(port, "take", {**taken, "term": before["term"]}, password)
    assert 409 == status
    assert f"{SYMBOL}: term {before['term']} is not above the stored" in answer["error"]["message"]
    assert not state(port)["active"]

    before_s = path.starved_s()
    raw, where = json.dumps(taken).encode(), f"{NONCE_PATH}/take"
    signed = signature(password, nonce_of(port), where, raw)
    assert (200, taken) == post(port, where, raw, signed)
    assert 401 == post(port, where, raw, signed)[0]
    assert (200, taken) == control(port, "take", taken, password)
    path.sound_for(2, "sound predictions of the new writer", first_slot)
    assert_went_on(path, port, taken["term"], before["epoch"], before_s)

    [master] = members.masters()
    sentinels_password = members.passwords["sentinel"]
    other = members.servers[(master + 1) % 3]
    names = [node.split(":")[0] for node in members.nodes]
    node, http_port = {"node": names[master]}, members.servers[master].http_port
    assert 409 == control(other.http_port, "hand-over", {"node": names[other.index]}, sentinels_password)[0]
    assert 401 == control(http_port, "hand-over", node, password)[0]
    assert (200, node) == control(http_port, "hand-over", node, sentinels_password)
    members.wait(lambda: members.whole() and members.masters() != [master], 60, "another master, with two replicas")
    path.look()
    path.sound_for(2, "sound predictions from the new master", path.last_slot)

    # While writes were paused a second may have passed: then the other processor was as free to go on as this one.
    now = state(port)
    again = {**taken, "term": now["term"] + 1}
    assert (200, again) == control(port, "take", again, password)
    path.look()
    path.sound_for(2, "sound predictions after all of it", path.last_slot)
    assert_went_on(path, port, again["term"], before["epoch"], before_s)
    slots = range(first_slot, path.last_slot + 1)
    print("degraded:", [path.records[slot]["reason"] for slot in slots if not path.is_sound(slot)])
    assert [] == [slot for slot in slots if slot not in path.records]
