"""From flags, variables and a file to one settings object; every mistake is told in one line."""

from __future__ import annotations

import argparse
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sheetanchor.errors import BadSettings
from sheetanchor.redis_url import shown_value, without_passwords
from sheetanchor.settings import interpolate

VARIABLE_PREFIX = "SHEETANCHOR_"

Model = TypeVar("Model", bound=BaseModel)


def public_name(field_name: str) -> str:
    """Give a field's name in files; a trailing underscore only keeps it apart from a Python keyword."""
    return field_name.rstrip("_")


def variable_of(field_name: str, info: FieldInfo) -> str:
    """Give the environment variable that sets a field."""
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    named = extra.get("variable")
    return str(named) if named else VARIABLE_PREFIX + public_name(field_name).upper()


def _is_list(info: FieldInfo) -> bool:
    return get_origin(info.annotation) is list


def _choices(info: FieldInfo) -> tuple[str, ...]:
    annotation = info.annotation
    if _is_list(info):
        annotation = get_args(annotation)[0]
    return tuple(map(str, get_args(annotation))) if get_origin(annotation) is Literal else ()


def _placeholder(info: FieldInfo) -> str:
    annotation: Any = info.annotation
    while get_origin(annotation) in (list, typing.Annotated, typing.Union, types.UnionType):
        annotation = get_args(annotation)[0]
    return {int: "N", float: "X", Path: "PATH"}.get(annotation, "TEXT")


def _default_text(default: Any) -> str:
    if default in (None, "", []):
        return ""
    if isinstance(default, list):
        default = " ".join(map(str, default))
    return f" (default {default})"


def add_flags(parser: argparse.ArgumentParser, model: type[BaseModel]) -> None:
    """Add a flag for every field of a settings model, in its order, and `--config`."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same settings (also SHEETANCHOR_CONFIG)")
    for name, info in model.model_fields.items():
        if not info.description:  # a secret: has no flag
            continue
        flag = "--" + public_name(name).replace("_", "-")
        help_text = (info.description + _default_text(info.default)).replace("%", "%%")
        if info.annotation is bool:
            parser.add_argument(
                flag,
                dest=name,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=help_text,
            )
        else:
            choices = _choices(info)
            parser.add_argument(
                flag,
                dest=name,
                metavar="|".join(choices) or _placeholder(info),
                action="append" if _is_list(info) else "store",
                default=argparse.SUPPRESS,
                help=help_text,
            )


def _walk(tree: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found.extend(_leaves(value, path + ".") if isinstance(value, dict) and value else [path])
    return found


WITHOUT_EFFECT: dict[str, str] = {"aws.": "frames go to Redis Streams, and nothing is sent to AWS"}
"""Entries that files written for other deployments of the same pipeline carry: they are accepted, and it is said."""

ALWAYS: dict[str, tuple[object, str]] = {
    "metrics.enable_prometheus": (True, "expected true: metrics are always served, on the port of health")
}
"""Entries that can only have the value that holds anyway."""

ELSEWHERE: dict[str, str] = {
    name: "retries and breakers are settings of process and reanchor; ingest reconnects by its reconnect_… settings"
    for name in (
        "retry_max_attempts",
        "retry_initial_delay_ms",
        "circuit_breaker_threshold",
        "circuit_breaker_timeout_seconds",
    )
}
"""Entries of some roles that would do nothing in the others."""


def check_entry(leaf: str, value: object, known: set[str], notes: list[str]) -> str:
    """Say what is wrong with an entry of a file, "" if nothing is; what is accepted without effect becomes a note."""
    if leaf in known:
        return ""
    for prefix, words in WITHOUT_EFFECT.items():
        if leaf.startswith(prefix):
            notes.append(f"{leaf} has no effect: {words}")
            return ""
    if leaf in ALWAYS:
        expected, words = ALWAYS[leaf]
        return "" if value is expected else f"{leaf} = {value!r}: {words}"
    name = leaf.rpartition(".")[2]
    if name in ELSEWHERE:
        return f"{leaf!r} would do nothing in this role: {ELSEWHERE[name]}"
    return f"unknown setting {leaf!r}; known: {', '.join(sorted(known))}"


def read_file(
    path: Path, model: type[BaseModel], environ: dict[str, str], notes: list[str] | None = None
) -> dict[str, Any]:
    """Read a YAML file into the fields of a model.

    Args:
        path: The file.
        model: Settings model of the role.
        environ: Environment variables.
        notes: Takes in what a person should know of entries that were accepted.

    Raises:
        BadSettings: If the file cannot be read, is not YAML, or has an entry that the model does not know.
    """
    try:
        tree = interpolate(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, environ)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        text = " ".join(str(error).split())
        raise BadSettings(f"config {str(path)!r}: {text}") from error
    if not isinstance(tree, dict):
        raise BadSettings(f"config {str(path)!r}: expected a mapping of settings, found {type(tree).__name__}")
    values: dict[str, Any] = {}
    known: set[str] = set()
    for name, info in model.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        places = extra.get("yaml")
        for place in [public_name(name), *(places if isinstance(places, list) else [])]:
            known.add(str(place))
            found = _walk(tree, str(place))
            if found is not None:
                values[name] = found
    for leaf in _leaves(tree):
        wrong = check_entry(leaf, _walk(tree, leaf), known, notes if notes is not None else [])
        if wrong:
            raise BadSettings(f"config {str(path)!r}: {wrong}")
    return values


def read_variables(model: type[BaseModel], environ: dict[str, str]) -> dict[str, Any]:
    """Read the environment variables of a model's fields; lists are separated by commas."""
    values: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        text = environ.get(variable_of(name, info))
        if text:
            values[name] = [part.strip() for part in text.split(",") if part.strip()] if _is_list(info) else text
    return values


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    expected = first["msg"].removeprefix("Value error, ")
    if not name:
        return expected
    info = model.model_fields.get(name)
    shown = (
        "" if info is None or not info.description else f" = {shown_value(first['input'], url=name.endswith('_url'))!r}"
    )
    return without_passwords(f"{public_name(name)}{shown}: {expected}")


def load(model: type[Model], flags: dict[str, Any], environ: dict[str, str], notes: list[str] | None = None) -> Model:
    """Merge flags over variables over the file and check everything.

    Args:
        model: Settings model of the role.
        flags: Parsed flags by field name; those not given are absent. `config` names the file.
        environ: Environment variables.
        notes: Takes in what a person should know of settings that were accepted.

    Raises:
        BadSettings: Names the setting, its value and what was expected.
    """
    flags = dict(flags)
    config = flags.pop("config", None) or environ.get(VARIABLE_PREFIX + "CONFIG") or environ.get("CONFIG_FILE")
    values = read_file(Path(config), model, environ, notes) if config else {}
    values.update(read_variables(model, environ))
    values.update(flags)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise BadSettings(_explain(error, model)) from error


def read_secret(path: Path, what: str) -> str:
    """Read a secret from a file, without its trailing newline.

    Raises:
        BadSettings: If the file cannot be read or is empty; the text never holds the secret.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{what} file {str(path)!r} cannot be read: {type(error).__name__}") from error
    if not secret:
        raise BadSettings(f"{what} file {str(path)!r} is empty: expected the {what} on its first line")
    return secret
