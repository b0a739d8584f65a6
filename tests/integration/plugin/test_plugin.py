"""`kubectl reanchor` against a real API server; what an operator would do to the objects is done by hand."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import free_port_number
from sheetanchor.policy.reanchor_object import Owner, reanchor_object
from sheetanchor_operator.names import API_VERSION, PIPELINE_KIND, REANCHOR_ANNOTATION, REANCHOR_KIND
from sheetanchor_operator.reanchors.requests import read_request, requests_of_annotation
from support.apiserver import ApiServer
from support.operator_parts import create, make_pipeline, namespace, reanchors, set_status, token_of
from support.patience import PATIENCE_S

pytestmark = pytest.mark.slow

AT = "2026-11-21T08:00:00Z"
SWAPPED = {
    "phase": "Succeeded",
    "result": "swapped",
    "attempts": 1,
    "startedAt": AT,
    "finishedAt": "2026-11-21T08:00:02Z",
    "durationSeconds": 2.0,
    "epochBefore": 3,
    "epochAfter": 4,
    "message": "epoch 4 at update 9",
}


@dataclass
class Place:
    """A namespace with a pipeline `btc`."""

    server: ApiServer
    name: str

    def run(self, *words: str, kubeconfig: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the plugin as its user does."""
        command = [sys.executable, "-m", "sheetanchor_operator.plugin", *words, "-n", self.name]
        env = {"KUBECONFIG": str(kubeconfig or self.server.kubeconfig), "PATH": "/usr/bin:/bin", **options}
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)

    def asked(self) -> dict[str, dict[str, Any]]:
        """The ReAnchors there are, by name."""
        return reanchors(self.server, self.name)

    def wish(self) -> str:
        """The value of the annotation."""
        path = f"/apis/{API_VERSION}/namespaces/{self.name}/predictionpipelines/btc"
        notes = self.server.ask(path)["metadata"].get("annotations", {})
        return str(notes.get(REANCHOR_ANNOTATION, ""))

    def create(self, value: str, at_us: int = 1_790_000_000_000_000) -> list[str]:
        """Create the ReAnchors that a value of the annotation asks for."""
        made = [
            reanchor_object(Owner("btc", self.name), ask)
            for ask in requests_of_annotation(read_request(value, ("BTCUSDT", "ETHUSDT")), at_us)
        ]
        for body in made:
            create(self.server, self.name, body)
        return [body["metadata"]["name"] for body in made]

    @contextmanager
    def answered(self, *statuses: dict[str, Any], count: int = 1) -> Iterator[None]:
        """Act on the next requests as an operator does: so many ReAnchors go through these statuses."""

        def work() -> None:
            deadline = time.monotonic() + PATIENCE_S
            while len(names := self.asked()) < count and time.monotonic() < deadline:
                time.sleep(0.1)
            for status in statuses:
                for name in names:
                    set_status(self.server, self.name, REANCHOR_KIND, name, status)
                time.sleep(3)  # several looks of the plugin

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            thread.join()


@pytest.fixture
def place(server: ApiServer) -> Iterator[Place]:
    with namespace(server) as name:
        make_pipeline(server, name, symbols=["BTCUSDT", "ETHUSDT"])
        yield Place(server, name)


def test_it_asks(place: Place) -> None:
    """A ReAnchor holds symbol, reason and who asked, and is the pipeline's; the pipeline itself is not touched."""
    done = place.run("btc", "--symbol", "BTCUSDT", "--reason", "it looks\nwrong\x1b[2J", "--dry-run", "--force")

    ((name, made),) = place.asked().items()
    assert (0, "", f"reanchor/{name} requested\n") == (done.returncode, done.stderr, done.stdout)
    expected = {
        "pipeline": "btc",
        "symbol": "BTCUSDT",
        "reason": "it looks wrong [2J",
        "requestedBy": "admin",
        "trigger": "manual",
        "action": "immediate_reanchor",
        "dryRun": True,
        "force": True,
    }
    assert expected == {field: made["spec"][field] for field in expected}
    assert ["PredictionPipeline"] == [owner["kind"] for owner in made["metadata"]["ownerReferences"]]
    assert "" == place.wish()


def test_it_asks_for_all_symbols(place: Place) -> None:
    """Without a symbol every one of the pipeline's gets its re-anchor; JSON names request and objects."""
    done = place.run("pp/btc", "-o", "json")

    told, made = json.loads(done.stdout), place.asked()
    assert ("btc", place.name) == (told["pipeline"], told["namespace"])
    assert sorted(made) == sorted(told["reanchors"])
    assert {"BTCUSDT", "ETHUSDT"} == {one["spec"]["symbol"] for one in made.values()}
    assert {told["request"]} == {one["spec"]["requestID"] for one in made.values()}


