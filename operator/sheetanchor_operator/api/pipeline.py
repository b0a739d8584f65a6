"""A PredictionPipeline as the operator holds it, read from what the API server gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from sheetanchor.runtime.redis_url import shown_value
from sheetanchor_operator.api.pipeline_spec import PipelineSpec
from sheetanchor_operator.api.redis_spec import ManagedRedis
from sheetanchor_operator.api.timestamps import micros_of
from sheetanchor_operator.names import PAUSED_ANNOTATION, REANCHOR_ANNOTATION


class BadSpec(Exception):
    """A resource whose spec this operator cannot use; says which field, what is there and what was expected."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """One PredictionPipeline.

    Attributes:
        spec: The specification, with every default filled in.
        status: What was last written; raw, since it may be another version's.
        created_us: When it was created; 0 if that is not known.
    """

    name: str
    namespace: str
    uid: str
    generation: int
    spec: PipelineSpec
    annotations: Mapping[str, str] = field(default_factory=dict)
    status: Mapping[str, Any] = field(default_factory=dict)
    deleting: bool = False
    created_us: int = 0

    @property
    def paused(self) -> bool:
        """Whether the annotation that pauses a pipeline is set: the operator then leaves its children as they are."""
        return self.annotations.get(PAUSED_ANNOTATION) == "true"

    @property
    def scaled_to_zero(self) -> bool:
        """Whether the specification scales the workloads to zero."""
        return self.spec.suspend or self.spec.maintenance.enabled

    @property
    def managed_redis(self) -> ManagedRedis | None:
        """The managed Redis; None if the pipeline uses an external one."""
        if self.spec.redis.external is not None:
            return None
        return self.spec.redis.managed or ManagedRedis()

    @property
    def evacuated_zone(self) -> str:
        """The zone that processors and inference are kept out of, "" for none."""
        return str(self.status.get("evacuatedZone") or "")

    @property
    def reanchor_request(self) -> str:
        """The value of the annotation that asks for a re-anchor, "" if there is none."""
        return self.annotations.get(REANCHOR_ANNOTATION, "")


def explain(error: ValidationError) -> str:
    """Describe the first mistake of a resource in one line."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"]))
    value = str(shown_value(str(first["input"]), url=place.lower().endswith("url")))
    shown = "" if first["type"] in ("missing", "extra_forbidden") else f" = {value[:60]!r}"
    return f"spec.{place}{shown}: {first['msg'].removeprefix('Value error, ')}"


def parse(body: Mapping[str, Any]) -> Pipeline:
    """Read a PredictionPipeline.

    Raises:
        BadSpec: Names the first field that cannot be used.
    """
    metadata = body["metadata"]
    try:
        spec = PipelineSpec.model_validate(dict(body.get("spec", {})))
    except ValidationError as error:
        raise BadSpec(explain(error)) from error
    return Pipeline(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata.get("uid", ""),
        generation=metadata.get("generation", 0),
        spec=spec,
        annotations=dict(metadata.get("annotations") or {}),
        status=dict(body.get("status") or {}),
        created_us=micros_of(metadata.get("creationTimestamp")),
        deleting="deletionTimestamp" in metadata,
    )
