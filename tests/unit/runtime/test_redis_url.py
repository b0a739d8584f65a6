"""What a Redis URL may say, and that no error shows the password in one, wherever it stands and however wrong it is."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from redis.asyncio.connection import parse_url

from sheetanchor.errors import BadSettings
from sheetanchor.runtime import logs, settings
from sheetanchor.runtime.command_line import load
from sheetanchor.runtime.redis_url import check, masked, without_passwords
from sheetanchor.store.redis_client import redis_client
from sheetanchor_operator.api.pipeline import BadSpec, parse

SECRET = "hunter2"
BAD = [
    "redis://u:hunter2@host:99999/0",
    "redis://u:hunter2@host:port/0",
    "redis://u:hunter2@host/0?db=1",
    "redis://u:hunter2@host/zero",
    "redis://u:hunter2@",
    "redis://:hunter2@host:x",
    "redis://u:hunter2",
    "redis://:hunter2",
    "redis://:hun/ter2@host".replace("hun/ter2", "a/hunter2"),
    "redis://u:a@hunter2@host:x",
    "redis://u:hunter2 @host:x",
    "redis://host/0?password=hunter2",
    "redis://host/0?username=u&password=hunter2",
    "redis://host/0#hunter2",
    "rediss://host/0?ssl_cert_reqs=none&password=hunter2",
    "unix:///path?password=hunter2",
    "http://u:hunter2@host",
    "u:hunter2@host:6379",
    "u:hunter2",
    "sentinel://u:hunter2@a,,b/s",
    "sentinel://u:hunter2@a:99999/s",
    "sentinel://:hunter2",
    "sentinel://u:hunter2@a/s?password=hunter2",
    "sentinels://u:hunter2@a b/s",
]

ROLES: list[type[BaseModel]] = [
    one
    for one in vars(settings).values()
    if isinstance(one, type) and issubclass(one, BaseModel) and one.__name__.endswith("Settings")
]
URLS = [(role, name) for role in ROLES for name in role.model_fields if name.endswith("_url")]


def refusal(do: Callable[[], Any]) -> str:
    """What is said against something, "" if nothing is."""
    try:
        do()
    except (BadSettings, BadSpec) as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("role", "name"), URLS, ids=lambda one: getattr(one, "__name__", one))
@pytest.mark.parametrize("url", BAD)
def test_no_setting_of_any_role_shows_a_password(role: type[BaseModel], name: str, url: str, tmp_path: Path) -> None:
    """By flag, variable and file; those that another scheme's setting takes are accepted, not shown."""
    file = tmp_path / "settings.yaml"
    file.write_text(json.dumps({name: url}))
    for flags, environ in (
        ({name: url}, {}),
        ({}, {"SHEETANCHOR_" + name.upper(): url}),
        ({"config": str(file)}, {}),
    ):
        reported = refusal(lambda flags=flags, environ=environ: load(role, flags, environ))
        assert reported or not name.startswith("redis")
        assert SECRET not in reported


@pytest.mark.parametrize("url", BAD)
def test_a_client_shows_none_either(url: str) -> None:
    """This holds also for clients that are made without the settings."""
    with pytest.raises(BadSettings) as error:
        redis_client(url)

    assert SECRET not in str(error.value)


@pytest.mark.parametrize("url", BAD)
@pytest.mark.parametrize("field", ["redis", "websocket", "rest"])
def test_nor_does_the_status_of_a_pipeline(url: str, field: str) -> None:
    """The operator's words about a specification that a server has taken without the rules of the definition."""
    spec: dict[str, Any] = {
        "redis": {"redis": {"external": {"url": url}}},
        "websocket": {"exchange": {"websocketURL": url}},
        "rest": {"exchange": {"restURL": url}},
    }[field]
    body = {"metadata": {"name": "btc", "namespace": "x"}, "spec": {"symbols": ["BTCUSDT"], **spec}}

    reported = refusal(lambda: parse(body))

    assert reported or field != "redis"
    assert SECRET not in reported


@pytest.mark.parametrize(
    "url", [url for url in BAD if "://" in url and " " not in url and ("@" in url or "password=" in url)]
)
def test_nor_does_a_line_of_the_log(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever writes it, and in the trace of an error too."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        logs.set_up("test")
        logging.getLogger("x").error("cannot reach %s", url)
        logging.getLogger("x").error("failed", exc_info=ValueError(f"of {url!r}"))
    finally:
        root.handlers[:], root.level = before, level

    reported = capsys.readouterr().err
    assert 2 == len([json.loads(line) for line in reported.splitlines()])
    assert "hunter2" not in reported.replace("#hunter2", "")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://u@h:6379/0", "redis://u@h:6379/0"),
        ("redis://u:p@h:6379/0", "redis://u:***@h:6379/0"),
        ("rediss://:p@[::1]:6380/2", "rediss://:***@[::1]:6380/2"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("sentinel://u:p@a:1,[::1]:2/s", "sentinel://u:***@a:1,[::1]:2/s"),
        ("redis://h/0?a=b", "redis://h/0?***"),
    ],
)
def test_a_url_that_is_shown_can_be_recognised(url: str, shown: str) -> None:
    """Only what may be secret is left out."""
    assert shown == masked(url)
    assert shown == masked(shown)


TEXT = st.text(st.characters(blacklist_categories=["Cs"]), max_size=12)


@given(TEXT, TEXT, st.sampled_from(["redis", "rediss", "sentinel", "unix", "http"]))
def test_no_password_in_a_login_is_shown(user: str, more: str, scheme: str) -> None:
    """Whatever characters are in it, and whatever comes after."""
    login = user.replace(":", "").replace("/", "").replace("@", "")

    assert SECRET not in masked(f"{scheme}://{login}:{more}{SECRET}{more}@h{more}")


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40))
def test_whatever_is_accepted_changes_nothing_but_where_and_who(rest: str) -> None:
    """The client takes host, port, database, user and password from a URL, and nothing that decides about checks."""
    try:
        url = check(f"rediss://{rest}")
    except ValueError:
        return

    assert set(parse_url(url)) <= {"host", "port", "db", "username", "password", "connection_class"}


@pytest.mark.parametrize(
    "query", ["ssl_cert_reqs=none", "ssl_check_hostname=False", "ssl_ca_certs=/x", "db=1", "x", ""]
)
@pytest.mark.parametrize(
    "url", ["redis://h/0", "rediss://h:6380/0", "unix:///path", "sentinel://h/s", "sentinels://h/s"]
)
def test_a_url_has_no_query(url: str, query: str) -> None:
    """So that none can switch off how a server is checked."""
    with pytest.raises(ValueError, match="expected"):
        check(f"{url}?{query}")


@pytest.mark.parametrize("url", ["rediss://u@h:6380/1", "sentinels://u@a,b/s"])
def test_tls_checks_certificate_and_name_whatever_the_library_would_do(url: str) -> None:
    """Said outright to each connection that is made."""
    kept = redis_client(url).connection_pool.connection_kwargs

    assert ("required", True) == (kept["ssl_cert_reqs"], kept["ssl_check_hostname"])


def test_other_text_stays_as_it_is() -> None:
    """What has no login and no password in it."""
    for text in ("a=b", "see https://example.com/a?b=c", "10:20 a@b", "redis://h:6379/0 is away", ""):
        assert text == without_passwords(text)
