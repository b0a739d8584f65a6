"""The processes of a local pipeline, and their command lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from sheetanchor.errors import BadSettings
from sheetanchor.local.processes import Spec
from sheetanchor.policy import reanchor_scheduler
from sheetanchor.runtime.command_line import VARIABLE_PREFIX, read_secret, variable_of
from sheetanchor.runtime.settings import IngestSettings, LocalSettings, WithRest

LINES: Final = ("a", "b")
REPLICAS: Final = ("1", "2")
EXCHANGE: Final = "exchange"

API_KEY_VARIABLE: Final = "BINANCE_API_KEY"
LOCAL_API_KEY: Final = "local"
"""The local exchange requires a key like the real one, but accepts any."""

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class MarketSource:
    """The source of market data.

    Attributes:
        kind: local (a recorded market served by our own exchange), external or live.
        api_key: Key for the stream, "" if it comes from a file.
    """

    kind: str
    ws_url: str
    rest_url: str
    api_key: str
    exchange_port: int = 0


def choose_market(settings: LocalSettings, pick_port: Callable[[], int]) -> MarketSource:
    """Choose the source of market data.

    Args:
        settings: Settings of the run.
        pick_port: Gives a free port; called only if a local exchange is needed.

    Raises:
        BadSettings: If the exchange needs a key and there is none.
    """
    key = settings.api_key.get_secret_value() if settings.api_key else ""
    if settings.api_key_file is not None:
        read_secret(settings.api_key_file, "API key")  # fail now rather than in a child process
    if not settings.live and not settings.ws_url:
        port = pick_port()
        return MarketSource("local", f"ws://127.0.0.1:{port}", f"http://127.0.0.1:{port}", key or LOCAL_API_KEY, port)
    fields = IngestSettings.model_fields["ws_url"], WithRest.model_fields["rest_url"]
    ws_url, rest_url = (
        (str(field.default) for field in fields) if settings.live else (settings.ws_url, settings.rest_url)
    )
    if not key and settings.api_key_file is None:
        if urlsplit(ws_url).hostname not in LOOPBACK:
            what = "live" if settings.live else f"ws_url = {ws_url!r}"
            raise BadSettings(
                f"{what}: the exchange's stream needs an API key: "
                f"set {API_KEY_VARIABLE}, or name a file with --api-key-file"
            )
        key = LOCAL_API_KEY
    return MarketSource("live" if settings.live else "external", ws_url, rest_url, key)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Give the environment that children inherit.

    Variables of the supervisor's own settings are left out: children get these as flags, and cannot read its file.
    Variables of single roles, for instance `SHEETANCHOR_GAP_WAIT_MS`, reach them.
    """
    own = {variable_of(name, info) for name, info in LocalSettings.model_fields.items()}
    own |= {VARIABLE_PREFIX + "CONFIG", "CONFIG_FILE"}
    return {name: value for name, value in environ.items() if name not in own} | {"PYTHONUNBUFFERED": "1"}


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """Everything that the command lines of one run need.

    Attributes:
        redis_url: Passed to children as a variable, as it may hold a password.
        environ: Environment that children inherit.
        began_s: When the run began, in seconds since 1970.
        begin_at_s: Time on the recorder's clock at which a replay begins; 0 for the recording's beginning.
    """

    settings: LocalSettings
    market: MarketSource
    redis_url: str
    environ: Mapping[str, str]
    began_s: float
    begin_at_s: float = 0.0

    def _spec(
        self, name: str, role: str, flags: Sequence[str], *, port: int = 0, key: bool = False, redis: bool = True
    ) -> Spec:
        command = [sys.executable, "-m", "sheetanchor", role, "--log-level", self.settings.log_level]
        command += [word for symbol in self.settings.symbol for word in ("--symbol", symbol)]
        environ = dict(self.environ)
        if port:
            command += ["--http-host", "127.0.0.1", "--http-port", "{port}"]
        if redis:
            environ[VARIABLE_PREFIX + "REDIS_URL"] = self.redis_url
            if self.settings.redis_password_file is not None:
                command += ["--redis-password-file", str(self.settings.redis_password_file)]
        if key and self.settings.api_key_file is not None:
            command += ["--api-key-file", str(self.settings.api_key_file)]
        elif key:
            environ[API_KEY_VARIABLE] = self.market.api_key
        return Spec(name, (*command, *flags), environ, port, moves=name != EXCHANGE)

    def exchange(self) -> Spec:
        """Give the process of the local exchange."""
        settings = self.settings
        flags = ["--speed", f"{settings.speed:g}", "--rate", f"{settings.rate:g}", "--loop"]
        # A restarted exchange continues at the present time, as a real one does: ids and time must not go back.
        flags += ["--playing-since", f"{self.began_s:.3f}"]
        flags += ["--begin-at", f"{self.begin_at_s:.3f}"] if self.begin_at_s else []
        flags += [word for path in settings.recording for word in ("--recording", str(path))]
        flags += [word for fault in settings.fault for word in ("--fault", fault)]
        flags += ["--burst", settings.burst] if settings.burst else []
        return self._spec(EXCHANGE, "exchange", flags, port=self.market.exchange_port, redis=False)

    def ingestors(self, pick_port: Callable[[], int]) -> list[Spec]:
        """Give the processes of the two lines."""
        return [
            self._spec(
                f"ingest/{line}", "ingest", ["--line", line, "--ws-url", self.market.ws_url], port=pick_port(), key=True
            )
            for line in LINES
        ]

    def processor(self, pick_port: Callable[[], int]) -> Spec:
        """Give the process of the processor."""
        suppressed = [word for rule in self.settings.suppress_rules for word in ("--suppress-rules", rule)]
        return self._spec("process", "process", ["--rest-url", self.market.rest_url, *suppressed], port=pick_port())

    def replicas(self, pick_port: Callable[[], int]) -> list[Spec]:
        """Give the processes of the inference replicas."""
        models = [] if self.settings.models is None else ["--models", str(self.settings.models)]
        return [
            self._spec(f"infer/{replica}", "infer", ["--replica", replica, *models], port=pick_port())
            for replica in REPLICAS
        ]

    def reanchor(self, symbol: str, start: reanchor_scheduler.Start, request_id: str) -> Spec:
        """Give the process of one rebuild."""
        command = [sys.executable, "-m", "sheetanchor", "reanchor", "--log-level", self.settings.log_level]
        command += [
            "--symbol",
            symbol,
            "--reason",
            start.reason,
            "--trigger",
            start.trigger,
            "--request-id",
            request_id,
        ]
        command += ["--rest-url", self.market.rest_url]
        command += ["--validate-only"] if start.kind == "validate" else []
        if self.settings.redis_password_file is not None:
            command += ["--redis-password-file", str(self.settings.redis_password_file)]
        environ = dict(self.environ) | {VARIABLE_PREFIX + "REDIS_URL": self.redis_url}
        return Spec("reanchor", tuple(command), environ)
