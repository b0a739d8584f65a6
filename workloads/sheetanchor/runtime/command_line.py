"""From flags, variables and a file to one settings object; every mistake is reported in one line.

Each is a source of pydantic-settings. What that library cannot do, or only with more code, is written here:

* Values of flags are used as argparse gives them. The library splits lists at commas, which scripted faults contain,
  and reads the word `null` as no value.
* Names of variables are exact, and some are other programs' (BINANCE_API_KEY, POD_NAME). The library accepts names with
  its prefix, in any case, or an alias, for which it adds a flag as well.
* A file may hold a setting in several places and contain `${NAME}`, and unknown entries are errors. The library ignores
  a missing file; for an `AliasPath` it adds a flag, and ignores unknown entries beside it.
* The text of help and errors: no name of a Python type, no `null`, no secret.
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import AliasChoices, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    YamlConfigSettingsSource,
)

from sheetanchor.errors import BadSettings
from sheetanchor.runtime.redis_url import shown_value, without_passwords
from sheetanchor.runtime.settings import ReliabilitySettings

VARIABLE_PREFIX = "SHEETANCHOR_"
PLACEHOLDERS: Final = {"int": "N", "float": "X", "Path": "PATH", "str": "TEXT"}
"""Placeholder of a value in the help, by the name of its type."""

Model = TypeVar("Model", bound=BaseSettings)


def names_of(field_name: str, info: FieldInfo) -> tuple[str, ...]:
    """Give a field's names in files, older ones last.

    A trailing underscore only avoids a Python keyword.
    """
    alias = info.validation_alias
    return tuple(map(str, alias.choices)) if isinstance(alias, AliasChoices) else (field_name.rstrip("_"),)


def _extra(info: FieldInfo, key: str) -> Any:
    return info.json_schema_extra.get(key) if isinstance(info.json_schema_extra, dict) else None


def variables_of(field_name: str, info: FieldInfo) -> tuple[str, ...]:
    """Give the environment variables that set a field, older names last."""
    named = _extra(info, "variable")
    return (named,) if named else tuple(VARIABLE_PREFIX + name.upper() for name in names_of(field_name, info))


def variable_of(field_name: str, info: FieldInfo) -> str:
    """Give the environment variable that sets a field."""
    return variables_of(field_name, info)[0]


def _add_flag(model: type[BaseSettings], parser: argparse.ArgumentParser, *flags: str, **options: Any) -> None:
    """Add the library's flag of a field, with our own help text."""
    info = model.model_fields[options["dest"]]
    if not info.description:  # a secret, which has no flag
        return
    default = " ".join(map(str, info.default)) if isinstance(info.default, list) else info.default
    shown = "" if default in (None, "") else f" (default {default})"
    options["help"] = (info.description + shown).replace("%", "%%")
    if "metavar" in options:
        kind = options["metavar"].removeprefix("list[").removesuffix("]")
        options["metavar"] = PLACEHOLDERS.get(kind, kind.strip("{}").replace(",", "|"))
    parser.add_argument(*(flag.rstrip("-") for flag in flags), **options)


def add_flags(parser: argparse.ArgumentParser, model: type[BaseSettings]) -> None:
    """Add a flag for every field of a settings model, in its order, and `--config`."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with the same settings (also SHEETANCHOR_CONFIG)")
    CliSettingsSource[argparse.ArgumentParser](
        model,
        root_parser=parser,
        add_argument_method=partial(_add_flag, model),
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )


class Variables(EnvSettingsSource):
    """Environment variables; a list's values are separated by commas, and an empty one sets nothing.

    Args:
        model: Settings model of the role.
        environ: Environment variables.
    """

    def __init__(self, model: type[BaseSettings], environ: dict[str, str]) -> None:
        super().__init__(model)
        self.env_vars = environ

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Read the first variable of a field that is set."""
        found = (self.env_vars.get(name) for name in variables_of(field_name, field))
        return next(filter(None, found), None), field_name, False

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: str) -> list[str]:
        """Read a list; it is the only kind of value with several items in a model."""
        return [part.strip() for part in value.split(",") if part.strip()]


_VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def interpolate(value: Any, environ: dict[str, str]) -> Any:
    """Replace `${NAME}` in every string of a parsed file.

    Raises:
        ValueError: A variable is not set; the text names it.
    """
    if isinstance(value, dict):
        return {key: interpolate(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, environ) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise ValueError(f"${{{match[1]}}} names an environment variable that is not set")
        return environ[match[1]]

    return _VARIABLE.sub(replace, value)


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give every entry by its dotted path."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        found |= _leaves(value, path + ".") if isinstance(value, dict) and value else {path: value}
    return found


WITHOUT_EFFECT: dict[str, str] = {"aws.": "frames go to Redis Streams, and nothing is sent to AWS"}
"""Entries of files that were written for other deployments of the same pipeline: they are accepted, with a warning."""

ALWAYS: dict[str, tuple[object, str]] = {
    "metrics.enable_prometheus": (True, "expected true: metrics are always served, on the port of health")
}
"""Entries that can only have the value that is built in."""

ELSEWHERE: dict[str, str] = dict.fromkeys(
    ReliabilitySettings.model_fields,
    "retries and breakers are settings of process and reanchor; ingest reconnects by its reconnect_… settings",
)
"""Entries of some roles that would have no effect in the others."""


def check_entry(leaf: str, value: object, known: set[str], notes: list[str]) -> str:
    """Say what is wrong with an entry of a file, "" if nothing is; an accepted entry without effect becomes a note."""
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
        return f"{leaf!r} would have no effect in this role: {ELSEWHERE[name]}"
    return f"unknown setting {leaf!r}; known: {', '.join(sorted(known))}"


class SettingsFile(YamlConfigSettingsSource):
    """A YAML file, read into the fields of a model.

    Args:
        model: Settings model of the role.
        path: The file.
        environ: Environment variables.
        notes: Receives warnings about entries that were accepted.

    Raises:
        BadSettings: The file cannot be read, is not YAML, or has an unknown entry.
    """

    def __init__(self, model: type[BaseSettings], path: Path, environ: dict[str, str], notes: list[str]) -> None:
        self._model, self._environ, self._notes = model, environ, notes
        super().__init__(model, yaml_file=path)

    def _read_files(self, files: Any, deep_merge: bool = False) -> dict[str, Any]:
        # Overrides the library's method, which would ignore a file that is missing or is a pipe.
        try:
            tree = interpolate(self._read_file(files), self._environ)
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
            text = " ".join(str(error).split())
            raise BadSettings(f"config {str(files)!r}: {text}") from error
        if not isinstance(tree, dict):
            raise BadSettings(f"config {str(files)!r}: expected a mapping of settings, found {type(tree).__name__}")
        places = {
            place: name
            for name, info in self._model.model_fields.items()
            for place in (*reversed(names_of(name, info)), *(_extra(info, "yaml") or ()))
        }
        entries = _leaves(tree)
        for path, value in entries.items():
            wrong = check_entry(path, value, set(places), self._notes)
            if wrong:
                raise BadSettings(f"config {str(files)!r}: {wrong}")
        return {name: entries[place] for place, name in places.items() if entries.get(place) is not None}


def _explain(error: ValidationError, model: type[BaseSettings]) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    expected = first["msg"].removeprefix("Value error, ")
    if not name:
        return expected
    info = model.model_fields.get(name)
    if info is None:
        return without_passwords(f"{name}: {expected}")
    present, *older = names_of(name, info)
    formerly = f" (formerly {', '.join(older)})" if older else ""
    shown = f" = {shown_value(first['input'], url=name.endswith('_url'))!r}" if info.description else ""
    return without_passwords(f"{present}{formerly}{shown}: {expected}")


def load(model: type[Model], flags: dict[str, Any], environ: dict[str, str], notes: list[str] | None = None) -> Model:
    """Merge flags, variables and the file, in this precedence, and check everything.

    Args:
        model: Settings model of the role.
        flags: Parsed flags by field name; those not given are absent. `config` names the file.
        environ: Environment variables.
        notes: Receives warnings about settings that were accepted.

    Raises:
        BadSettings: Names the setting, its value and what was expected.
    """
    given = {name: value for name, value in flags.items() if name != "config"}
    config = flags.get("config") or environ.get(VARIABLE_PREFIX + "CONFIG") or environ.get("CONFIG_FILE")
    sources: list[PydanticBaseSettingsSource] = [InitSettingsSource(model, given), Variables(model, environ)]
    if config:
        sources.append(SettingsFile(model, Path(config), environ, notes if notes is not None else []))
    try:
        return model(_build_sources=(tuple(sources), {}))
    except ValidationError as error:
        raise BadSettings(_explain(error, model)) from error


def read_secret(path: Path, what: str) -> str:
    """Read a secret from a file, without its trailing newline.

    Raises:
        BadSettings: The file cannot be read or is empty; the text never holds the secret.
    """
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSettings(f"{what} file {str(path)!r} cannot be read: {type(error).__name__}") from error
    if not secret:
        raise BadSettings(f"{what} file {str(path)!r} is empty: expected the {what} on its first line")
    return secret
