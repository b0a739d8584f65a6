"""A pipeline on a real cluster, seen as its users see it: through the API server, over HTTP, slot by slot."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from kubernetes import config
from urllib3.exceptions import HTTPError

from sheetanchor.contract import SLOT_MS, slot_of
from support.patience import limit_s

GROUP = "sheetanchor.dev"
POLL_S = 0.5
ANSWER_WITHIN_S = 3.0
HISTORY = 60
"""Slots that are asked for at once: two minutes, so that a slow answer loses none."""


HOT_KEYS = """
import asyncio, json, yaml
from pathlib import Path
from sheetanchor.contract import keys
from sheetanchor.store.redis_client import redis_client

async def main():
    told = yaml.safe_load(Path("/etc/sheetanchor/settings/process.yaml").read_text())
    redis = redis_client(told["redis_url"], password_file=Path(told["redis_password_file"]))
    of = keys("BTCUSDT")
    hot = [of.ob, of.book, of.tr_1s, of.tr_5s, of.feat, of.anchor, of.lock]
    new = [of.ob_new, of.book_new, of.tr_1s_new, of.tr_5s_new, of.feat_new]
    found = {name: (await redis.execute_command("TYPE", name)).decode() for name in hot + new}
    anchor = {name.decode(): value.decode() for name, value in (await redis.hgetall(of.anchor)).items()}
    fields = ("epoch", "state", "anchored_at", "receipt")
    print(json.dumps(found | {name: anchor.get(name, "") for name in fields}))
    await redis.aclose()

asyncio.run(main())
"""


class Api:
    """The API server, with the proxy to what runs behind it."""

    def __init__(self, kubeconfig: str) -> None:
        self._client = config.new_client_from_config(config_file=kubeconfig)
        self._host = self._client.configuration.host

    def ask(self, path: str, body: Any = None, method: str = "", within_s: float = 10.0) -> Any:
        """Send a request; give its JSON, or its text if it is none.

        Raises:
            LookupError: The answer is an error; the text has status and body.
            OSError: There was no answer.
        """
        headers: dict[str, str] = {"Content-Type": "application/json"}
        for name in self._client.configuration.auth_settings().values():
            headers[name["key"]] = name["value"]
        data = None if body is None else json.dumps(body)
        verb = method or ("GET" if body is None else "POST")
        pool = self._client.rest_client.pool_manager
        try:
            answer = pool.request(verb, self._host + path, body=data, headers=headers, timeout=within_s, retries=False)
        except HTTPError as error:
            raise OSError(f"{verb} {path}: {error}") from error
        text = answer.data.decode()
        if answer.status >= 300:
            raise LookupError(f"{verb} {path}: {answer.status}: {text[:300]}")
        with contextlib.suppress(ValueError):
            return json.loads(text)
        return text

    def pods(self, namespace: str, selector: str) -> list[dict[str, Any]]:
        """List pods by label selector."""
        found = self.ask(f"/api/v1/namespaces/{namespace}/pods?labelSelector={selector.replace(',', '%2C')}")
        return list(found["items"])

    def pod(self, namespace: str, name: str, path: str, within_s: float = 10.0) -> Any:
        """Ask a pod's port 8080."""
        return self.ask(f"/api/v1/namespaces/{namespace}/pods/{name}:8080/proxy{path}", within_s=within_s)


def ready(pod: dict[str, Any]) -> bool:
    """Say whether a pod is ready and not on its way out."""
    conditions = pod.get("status", {}).get("conditions", [])
    sound = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return sound and "deletionTimestamp" not in pod["metadata"]


