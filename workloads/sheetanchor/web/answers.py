"""What all HTTP answers have in common: one form of errors, a request id, a count, and limits for clients.

A request that fails unexpectedly is answered, counted and logged like every other failure.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import Counter
from starlette.exceptions import HTTPException

from sheetanchor import __version__

log = logging.getLogger(__name__)

AT_ONCE_MAX: Final = 64
"""Requests that are answered at the same time; the next one gets a 429 with Retry-After."""

RATE_MAX_PER_S: Final = 200.0
"""Requests a second from one address, on average. The answers change every two seconds only."""

BURST_MAX: Final = 400.0
ADDRESSES_MAX: Final = 1024
"""Addresses whose rate is kept; the one without requests for the longest time is dropped for the next."""

RETRY_AFTER_S: Final = 1
LOGGED_PER_S: Final = 5.0
LOGGED_BURST: Final = 20.0

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOCAL_HOST: Final = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_NOSNIFF: Final = {"X-Content-Type-Options": "nosniff"}
_UNCOUNTED: Final = "/health"
"""Paths whose 503 is a state with its own metrics and logs, not a failed request."""

_MESSAGES: Final = {
    404: ("NOT_FOUND", "This path does not exist. See /health, /metrics and the documentation of this role."),
    405: ("METHOD_NOT_ALLOWED", "This path only answers GET."),
}


@dataclass(slots=True)
class Allowance:
    """A token bucket: a burst at once, and a rate per second.

    Attributes:
        per_s: Tokens added per second.
        most: Most tokens that it holds, and holds at first.
    """

    per_s: float
    most: float
    left: float = field(init=False)
    seen_s: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self.left = self.most

    def take(self, now_s: float) -> bool:
        """Take one if there is one.

        Args:
            now_s: Seconds of a monotonic clock.
        """
        self.left = min(self.most, self.left + max(0.0, now_s - self.seen_s) * self.per_s)
        self.seen_s = now_s
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


class Admission:
    """Decides which requests are answered: a number at a time in all, and a rate from one address."""

    def __init__(self, at_once: int = AT_ONCE_MAX, per_s: float = RATE_MAX_PER_S, burst: float = BURST_MAX) -> None:
        self._at_once, self._per_s, self._burst = at_once, per_s, burst
        self._answered_now = 0
        self._allowances: OrderedDict[str, Allowance] = OrderedDict()

    def refusal(self, address: str, now_s: float) -> str:
        """Say why a request is not answered now, "" if it is.

        Args:
            address: Address of the client.
            now_s: Seconds of a monotonic clock.
        """
        allowance = self._allowances.pop(address, None) or Allowance(self._per_s, self._burst)
        self._allowances[address] = allowance
        if len(self._allowances) > ADDRESSES_MAX:
            self._allowances.popitem(last=False)
        if not allowance.take(now_s):
            return f"More than {self._per_s:g} requests a second come from your address."
        if self._answered_now >= self._at_once:
            return f"{self._at_once} requests are being answered at this moment."
        return ""

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Count a request as being answered while the block runs."""
        self._answered_now += 1
        try:
            yield
        finally:
            self._answered_now -= 1


@dataclass(frozen=True, slots=True)
class Counters:
    """The metrics of answers.

    Attributes:
        requests: By status and endpoint.
        errors: By code.
    """

    requests: Counter
    errors: Counter


def timestamp() -> str:
    """Give the present time in the format of answers."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _new_id() -> str:
    return f"req_{uuid.uuid4().hex[:12]}"


def _body(code: str, message: str, request_id: str) -> dict[str, Any]:
    return {
        "error": {
            "code": code,
            "message": message,
            "details": {"retries": 0, "last_error": None},
            "request_id": request_id,
            "timestamp": timestamp(),
        }
    }


class Answers:
    """Answers requests of one application, or refuses them.

    Args:
        counters: Metrics of answers.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._admission = Admission()
        self._logged = Allowance(LOGGED_PER_S, LOGGED_BURST)
        self._unlogged = 0
        self.only_local = False
        """Only this machine can reach it, so a request with another host name was made by a foreign web page (DNS
        rebinding)."""

    def error(self, request: Request, status: int, code: str, message: str) -> JSONResponse:
        """Make an answer of the common shape, count its code, and log it with its id."""
        request_id = str(getattr(request.state, "request_id", ""))
        self._counters.errors.labels(code).inc()
        request.state.message = f"{code}: {message}"
        return JSONResponse(_body(code, message, request_id), status_code=status, headers=_NOSNIFF)

    async def answer(self, request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        """Answer one request; the middleware of the application."""
        given = request.headers.get("x-request-id", "")
        request.state.request_id = given if _REQUEST_ID.fullmatch(given) else _new_id()
        with self._admission.answering():
            response = self._refused(request) or await self._made(request, proceed)
        response.headers["X-Request-Id"] = request.state.request_id
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        route = request.scope.get("route")
        endpoint = str(getattr(route, "path", "other"))
        self._counters.requests.labels(str(response.status_code), endpoint).inc()
        if response.status_code >= 400 and not endpoint.startswith(_UNCOUNTED):
            self._log(request, response.status_code)
        return response

    def _refused(self, request: Request) -> Response | None:
        if self.only_local and not _LOCAL_HOST.fullmatch(request.headers.get("host", "localhost")):
            return self.error(
                request,
                421,
                "MISDIRECTED_REQUEST",
                "This server listens on this machine only: use localhost in the URL.",
            )
        address = request.client.host if request.client else ""
        refusal = self._admission.refusal(address, time.monotonic())
        if not refusal:
            return None
        response = self.error(request, 429, "TOO_MANY_REQUESTS", f"{refusal} Try again in {RETRY_AFTER_S} s.")
        response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return response

    async def _made(self, request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            return await proceed(request)
        except Exception as error:
            log.exception("request failed", exc_info=error, extra={"request_id": request.state.request_id})
            return self.error(request, 500, "INTERNAL_ERROR", "The request failed; search the log for this request_id.")

    def _log(self, request: Request, status: int) -> None:
        if not self._logged.take(time.monotonic()):
            self._unlogged += 1
            return
        level = logging.WARNING if status >= 500 else logging.INFO
        more = f" ({self._unlogged} more were not logged)" if self._unlogged else ""
        self._unlogged = 0
        text = "request failed: %s %s answered %d %s%s"
        message = getattr(request.state, "message", "")
        extra = {"request_id": request.state.request_id}
        log.log(level, text, request.method, request.url.path[:200], status, message, more, extra=extra)

    def bad_request(self) -> bytes:
        """Give the body of the answer to a request that is no HTTP, and count it."""
        self._counters.errors.labels("BAD_REQUEST").inc()
        self._counters.requests.labels("400", "other").inc()
        return json.dumps(_body("BAD_REQUEST", "This is not an HTTP request.", _new_id())).encode()


def new_app(title: str, counters: Counters) -> FastAPI:
    """Make an application without routes; `app.state.answers` makes its answers."""
    app = FastAPI(title=title, version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    answers = Answers(counters)
    app.state.answers = answers
    app.middleware("http")(answers.answer)

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        code, message = _MESSAGES.get(error.status_code, ("HTTP_ERROR", str(error.detail)))
        plain = error.detail in ("Not Found", "Method Not Allowed")
        return answers.error(request, error.status_code, code, message if plain else str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:])
        return answers.error(request, 422, "INVALID_REQUEST", f"{place} = {first.get('input')!r}: {first['msg']}")

    return app
