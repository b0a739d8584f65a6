"""Reads what an explanation is made from: objects, Events, and the pods' own answers through the API server's proxy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import quote, urlencode

from sheetanchor.runtime.plain_text import one_line
from sheetanchor_operator.names import HTTP_PORT, PIPELINE_KIND, PIPELINE_LABEL, Component
from sheetanchor_operator.plugin.api import FORBIDDEN, Answer, Api
from sheetanchor_operator.plugin.errors import EXIT_NOT_FOUND, PluginError
from sheetanchor_operator.plugin.explain.facts import (
    HEALTH_PATH,
    PREDICTION_PATH,
    STATE_PATH,
    Facts,
    NotKnown,
    PodAnswer,
    component_of,
    facts_of,
)

EVENTS_MAX: Final = 500
PODS_MAX: Final = 200
QUESTIONS_MAX: Final = 64
AT_ONCE: Final = 8
POD_TIMEOUT_S: Final = 3.0
"""A pod answers within milliseconds, and the API server's proxy adds some: a longer wait would not give an answer."""

LIST_BYTES_MAX: Final = 16 * 1024 * 1024
ANSWER_BYTES_MAX: Final = 256 * 1024
ERROR_LENGTH_MAX: Final = 200

Object = dict[str, Any]
Question = tuple[Object, str, str]
"""A pod, its component and a path."""


def observe(api: Api, name: str, symbol: str, own_now_us: int) -> Facts:
    """Read all that can be read; what cannot be is named in the facts.

    Times are compared with the API server's clock: this machine's may differ from the cluster's.

    Args:
        api: The API server.
        name: Name of the pipeline.
        symbol: The only trading pair to explain, "" for all.
        own_now_us: The time by this machine's clock, for a server that does not give its own.

    Raises:
        PluginError: The pipeline cannot be read, or has no such symbol.
    """
    pipeline = api.pipeline(name)
    symbols = [symbol] if symbol else list(pipeline["spec"]["symbols"])
    if symbol and symbol not in pipeline["spec"]["symbols"]:
        known = ", ".join(pipeline["spec"]["symbols"])
        raise PluginError(f"pipeline {name} has no symbol {symbol}: it has {known}", EXIT_NOT_FOUND)
    not_known: list[NotKnown] = []
    runs = _reanchors(api, name, not_known)
    answers = _answers(api, name, symbols, not_known)
    fields = f"involvedObject.kind={PIPELINE_KIND},involvedObject.name={name}"
    query = {"fieldSelector": fields, "limit": str(EVENTS_MAX)}
    events, at_us = _listed(api, "events", query, "the last Events", not_known)
    now_us = at_us or own_now_us
    return facts_of(pipeline, symbol, now_us, runs=runs, events=events, answers=answers, not_known=not_known)


def _reanchors(api: Api, name: str, not_known: list[NotKnown]) -> list[Object]:
    try:
        return api.reanchors(name)
    except PluginError as error:
        not_known.append(NotKnown("what is being done, and the last receipts", str(error)))
        return []


def _listed(
    api: Api, plural: str, query: Mapping[str, str], what: str, not_known: list[NotKnown]
) -> tuple[list[Object], int]:
    """List objects of the core group, with the time of the answer; where that fails there are none, which is noted."""
    try:
        answer = api.read(f"/api/v1/namespaces/{api.namespace}/{plural}?{urlencode(query)}", LIST_BYTES_MAX)
    except PluginError as error:
        not_known.append(NotKnown(what, f"cannot list {plural}: {error}"))
        return [], 0
    body = _object(answer.body)
    if answer.status == 200 and body is not None:
        return [one for one in body.get("items") or () if isinstance(one, dict)], answer.at_us
    denied = answer.status == FORBIDDEN
    why = (
        f"you may not list {plural} in namespace {api.namespace}"
        if denied
        else f"cannot list {plural}: {_error(answer)}"
    )
    not_known.append(NotKnown(what, why))
    return [], answer.at_us


def _answers(api: Api, name: str, symbols: Sequence[str], not_known: list[NotKnown]) -> list[PodAnswer]:
    """Ask the pods. The first is asked alone: without the right to the proxy no other one need be."""
    what = "what the pods answer"
    query = {"labelSelector": f"{PIPELINE_LABEL}={name}", "limit": str(PODS_MAX)}
    questions = _questions(_listed(api, "pods", query, what, not_known)[0], symbols)
    if len(questions) > QUESTIONS_MAX:
        left = len(questions) - QUESTIONS_MAX
        not_known.append(
            NotKnown(what, f"{left} questions are left out: at most {QUESTIONS_MAX} are polled; use --symbol")
        )
    if not questions:
        return []
    first, rejected = _ask(api, questions[0])
    if rejected:
        not_known.append(NotKnown(what, f"you may not get pods/proxy in namespace {api.namespace}"))
        return []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        others = pool.map(lambda question: _ask(api, question)[0], questions[1:QUESTIONS_MAX])
        return [first, *others]


def _questions(pods: Sequence[Object], symbols: Sequence[str]) -> list[Question]:
    """Give the questions to the pods that run, those about predictions first."""
    found: list[Question] = []
    for pod in pods:
        component, status = component_of(pod), pod.get("status") or {}
        if status.get("phase") != "Running" or "deletionTimestamp" in pod["metadata"]:
            continue
        paths = {
            Component.INFER: (*(f"{PREDICTION_PATH}{quote(symbol)}" for symbol in symbols), HEALTH_PATH),
            Component.PROCESS: (STATE_PATH,),
            Component.INGEST: (HEALTH_PATH,),
        }
        found += [(pod, component, path) for path in paths.get(component, ())]  # type: ignore[call-overload]
    order = (STATE_PATH, PREDICTION_PATH, HEALTH_PATH)
    return sorted(found, key=lambda one: next(at for at, path in enumerate(order) if one[2].startswith(path)))


def _ask(api: Api, question: Question) -> tuple[PodAnswer, bool]:
    """Ask a pod; gives its answer, and whether the API server refused the way to it."""
    pod, component, path = question
    name = pod["metadata"]["name"]
    place = f"/api/v1/namespaces/{api.namespace}/pods/{name}:{_port(pod)}/proxy{path}"
    try:
        answer = api.read(place, ANSWER_BYTES_MAX, POD_TIMEOUT_S)
    except PluginError as error:
        return PodAnswer(name, component, path, error=one_line(str(error), ERROR_LENGTH_MAX)), False
    body = _object(answer.body)
    rejected = answer.status == FORBIDDEN and body is not None and body.get("kind") == "Status"
    # The detailed health of an unhealthy pod is a 503 with the reasons in its body.
    if body is None or (answer.status >= 400 and "checks" not in body):
        return PodAnswer(name, component, path, error=_error(answer)), rejected
    return PodAnswer(name, component, path, body), False


def _port(pod: Object) -> int:
    """Give the port that a container of the pod names `http`."""
    containers = (pod.get("spec") or {}).get("containers") or ()
    ports = (port for container in containers for port in container.get("ports") or ())
    return next((int(port["containerPort"]) for port in ports if port.get("name") == "http"), HTTP_PORT)


def _object(body: bytes) -> Object | None:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):  # a pod may answer anything
        return None
    return parsed if isinstance(parsed, dict) else None


def _error(answer: Answer) -> str:
    if answer.error:
        return answer.error
    message = (_object(answer.body) or {}).get("message") or (_object(answer.body) or {}).get("detail") or ""
    text = one_line(str(message), ERROR_LENGTH_MAX)
    if answer.status < 400:
        return "the answer is not a JSON object"
    return f"HTTP {answer.status}{': ' + text if text else ''}"