def test_many_may_ask_at_the_same_moment(place: Place) -> None:
    """Each call makes objects of its own: none is lost, and none is another's."""
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(place.run, "btc", "--symbol", "BTCUSDT") for _ in range(6)]

    printed = [call.result().stdout.removeprefix("reanchor/").removesuffix(" requested\n") for call in calls]
    assert [0] * 6 == [call.result().returncode for call in calls]
    assert sorted(place.asked()) == sorted(printed)
    assert 6 == len(set(printed))


def test_the_same_id_twice_is_one_request(place: Place) -> None:
    """A user who is not sure whether the request arrived repeats it; another object of that name is an error."""
    first = place.run("btc", "--symbol=BTCUSDT", "--request-id=deploy-7")
    second = place.run("btc", "--symbol=BTCUSDT", "--request-id=deploy-7")
    (name,) = place.asked()
    place.server.kubectl("delete", f"reanchor/{name}", "-n", place.name)
    other = reanchor_object(Owner("btc", place.name), requests_of_annotation(read_request("x", ("BTCUSDT",)), 0)[0])
    other["metadata"]["name"] = name
    create(place.server, place.name, other)
    third = place.run("btc", "--symbol=BTCUSDT", "--request-id=deploy-7")

    assert (0, 0, first.stdout) == (first.returncode, second.returncode, second.stdout)
    assert f"request deploy-7 was made before, as {name}" in second.stderr
    assert (1, f"another ReAnchor named {name}" in third.stderr) == (third.returncode, True)


def test_one_that_is_deleted_meanwhile_is_not_waited_for(place: Place) -> None:
    """It will not come back."""

    def delete() -> None:
        while not (names := list(place.asked())):
            time.sleep(0.1)
        place.server.kubectl("delete", f"reanchor/{names[0]}", "-n", place.name)

    with ThreadPoolExecutor(1) as pool:
        deleted = pool.submit(delete)
        done = place.run("btc", "--symbol=BTCUSDT", "--wait", "--timeout", "30")
        deleted.result()

    assert (1, True) == (done.returncode, "was deleted before it ended" in done.stderr)


def test_it_waits_for_the_receipt(place: Place) -> None:
    """With --wait the result is printed and is the exit code; what it waits for is printed meanwhile."""
    waiting = {"phase": "Pending", "message": "waits: cooling down after the last rebuild"}
    with place.answered(waiting, {**waiting, "phase": "Running", "message": "run 1"}, SWAPPED):
        done = place.run("btc", "--symbol", "BTCUSDT", "--wait")

    assert 0 == done.returncode
    assert "Succeeded  swapped  manual" in done.stdout
    assert "2.0s  3→4    epoch 4 at update 9" in done.stdout
    assert "Pending: waits: cooling down" in done.stderr


@pytest.mark.parametrize(
    ("phase", "message", "code"),
    [("Failed", "the exchange answered 500", 1), ("Skipped", "the pipeline is suspended", 6)],
)
def test_exit_code_says_what_became_of_it(place: Place, phase: str, message: str, code: int) -> None:
    """A failed run and a request that changed nothing have different codes."""
    with place.answered({"phase": phase, "result": phase.lower(), "message": message}, count=2):
        done = place.run("btc", "--wait", "-o", "yaml")

    items = yaml.safe_load(done.stdout)["items"]
    assert code == done.returncode
    assert [message, message] == [one["status"]["message"] for one in items]


def test_it_gives_up_waiting(place: Place) -> None:
    """After --timeout it says what it was waiting for; the request stays."""
    words = ("btc", "--wait", "--timeout", "1", "--request-id", "mine")
    nobody = place.run(*words)
    throttled = {"phase": "Pending", "message": "waits: the budget of 60 rebuilds an hour is used up"}
    for name in place.asked():
        set_status(place.server, place.name, REANCHOR_KIND, name, throttled)
    again = place.run(*words)

    assert (5, 5) == (nobody.returncode, again.returncode)
    assert "not seen by the operator yet" in nobody.stderr
    assert "the budget of 60 rebuilds an hour is used up" in again.stderr


def test_throttling_is_told_at_once(place: Place) -> None:
    """Without --wait, the user still sees that the request will wait."""
    throttled = {
        "type": "ReanchorThrottled",
        "status": "True",
        "reason": "Cooldown",
        "message": "cooling down until 08:00:10",
        "lastTransitionTime": AT,
    }
    set_status(place.server, place.name, PIPELINE_KIND, "btc", {"conditions": [throttled]})

    done = place.run("btc")

    assert 0 == done.returncode
    assert "re-anchors are throttled now: Cooldown: cooling down until 08:00:10" in done.stderr