class Reader:
    """A reader of predictions: it requests every replica again and again; the first answer for a slot counts.

    A slot is missed if no prediction for it could be read by its end. Later answers are counted with the time that they
    took, so that a slow request is not taken for a missed slot.
    """

    def __init__(self, api: Api, namespace: str, pipeline: str, symbol: str = "BTCUSDT") -> None:
        self.seen: dict[int, dict[str, Any]] = {}
        self._api, self._namespace, self._symbol = api, namespace, symbol
        self._selector = f"sheetanchor.dev/pipeline={pipeline},app.kubernetes.io/component=infer"
        self._stop = threading.Event()
        self._read_us = 0
        """When the last whole round of questions began."""
        self._thread = threading.Thread(target=self._read, name="reader", daemon=True)
        self.first = slot_of(time.time_ns() // 1_000) + 1
        self._thread.start()

    def _read(self) -> None:
        while not self._stop.wait(POLL_S):
            started_us = time.time_ns() // 1_000
            with contextlib.suppress(OSError, LookupError):
                for pod in self._api.pods(self._namespace, self._selector):
                    self._ask(pod["metadata"]["name"])
                self._read_us = started_us

    def _ask(self, name: str) -> None:
        # A pod that has just gone makes the proxy wait; the others must not go unread for it.
        with contextlib.suppress(OSError, LookupError):
            path = f"/predictions/{self._symbol}?limit={HISTORY}"
            answer = self._api.pod(self._namespace, name, path, within_s=ANSWER_WITHIN_S)
            for record in answer["predictions"]:
                self._note(record)

    def _note(self, record: dict[str, Any]) -> None:
        latency_ms = record["latency_ms"]
        if latency_ms is not None and latency_ms >= SLOT_MS:
            return
        known = self.seen.get(record["slot"])
        if known is None or (record["committed"] and not known["committed"]):
            self.seen[record["slot"]] = record

    def missed(self) -> list[int]:
        """Name the slots since the start that no replica answered; the last two may still be on their way."""
        last = slot_of(time.time_ns() // 1_000) - 3
        return [slot for slot in range(self.first, last + 1) if slot not in self.seen]

    def settle(self) -> None:
        """Wait until every replica has been requested after the slots up to now were over."""
        until_us = time.time_ns() // 1_000 + 4 * SLOT_MS * 1_000
        deadline_s = time.monotonic() + 60
        while self._read_us < until_us:
            assert time.monotonic() < deadline_s, "the API server has not answered for a minute"
            time.sleep(POLL_S)

    def close(self) -> None:
        """Stop reading."""
        self._stop.set()
        self._thread.join(60)


@contextlib.contextmanager
def reading(api: Api, namespace: str, pipeline: str) -> Iterator[Reader]:
    """Read predictions while the block runs; afterwards no slot may have been missed."""
    reader = Reader(api, namespace, pipeline)
    try:
        yield reader
        reader.settle()
        missed = reader.missed()
        assert [] == missed, f"missed {missed} of the slots since {reader.first}; {len(reader.seen)} were read"
    finally:
        reader.close()


class Running:
    """A pipeline in a namespace, beside the recorded market that is its exchange."""

    def __init__(self, cluster: Any, namespace: str, name: str = "btc") -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name
        self.api = Api(str(cluster.kubeconfig))

    # What is there

    @property
    def resource(self) -> dict[str, Any]:
        """The PredictionPipeline as it is now."""
        path = f"/apis/{GROUP}/v1alpha1/namespaces/{self.namespace}/predictionpipelines/{self.name}"
        found: dict[str, Any] = self.api.ask(path)
        return found

    @property
    def status(self) -> dict[str, Any]:
        """Its status; empty before the first one."""
        status: dict[str, Any] = self.resource.get("status", {})
        return status

    def condition(self, kind: str) -> dict[str, Any]:
        """One of its conditions; empty if it has none of this type."""
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    def holds(self, kind: str) -> bool:
        """Whether a condition is True and is about the present spec."""
        condition = self.condition(kind)
        generation = self.resource["metadata"]["generation"]
        return condition.get("status") == "True" and condition.get("observedGeneration") == generation

    def reanchors(self) -> list[dict[str, Any]]:
        """Its ReAnchors, oldest first."""
        found = self.api.ask(f"/apis/{GROUP}/v1alpha1/namespaces/{self.namespace}/reanchors")["items"]
        mine = [item for item in found if item["spec"]["pipeline"] == self.name]
        return sorted(mine, key=lambda item: str(item["metadata"]["creationTimestamp"]))

    def pods(self, component: str = "") -> list[dict[str, Any]]:
        """Its pods, or those of one component."""
        selector = f"sheetanchor.dev/pipeline={self.name}"
        return self.api.pods(
            self.namespace, selector + (f",app.kubernetes.io/component={component}" if component else "")
        )

    def state(self) -> dict[str, Any]:
        """What the first processor that answers says of BTCUSDT."""
        for pod in self.pods("process"):
            with contextlib.suppress(OSError, LookupError):
                said: dict[str, Any] = self.api.pod(self.namespace, pod["metadata"]["name"], "/state")
                return dict(said["symbols"]["BTCUSDT"])
        raise LookupError("no processor answers")

    def active(self, component: str = "process") -> str:
        """Name of the processor pod that writes."""
        for pod in self.pods(component):
            with contextlib.suppress(OSError, LookupError):
                if self.api.pod(self.namespace, pod["metadata"]["name"], "/state")["symbols"]["BTCUSDT"]["active"]:
                    return str(pod["metadata"]["name"])
        raise LookupError("no processor is active")

    def hot_keys(self) -> dict[str, str]:
        """Kinds of all keys that a re-anchor touches, and fields of the anchor, read in Redis by a processor's pod."""
        pod = next(pod["metadata"]["name"] for pod in self.pods("process") if ready(pod))
        found: dict[str, str] = json.loads(self.kubectl("exec", pod, "--", "python3", "-c", HOT_KEYS))
        return found

    # What is done to it

    def kubectl(self, *words: str, **options: Any) -> str:
        """Run kubectl in its namespace."""
        return str(self.cluster.kubectl("-n", self.namespace, *words, **options))

    def patch(self, spec: dict[str, Any]) -> None:
        """Change its spec."""
        self.kubectl("patch", "pp", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def fault(self, **fault: Any) -> int:
        """Script a fault at the exchange; gives its id."""
        path = f"/api/v1/namespaces/{self.namespace}/services/exchange:8090/proxy/faults"
        return int(self.api.ask(path, fault)["id"])

    def clear(self, fault: int) -> None:
        """Take a fault back."""
        path = f"/api/v1/namespaces/{self.namespace}/services/exchange:8090/proxy/faults/{fault}"
        with contextlib.suppress(LookupError):
            self.api.ask(path, method="DELETE")

    def wait(self, condition: Callable[[], bool], within_s: float, what: str) -> float:
        """Wait for a condition; gives the seconds that it took, which tests print. A failure shows the state.

        Args:
            condition: What has to come true.
            within_s: The time that it needs on a machine with nothing else to do; it gets `PATIENCE_S` at least.
            what: The condition in words.
        """
        started_s, within_s = time.monotonic(), limit_s(within_s)
        while True:
            with contextlib.suppress(OSError, LookupError):
                if condition():
                    return time.monotonic() - started_s
            if time.monotonic() - started_s > within_s:
                raise AssertionError(f"not within {within_s:g} s: {what}\n{self.describe()}")
            time.sleep(0.2)

    def describe(self) -> str:
        """What a user would check first."""
        wide = self.kubectl("get", "pp,ra,pods", "-o", "wide", check=False)
        return wide + "\n" + json.dumps(self.resource.get("status", {}), indent=1)

    def sound(self) -> bool:
        """Whether it is ready, anchored, with all its pods, and its last prediction not degraded."""
        if not (self.holds("Ready") and self.holds("Anchored")):
            return False
        pods = self.pods()
        return bool(pods) and all(
            ready(pod) for pod in pods if pod["metadata"]["labels"].get("app.kubernetes.io/component") != "reanchor"
        )

    def until_sound(self, within_s: float = 90) -> float:
        """Wait until it is sound."""
        return self.wait(self.sound, within_s, f"{self.name} is sound")
