"""How a field of a custom resource is declared: once, for the model that reads it and for the schema that is served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict

RULES: Final = "x-kubernetes-validations"


def rule(expression: str, message: str) -> dict[str, str]:
    """Make a CEL rule that the API server checks.

    Args:
        expression: CEL; `self` is the field's value, `oldSelf` its value before an update.
        message: Names the field and the remedy.
    """
    return {"rule": expression, "message": message}


def one_line_rule(name: str) -> dict[str, str]:
    """Make the rule of a text for people: printed to a terminal it must not move the cursor or hide anything."""
    return rule(
        rf"self.matches(r'^[^\p{{Cc}}{_HIDING}]*$')",
        f"{name} must be one line without control characters: replace them by spaces",
    )


_HIDING: Final = r"\x{2028}\x{2029}\x{202a}-\x{202e}\x{2066}-\x{2069}"
"""Line and paragraph separators, and what turns the direction of writing."""


def ruled(*rules: dict[str, str]) -> ConfigDict:
    """Give the configuration of a block with CEL rules on the whole of it."""
    extra: JsonDict = {RULES: [dict(one) for one in rules]}
    return ConfigDict(json_schema_extra=extra)


def field(
    default: Any,
    text: str,
    *,
    rules: Sequence[dict[str, str]] = (),
    schema: dict[str, Any] | None = None,
    **limits: Any,
) -> Any:
    """Declare a field.

    Args:
        default: Its value when it is not set; `...` if it is required.
        text: What it means, its unit and why the default is what it is; `kubectl explain` shows it.
        rules: CEL rules on its value.
        schema: Further keywords of its schema, for instance the list's kind.
        limits: Bounds and alias, as pydantic's `Field` takes them.
    """
    extra: dict[str, Any] = dict(schema or {})
    if rules:
        extra[RULES] = list(rules)
    return Field(default, description=text, json_schema_extra=extra, **limits)


def set_of(length_max: int, **items: Any) -> dict[str, Any]:
    """Give the schema keywords of a list without duplicates."""
    return {"x-kubernetes-list-type": "set", "maxItems": length_max, "items": {"type": "string", **items}}


def map_by(length_max: int, *names: str) -> dict[str, Any]:
    """Give the schema keywords of a list whose items are identified by some of their fields."""
    return {
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": list(names),
        "maxItems": length_max,
    }


class Block(BaseModel):
    """A block of fields, camelCase in YAML; unknown ones are refused, and a parsed block is immutable."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        alias_generator=to_camel,
        validate_by_alias=True,
        validate_by_name=True,
        serialize_by_alias=True,
    )
