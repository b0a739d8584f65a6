"""Requests to the workloads' HTTP ports: the state of symbols, predictions, the health of lines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

import aiohttp

from sheetanchor_operator.kube.api_client import POD, ApiError, Cluster
from sheetanchor_operator.names import COMPONENT_LABEL, HTTP_PORT, Component
from sheetanchor_operator.observation import PodResponse

TIMEOUT_S: Final = 1.0
"""A workload answers within milliseconds; an answer that takes a second would be outdated."""

AT_ONCE: Final = 64
BYTES_MAX: Final = 256 * 1024

Live = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PodResponses:
    """Answers of pods, in the shape of `Observed`."""

    states: dict[str, PodResponse] = field(default_factory=dict)
    predictions: dict[tuple[str, str], PodResponse] = field(default_factory=dict)
    health: dict[str, PodResponse] = field(default_factory=dict)

    def silent_pods(self) -> tuple[frozenset[str], frozenset[str]]:
        """Name the pods from which nothing came, and those from which something did."""
        found = [*self.states.items(), *self.health.items()]
        found += [(name, answer) for (name, _), answer in self.predictions.items()]
        heard = frozenset(name for name, answer in found if not answer.silent)
        return frozenset(name for name, _ in found) - heard, heard


class Workloads:
    """Polls pods over HTTP.

    Args:
        cluster: The API server.
        through_api_server: Use the API server's proxy, for an operator that runs outside of the cluster.
    """

    def __init__(self, cluster: Cluster, *, through_api_server: bool = False) -> None:
        self._cluster = cluster
        self._through = through_api_server
        self._session: aiohttp.ClientSession | None = None
        self._places = asyncio.Semaphore(AT_ONCE)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, pods: Sequence[Live], symbols: Sequence[str]) -> PodResponses:
        """Poll all pods of a pipeline at the same time; one without an answer after a second counts as unreachable."""
        answers = PodResponses()
        questions = []
        for pod in pods:
            if not _may_answer(pod):
                continue
            name = pod["metadata"]["name"]
            component = (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL)
            if component == Component.PROCESS:
                questions.append(self._note(answers.states, name, pod, "/state"))
            elif component in (Component.INGEST, Component.REDIS):
                questions.append(self._note(answers.health, name, pod, "/health/detailed"))
            elif component == Component.INFER:
                for symbol in symbols:
                    place = (name, symbol)
                    questions.append(self._note(answers.predictions, place, pod, f"/predictions/{quote(symbol)}"))
        await asyncio.gather(*questions)
        return answers

    async def _note(self, answers: dict[Any, PodResponse], place: Any, pod: Live, path: str) -> None:
        async with self._places:
            answers[place] = await (self._proxied(pod, path) if self._through else self._direct(pod, path))

    async def _direct(self, pod: Live, path: str) -> PodResponse:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        address = pod["status"]["podIP"]
        host = f"[{address}]" if ":" in address else address
        try:
            # A user's pod must not redirect the operator elsewhere, or fill its memory.
            async with self._session.get(f"http://{host}:{HTTP_PORT}{path}", allow_redirects=False) as response:
                raw = await _read(response)
                if raw is None:
                    return PodResponse(error=f"the answer has more than {BYTES_MAX} bytes")
                body = json.loads(raw)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            return PodResponse(error=str(error) or type(error).__name__, silent=True)
        except (ValueError, RecursionError) as error:
            return PodResponse(error=str(error) or type(error).__name__)
        if not isinstance(body, dict):
            return PodResponse(error="the answer is not a JSON object")
        # The detailed health of an unhealthy line is a 503 with the reasons in its body.
        if response.status >= 400 and "checks" not in body:
            return PodResponse(error=f"HTTP {response.status}")
        return PodResponse(body=body)

    async def _proxied(self, pod: Live, path: str) -> PodResponse:
        metadata = pod["metadata"]
        place = POD.path(metadata["namespace"], metadata["name"])
        try:
            return PodResponse(
                body=await self._cluster.ask("GET", f"{place}:{HTTP_PORT}/proxy{path}", timeout_s=5 * TIMEOUT_S)
            )
        except ApiError as error:
            return PodResponse(error=str(error))


async def _read(response: aiohttp.ClientResponse) -> bytes | None:
    """Read an answer, None if it is too long; its length is counted, since it may be compressed or not declared."""
    raw = bytearray()
    async for chunk in response.content.iter_any():
        raw += chunk
        if len(raw) > BYTES_MAX:
            return None
    return bytes(raw)


def _may_answer(pod: Live) -> bool:
    status = pod.get("status") or {}
    return bool(status.get("podIP")) and status.get("phase") == "Running"