def test_unknown_pipeline_names_those_there_are(place: Place) -> None:
    """A typing mistake shows the right name."""
    done = place.run("btd")

    assert 3 == done.returncode
    assert f"no pipeline 'btd' in namespace {place.name}: there are btc" in done.stderr


def test_unknown_symbol_names_those_there_are(place: Place) -> None:
    """A symbol that the pipeline does not have asks for nothing."""
    done = place.run("btc", "--symbol", "DOGEUSDT")

    assert (3, {}) == (done.returncode, place.asked())
    assert "has no symbol DOGEUSDT: it has BTCUSDT, ETHUSDT" in done.stderr


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        ({"metadata": {"annotations": {"sheetanchor.dev/paused": "true"}}}, "is paused: kubectl annotate pp btc"),
        ({"spec": {"suspend": True}}, "is suspended: set spec.suspend to false"),
        ({"spec": {"maintenance": {"enabled": True, "reason": "new disks"}}}, "is in maintenance: new disks"),
        (
            {"spec": {"reanchor": {"enabled": False}, "processor": {"selfReanchorAfterSeconds": 0}}},
            "is disabled (spec.reanchor.enabled); --force overrides",
        ),
    ],
)
def test_pipeline_at_rest_is_left_alone(place: Place, patch: dict[str, Any], told: str) -> None:
    """What nothing would come of is refused with the way out."""
    place.server.kubectl("patch", "pp/btc", "-n", place.name, "--type=merge", "-p", json.dumps(patch))

    done = place.run("btc")

    assert (6, {}) == (done.returncode, place.asked())
    assert told in done.stderr


ROLE = [
    {"apiGroups": ["sheetanchor.dev"], "resources": ["predictionpipelines"], "verbs": ["get", "list"]},
    {"apiGroups": ["sheetanchor.dev"], "resources": ["reanchors"], "verbs": ["get", "list", "create"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
]


def account(place: Place, rules: list[dict[str, Any]], folder: Path) -> Path:
    """Make an account with these rights and nothing else; gives its kubeconfig."""
    kind, where = "rbac.authorization.k8s.io/v1", place.name
    subject = {"kind": "ServiceAccount", "name": "ann", "namespace": where}
    place.server.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "ann"}},
        {"apiVersion": kind, "kind": "Role", "metadata": {"name": "ann"}, "rules": rules},
        {
            "apiVersion": kind,
            "kind": "RoleBinding",
            "metadata": {"name": "ann"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "ann"},
            "subjects": [subject],
        },
        namespace=where,
    )
    path = folder / "ann.kubeconfig"
    path.write_text(place.server.kubeconfig_text(token_of(place.server, where, "ann")))
    return path


def test_documented_rights_are_enough(place: Place, tmp_path: Path) -> None:
    """With the rights of the table in the documentation, and no others, every command works."""
    kubeconfig = account(place, ROLE, tmp_path)
    with place.answered(SWAPPED):
        asked = place.run("btc", "--symbol=BTCUSDT", "--wait", kubeconfig=kubeconfig)

    done = [
        asked,
        place.run("status", "btc", kubeconfig=kubeconfig),
        place.run("history", "btc", kubeconfig=kubeconfig),
    ]

    assert [(0, ""), (0, ""), (0, "")] == [(one.returncode, "" if one is asked else one.stderr) for one in done]
    assert f"system:serviceaccount:{place.name}:ann" == next(iter(place.asked().values()))["spec"]["requestedBy"]


def test_missing_right_is_named(place: Place, tmp_path: Path) -> None:
    """A user who may only read gets the missing verb, the resource and the role that grants it."""
    kubeconfig = account(place, [{**ROLE[0], "verbs": ["get"]}], tmp_path)

    asked = place.run("btc", kubeconfig=kubeconfig)
    unknown = place.run("btd", kubeconfig=kubeconfig)

    assert (4, 3) == (asked.returncode, unknown.returncode)
    assert f"you may not create reanchors.sheetanchor.dev in namespace {place.name}" in asked.stderr
    bind = "kubectl create rolebinding sheetanchor-reanchor --clusterrole=sheetanchor-reanchor"
    assert f"{bind} --serviceaccount={place.name}:ann -n {place.name}" in asked.stderr
    assert "it has none that can be listed" in unknown.stderr


