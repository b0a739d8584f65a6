"""`PredictionPipeline.spec`: the model that reads it and from which its schema is generated.

One module, since it is one document: fields, defaults and rules stand in the order in which users read them.
`recovery_spec` has re-anchors, failover and retries, `redis_spec` has Redis.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator

from sheetanchor.contract import STREAM_TYPES, SYMBOL_PATTERN, SYMBOLS_MAX
from sheetanchor.policy.gap_rules import GAP_DETECTION_RULES
from sheetanchor_operator.api.fields import Block, field, map_by, one_line_rule, rule, ruled, set_of
from sheetanchor_operator.api.recovery_spec import Failover, Reanchor, Reliability
from sheetanchor_operator.api.redis_spec import Redis
from sheetanchor_operator.api.shared_fields import (
    HOST_PATTERN,
    NAME_PATTERN,
    ApiKeyRef,
    InferResources,
    IngestResources,
    NameRef,
    ProcessResources,
    Toleration,
    matches,
    url_of,
)

ZONE_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?$"
ZONES_MAX: Final = 3
_NO_CREDENTIALS: Final = "!self.contains('@')"
_ORIGIN_TAIL: Final = rf"://([^/?#@\s]*@)?{HOST_PATTERN}(/[^?#\s]*)?"

WebSocketUrl = Annotated[str, AfterValidator(url_of("ws", "wss"))]
HttpUrl = Annotated[str, AfterValidator(url_of("http", "https"))]


class Exchange(Block):
    """Where market data comes from."""

    model_config = ruled(
        rule(
            "self.websocketURL.contains('binance') == self.restURL.contains('binance')",
            "exchange.websocketURL and exchange.restURL must name the same exchange, or no re-anchor "
            "can succeed: set both or neither",
        ),
        rule(
            "!self.websocketURL.startsWith('ws://') || "
            "!(has(self.apiKeySecret) || self.websocketURL.contains('binance')) || "
            "self.websocketURL.matches('^ws://([^.:/\\\\[]+|[^:/]+[.]svc|[^:/]+[.]svc[.]cluster[.]local|"
            "127[.][0-9.]+|\\\\[::1\\\\])(:[0-9]+)?/*$')",
            "exchange.websocketURL must begin with wss:// when there is an API key, or be a name of this cluster such "
            "as exchange or exchange.namespace.svc: the key would go over the network in clear",
        ),
    )

    websocket_url: WebSocketUrl = field(
        "wss://stream-sbe.binance.com:9443",
        "Origin of the exchange's binary (SBE) WebSocket, for instance wss://host:9443. The default is Binance's own.",
        alias="websocketURL",
        min_length=1,
        max_length=512,
        rules=[
            rule(
                matches(f"wss?{_ORIGIN_TAIL}"),
                "exchange.websocketURL must be an origin such as wss://host:9443: begin it with ws:// or wss://, and "
                "give a port from 1 to 65535 or none",
            ),
            rule(
                _NO_CREDENTIALS,
                "exchange.websocketURL must not contain a user or password: put the key into exchange.apiKeySecret",
            ),
        ],
    )
    rest_url: HttpUrl = field(
        "https://data-api.binance.vision",
        "Origin of the exchange's REST interface, from which re-anchors fetch depth, trades, klines and "
        "ticker. The default is Binance's own for public market data and needs no key.",
        alias="restURL",
        min_length=1,
        max_length=512,
        rules=[
            rule(
                matches(f"https?{_ORIGIN_TAIL}"),
                "exchange.restURL must be an origin such as https://host: begin it with http:// or https://, and give "
                "a port from 1 to 65535 or none",
            ),
            rule(_NO_CREDENTIALS, "exchange.restURL must not contain a user or password: market data is public"),
        ],
    )
    api_key_secret: ApiKeyRef | None = field(
        None,
        "Secret with the API key that the binary stream requires: an Ed25519 key without any permission. "
        "Binance's stream always requires one: when this is absent, the entry api-key of the Secret "
        "binance-api-key is read. Other exchanges get a key only if this names one.",
    )


class Ingestion(Block):
    """The ingestors: one per line, each carrying the whole feed."""

    model_config = ruled(
        rule(
            "self.silenceSeconds < self.connectionLossSeconds",
            "ingestion.silenceSeconds must be below ingestion.connectionLossSeconds: a connection is "
            "replaced before it is given up",
        )
    )

    streams: tuple[Literal["trade", "bestBidAsk", "depth"], ...] = field(
        STREAM_TYPES,
        "Kinds of messages to subscribe to; all three by default. Without bestBidAsk predictions are degraded "
        "(missing) from the first change of the best price on.",
        schema=set_of(len(STREAM_TYPES), enum=list(STREAM_TYPES)),
        rules=[
            rule(
                "'depth' in self",
                "ingestion.streams must contain depth: without it there is no order book; add it",
            ),
            rule(
                "'trade' in self",
                "ingestion.streams must contain trade: the model's features need trades; add it",
            ),
        ],
    )
    silence_seconds: int = field(
        5,
        "Seconds without receiving anything (a message, a ping, or the answer to a ping of the ingestor) after which a "
        "connection is replaced. A market without events keeps its connection. Five, since an answer to a ping takes a "
        "fraction of a second.",
        ge=1,
        le=300,
    )
    connection_loss_seconds: int = field(
        30,
        "Seconds without a healthy connection after which a line requests an emergency re-anchor.",
        ge=2,
        le=600,
    )
    rotate_after_hours: int = field(
        23,
        "Hours after which a second connection replaces the first one, without a break. The exchange ends it at 24 "
        "hours.",
        ge=1,
        le=23,
    )
    queue_megabytes: int = field(
        64,
        "Mebibytes of frames that are queued while Redis cannot be reached; beyond that the oldest best prices are "
        "dropped first, then the oldest frames of all. The queue is part of the pod's memory.",
        ge=1,
        le=1024,
    )
    resources: IngestResources = field(IngestResources(), "Resources of each ingestor pod.")


class Gaps(Block):
    """Thresholds of the gap rules."""

    model_config = ruled(
        rule(
            "self.waitMilliseconds < self.timeSeconds * 1000",
            "processor.gaps.waitMilliseconds must be below processor.gaps.timeSeconds: lower the wait "
            "or raise the time",
        )
    )

    sequence_threshold: int = field(
        1,
        "Missing ranges of ids in a row that make a sequence gap. One, since a book that lacks an update is wrong.",
        ge=1,
        le=100,
    )
    wait_milliseconds: int = field(
        200, "Milliseconds that a missing range of ids may wait for another line to deliver it.", ge=0, le=10_000
    )
    time_seconds: int = field(5, "Seconds without any event on any line that make a time gap.", ge=1, le=3600)
    volume_sigmas: float = field(
        3.0,
        "Standard deviations from the mean volume that make a volume anomaly, which only requests a comparison with "
        "the exchange.",
        ge=0.5,
        le=100,
    )
    price_jump: float = field(
        0.01,
        "Relative change of the mid price from one event to the next that makes a price discontinuity.",
        ge=0.0001,
        le=1,
    )
    suppress: tuple[str, ...] = field(
        (),
        "Gap rules that are ignored. None by default.",
        schema=set_of(len(GAP_DETECTION_RULES), enum=sorted(GAP_DETECTION_RULES)),
    )


class Processor(Block):
    """The processors: one writes the hot state, the others are on standby and take over within about a second."""

    replicas: int = field(
        2,
        "Processors, of which one is active. Two, so that one can take over; without a standby slots are missed.",
        ge=1,
        le=3,
    )
    self_reanchor_after_seconds: int = field(
        15,
        "Seconds after which the active processor runs a requested re-anchor itself if the operator has not started "
        "it, for instance because it or the API server is down. 0 means never.",
        ge=0,
        le=3600,
    )
    gaps: Gaps = field(Gaps(), "Thresholds of the gap rules.")
    resources: ProcessResources = field(ProcessResources(), "Resources of each processor pod.")


class VolumeClaim(Block):
    """A model registry on a volume."""

    claim_name: str = field(
        ...,
        "Name of a PersistentVolumeClaim in the pipeline's namespace. All inference pods mount it, read-only.",
        min_length=1,
        max_length=253,
        pattern=NAME_PATTERN,
    )
    path: str = field(
        "",
        "Folder of the registry in the volume, relative to its root; empty is the root itself.",
        max_length=512,
        rules=[
            rule(
                "!self.startsWith('/') && !self.contains('..')",
                "inference.model.persistentVolumeClaim.path must stay inside the volume: give a relative path "
                "without ..",
            )
        ],
    )


class Model(Block):
    """Where the model comes from; without either field it is the model in the image."""

    model_config = ruled(
        rule(
            "!(has(self.configMap) && has(self.persistentVolumeClaim))",
            "inference.model must not name both configMap and persistentVolumeClaim: remove one",
        )
    )

    config_map: NameRef | None = field(
        None,
        "ConfigMap with the entries model.onnx (binary) and manifest.json, as `sheetanchor train` writes them. "
        "Changing its content rolls the inference pods.",
    )
    persistent_volume_claim: VolumeClaim | None = field(
        None, "A model registry on a volume; a promotion there takes effect within two seconds, without a roll-out."
    )


class Inference(Block):
    """The inference replicas, all active: the first to commit a slot wins."""

    replicas: int = field(
        3,
        "Replicas. Three, one for each zone of most clusters: clients are routed to the replica of their zone, and two "
        "are left if a zone is lost. More add availability, not throughput. `kubectl scale` changes this field.",
        ge=1,
        le=10,
    )
    warm_runs: int = field(
        3, "Dry runs of the model just before each slot, which keep caches warm; more cost CPU.", ge=0, le=100
    )
    model: Model = field(Model(), "The model to predict with; by default the one in the image.")
    resources: InferResources = field(InferResources(), "Resources of each inference pod.")


class NetworkPolicy(Block):
    """Whether traffic is restricted."""

    enabled: bool = field(
        True,
        "Deny all traffic of the pipeline's pods except what they need. Has an effect only if the network plugin "
        "enforces NetworkPolicies.",
    )


class Scheduling(Block):
    """Where pods may run."""

    node_selector: dict[str, str] = field(
        {},
        "Labels that a node must have, for all pods of the pipeline.",
        schema={"maxProperties": 10, "additionalProperties": {"type": "string", "maxLength": 63}},
    )
    tolerations: tuple[Toleration, ...] = field(
        (),
        "Taints that all pods of the pipeline tolerate, in addition to those that Kubernetes adds.",
        schema={"maxItems": 10, "x-kubernetes-list-type": "atomic"},
    )
    priority_class_name: str = field(
        "", "PriorityClass of all pods of the pipeline; empty means the cluster's default.", max_length=253
    )


_POD_LABEL_VALUE: Final = "^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$"
_POD_KEY: Final = "([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"


def _foreign_keys(what: str, *prefixes: str) -> list[dict[str, str]]:
    named = " and ".join(prefixes)
    own = " || ".join(f"key.startsWith('{prefix}')" for prefix in prefixes)
    return [
        rule(
            f"self.all(key, key.matches('^{_POD_KEY}$'))",
            f"podMetadata.{what}: a key is a name of at most 63 characters, perhaps after a DNS domain and a slash, "
            "for instance example.com/team",
        ),
        rule(
            f"!self.exists(key, {own})",
            f"podMetadata.{what} must not name keys of {named}, which the operator sets itself: remove them",
        ),
    ]


class PodMetadata(Block):
    """Labels and annotations of pods for other programs, for instance cost reports, log routing or a service mesh."""

    labels: dict[str, str] = field(
        {},
        "Labels of all pods of the pipeline, in addition to the operator's own. A change replaces the pods, one after "
        "another.",
        schema={
            "maxProperties": 20,
            "additionalProperties": {"type": "string", "maxLength": 63, "pattern": _POD_LABEL_VALUE},
        },
        rules=_foreign_keys("labels", "sheetanchor.dev/", "app.kubernetes.io/"),
    )
    annotations: dict[str, str] = field(
        {},
        "Annotations of all pods of the pipeline, in addition to the operator's own. A change replaces the pods, one "
        "after another.",
        schema={"maxProperties": 20, "additionalProperties": {"type": "string", "maxLength": 1024}},
        rules=_foreign_keys("annotations", "sheetanchor.dev/", "prometheus.io/"),
    )


class Maintenance(Block):
    """Announced work."""

    model_config = ruled(
        rule(
            "!self.enabled || self.reason.size() >= 3",
            "maintenance.reason must say why: give at least three characters, or disable maintenance",
        )
    )

    enabled: bool = field(False, "Scale the workloads to zero and mute alerts; Redis keeps running. False ends it.")
    reason: str = field(
        "",
        "Reason in one line; shown in the condition Paused and in Events.",
        max_length=256,
        rules=[one_line_rule("maintenance.reason")],
    )


class PipelineSpec(Block):
    """The specification of a pipeline."""

    model_config = ruled(
        rule(
            "self.processor.selfReanchorAfterSeconds < self.reanchor.timeoutSeconds",
            "processor.selfReanchorAfterSeconds must be below reanchor.timeoutSeconds: lower it, or set 0 for never",
        ),
        rule(
            "!(self.suspend && self.maintenance.enabled)",
            "suspend and maintenance.enabled must not both be true: suspend is open-ended, maintenance "
            "is announced; choose one",
        ),
        rule(
            "self.reanchor.enabled || self.processor.selfReanchorAfterSeconds == 0",
            "processor.selfReanchorAfterSeconds must be 0 when reanchor.enabled is false, or the "
            "processor would re-anchor by itself",
        ),
    )

    symbols: tuple[str, ...] = field(
        ...,
        "Trading pairs, for instance BTCUSDT. All share the pipeline's pods; the model must have been trained on them.",
        min_length=1,
        max_length=SYMBOLS_MAX,
        schema=set_of(SYMBOLS_MAX, pattern=f"^{SYMBOL_PATTERN.pattern}$", maxLength=20),
    )
    image: str = field(
        "",
        "Image of the workloads. Empty means the one that the chart sets: workloadImage, or the operator's own.",
        max_length=512,
        rules=[
            rule(
                "self == '' || self.matches('^[a-zA-Z0-9][-a-zA-Z0-9._:/]*(@sha256:[0-9a-f]{64})?$')",
                "image must be a reference such as registry.example/sheetanchor:0.1.0, without spaces; a "
                "digest is @sha256: and 64 digits",
            )
        ],
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = field(
        "IfNotPresent", "When nodes pull the image. Use Always only with a tag that is reused for new images."
    )
    image_pull_secrets: tuple[NameRef, ...] = field(
        (), "Secrets of the pipeline's namespace that the image is pulled with.", schema=map_by(10, "name")
    )
    suspend: bool = field(False, "True scales the workloads to zero; Redis keeps running, with its data.")
    log_level: Literal["debug", "info", "warning", "error"] = field("info", "Least severe line that workloads log.")
    exchange: Exchange = field(Exchange(), "Where market data comes from.")
    zones: tuple[str, ...] = field(
        (),
        "Zones (values of the node label topology.kubernetes.io/zone) with one ingestor line each, at most "
        "three. Empty means the zones that the cluster's nodes show, or two lines a and b on different nodes "
        "where there are fewer than two.",
        schema=set_of(ZONES_MAX, pattern=ZONE_PATTERN, maxLength=31),
        rules=[
            rule(
                "self.size() != 1",
                "zones must name two or three zones, or none: with a single line every restart is a gap",
            )
        ],
    )
    ingestion: Ingestion = field(Ingestion(), "The ingestors.")
    processor: Processor = field(Processor(), "The processors.")
    inference: Inference = field(Inference(), "The inference replicas.")
    redis: Redis = field(Redis(), "Where the hot state is kept.")
    reanchor: Reanchor = field(Reanchor(), "When and how the hot state is rebuilt.")
    reliability: Reliability = field(Reliability(), "Retries, breakers and health checks.")
    failover: Failover = field(Failover(), "When a zone that cannot be reached counts as lost.")
    network_policy: NetworkPolicy = field(NetworkPolicy(), "Restriction of traffic.")
    scheduling: Scheduling = field(Scheduling(), "Where pods may run.")
    pod_metadata: PodMetadata = field(PodMetadata(), "Further labels and annotations of pods.")
    maintenance: Maintenance = field(Maintenance(), "Announced work.")