def test_unreachable_server_is_named(place: Place, tmp_path: Path) -> None:
    """A server that does not answer, a kubeconfig that is none, a context that is unknown: one line each."""
    nowhere = f"https://127.0.0.1:{free_port_number()}"
    config = yaml.safe_load(place.server.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = nowhere
    away, broken = tmp_path / "away", tmp_path / "broken"
    away.write_text(yaml.safe_dump(config))
    broken.write_text("not: [a kubeconfig")

    done = [
        place.run("btc", kubeconfig=away),
        place.run("btc", kubeconfig=broken),
        place.run("btc", "--context", "mars"),
        place.run("btc", "--kubeconfig", str(tmp_path / "missing")),
    ]

    assert [7, 7, 7, 7] == [one.returncode for one in done]
    assert nowhere in done[0].stderr
    assert "mars" in done[2].stderr
    assert [1, 1, 1, 1] == [len(one.stderr.strip().splitlines()) for one in done]


def test_context_gives_the_namespace(place: Place, tmp_path: Path) -> None:
    """Without -n the namespace of the context counts; --kubeconfig wins over KUBECONFIG."""
    config = yaml.safe_load(place.server.kubeconfig.read_text())
    config["contexts"].append(
        {"name": "mine", "context": {**config["contexts"][0]["context"], "namespace": place.name}}
    )
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "sheetanchor_operator.plugin", "history", "btc", "--context=mine"]
    env = {"PATH": "/usr/bin:/bin", "KUBECONFIG": "/nonexistent"}

    done = subprocess.run([*command, f"--kubeconfig={path}"], capture_output=True, text=True, check=False, env=env)

    assert (0, "No re-anchors yet.\n", "") == (done.returncode, done.stdout, done.stderr)


def test_status_tells_how_a_pipeline_stands(place: Place) -> None:
    """Phase, anchor, epochs per symbol, the prediction's age, what is wrong, and the last re-anchors."""
    suspect = {"type": "Anchored", "status": "False", "reason": "Suspect", "lastTransitionTime": AT}
    idle = {"type": "ReanchorInProgress", "status": "False", "reason": "Idle", "lastTransitionTime": AT}
    status = {
        "phase": "Degraded",
        "ready": "8/9",
        "epoch": 4,
        "term": 7,
        "model": "mlp@1a2b",
        "lastPredictionAt": AT,
        "conditions": [{**suspect, "message": "BTCUSDT: depth 5 → 9"}, {**idle, "message": "no run"}],
        "symbols": [
            {"name": "BTCUSDT", "state": "suspect", "epoch": 4, "term": 7, "reason": "depth 5 → 9", "suspectSince": AT}
        ],
    }
    set_status(place.server, place.name, PIPELINE_KIND, "btc", status)
    for name in place.create("by hand"):
        set_status(place.server, place.name, REANCHOR_KIND, name, SWAPPED)

    done = place.run("status", "btc")
    all_of_them = place.run("status")

    assert 0 == done.returncode, done.stderr
    for told in ("Degraded, 8/9 pods ready", "no: BTCUSDT: depth 5 → 9", "4 (term 7)", "model mlp@1a2b"):
        assert told in done.stdout
    assert "Anchored=False Suspect" in done.stdout
    assert "ReanchorInProgress" not in done.stdout
    assert 2 == done.stdout.count("epoch 4 at update 9")
    assert ["NAME", "btc"] == [line.split()[0] for line in all_of_them.stdout.splitlines()]


def test_history_lists_newest_first(place: Place) -> None:
    """Every re-anchor of the pipeline, or of one symbol; others' are not shown."""
    names = place.create("first")
    other = reanchor_object(Owner("other", place.name), requests_of_annotation(read_request("x", ("BTCUSDT",)), 1)[0])
    other["spec"]["atMicros"] = 0
    create(place.server, place.name, other)

    whole = place.run("history", "btc")
    one = place.run("history", "btc", "--symbol", "ETHUSDT", "-o", "json")

    assert {"NAME", *names} == {line.split()[0] for line in whole.stdout.splitlines()}
    assert ["ETHUSDT"] == [each["spec"]["symbol"] for each in json.loads(one.stdout)["items"]]
    assert 3 == len(reanchors(place.server, place.name))


def test_pipeline_named_like_a_command(place: Place) -> None:
    """A pipeline `status` is reached as pp/status."""
    make_pipeline(place.server, place.name, "status")

    done = place.run("pp/status")

    assert (0, "reanchor/status-btcusdt-") == (done.returncode, done.stdout[:24])


def test_wrong_usage_is_told(place: Place) -> None:
    """No name, two names, a reason beyond the limit, no time to wait."""
    done = [
        place.run(),
        place.run("btc", "eth"),
        place.run("btc", "--reason", "x" * 600),
        place.run("btc", "--wait", "--timeout", "0"),
    ]

    assert [2, 2, 2, 2] == [one.returncode for one in done]
    assert "expected the name of one pipeline, found none" in done[0].stderr
    assert "found 2 names" in done[1].stderr
    assert "--reason has 600 characters: expected at most 500" in done[2].stderr
    assert {} == place.asked()
