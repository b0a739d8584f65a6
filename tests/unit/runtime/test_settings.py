from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from sheetanchor.__main__ import ROLES, build_parser, main
from sheetanchor.errors import BadSettings
from sheetanchor.runtime import settings
from sheetanchor.runtime.command_line import load, read_secret, variable_of

SBE_YAML = """
service_name: bitcoin-ingestor-sbe
mode: sbe
binance:
  sbe_ws_url: wss://stream-sbe.binance.com:9443
  api_key: ${BINANCE_API_KEY}
  symbols: [BTCUSDT]
  stream_types: [trade, bestBidAsk, depth]
  reconnect_interval_seconds: 5
aws:
  region: us-east-1
  kinesis:
    streams: {trade: market-sbe-trade, bestbidask: market-sbe-bestbidask, depth: market-sbe-depth}
    batch_size: 500
    flush_interval_seconds: 1
health:
  port: 8080
  host: 0.0.0.0
metrics:
  enable_prometheus: true
  prometheus_port: 9090
"""


def write(folder: Path, text: str) -> str:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_file(tmp_path: Path) -> None:
    """The order is flag, variable, file, default."""
    config = write(tmp_path, "line: file\nsilence_s: 9\nflush_ms: 4\n")
    environ = {"SHEETANCHOR_LINE": "variable", "SHEETANCHOR_SILENCE_S": "8"}

    loaded = load(settings.IngestSettings, {"config": config, "line": "flag"}, environ)

    assert ("flag", 8.0, 4.0, 30.0) == (loaded.line, loaded.silence_s, loaded.linger_ms, loaded.connection_loss_s)


def test_a_file_written_for_the_older_layout_loads_unchanged(tmp_path: Path) -> None:
    """Nested names of the ingestor's older files mean the same settings."""
    config = write(tmp_path, SBE_YAML)

    notes: list[str] = []
    loaded = load(settings.IngestSettings, {"config": config}, {"BINANCE_API_KEY": "k"}, notes)

    assert (5.0, 9090) == (loaded.reconnect_delay_s, loaded.metrics_port)
    assert 6 == len(notes), "what has no effect is told by name"
    assert "aws.kinesis.batch_size has no effect: frames go to Redis Streams, and nothing is sent to AWS" in notes
    assert ["BTCUSDT"] == loaded.symbol
    assert ["trade", "bestBidAsk", "depth"] == loaded.streams
    assert (8080, "0.0.0.0", "bitcoin-ingestor-sbe") == (loaded.http_port, loaded.http_host, loaded.service_name)
    assert loaded.api_key is not None
    assert "k" == loaded.api_key.get_secret_value()


@pytest.mark.parametrize(
    ("role", "flags", "expected"),
    [
        ("ingest", {"symbol": ["btcusdt"]}, ("symbol", "btcusdt", "capital letters")),
        ("ingest", {"symbol": ["A" * 21]}, ("symbol", "expected 2 to 20")),
        ("ingest", {"symbol": ["BTCUSDT", "BTCUSDT"]}, ("symbol", "different symbols")),
        ("ingest", {"line": "Line A"}, ("line = 'Line A'", "lower-case")),
        ("ingest", {"redis_url": "http://x"}, ("redis_url = 'http://x'", "redis://")),
        ("ingest", {"ws_url": "https://x"}, ("ws_url = 'https://x'", "ws://")),
        ("ingest", {"ws_url": "ws://x:notaport"}, ("ws_url", "expected a URL")),
        ("ingest", {"mode": "fax"}, ("mode = 'fax'", "'sbe'")),
        ("ingest", {"http_port": "70000"}, ("http_port = '70000'", "65535")),
        ("process", {"retry_max_attempts": "0"}, ("retry_max_attempts = '0'", "greater than or equal to 1")),
        ("process", {"retry_max_attempts": "11"}, ("retry_max_attempts = '11'", "less than or equal to 10")),
        ("infer", {"health_check_interval_seconds": "x"}, ("health_check_interval_seconds = 'x'", "integer")),
        ("infer", {"health_check_interval_seconds": "61"}, ("health_check_interval_seconds", "60")),
        ("process", {"circuit_breaker_threshold": "4"}, ("circuit_breaker_threshold = '4'", "5")),
        ("process", {"circuit_breaker_timeout_seconds": "301"}, ("circuit_breaker_timeout_seconds", "300")),
        ("process", {"retry_initial_delay_ms": "99"}, ("retry_initial_delay_ms = '99'", "100")),
        ("reanchor", {"depth_limit": "6000"}, ("depth_limit = '6000'", "5000")),
        ("exchange", {"speed": "0"}, ("speed = '0'", "greater than 0")),
        ("local", {"ws_url": "ws://127.0.0.1:1"}, ("rest_url", "go together")),
        ("local", {"for_": "-1"}, ("for = '-1'", "0")),
    ],
)
def test_a_bad_setting_is_one_clear_error(role: str, flags: dict[str, Any], expected: tuple[str, ...]) -> None:
    """The error names the setting, its value and what was expected."""
    with pytest.raises(BadSettings) as caught:
        load(ROLES[role].model, flags, {})

    for part in expected:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_file_entry_is_refused_by_name(tmp_path: Path) -> None:
    """A misspelt entry is not ignored."""
    config = write(tmp_path, "sillence_s: 9\n")

    with pytest.raises(BadSettings, match=r"unknown setting 'sillence_s'.*silence_s"):
        load(settings.IngestSettings, {"config": config}, {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n- b\n", "expected a mapping"),
        ("a: [1\n", "while parsing"),
        ("line: ${NO_SUCH_NAME}\n", "NO_SUCH_NAME.*not set"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, expected: str) -> None:
    """The error names the file and why."""
    config = write(tmp_path, text)

    with pytest.raises(BadSettings, match=expected) as caught:
        load(settings.IngestSettings, {"config": config}, {})

    assert "settings.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("model", "text", "expected"),
    [
        (settings.IngestSettings, "metrics: {enable_prometheus: false}\n", "enable_prometheus = False: expected true"),
        (settings.IngestSettings, "metrics: {prometheus_prot: 1}\n", "unknown setting 'metrics.prometheus_prot'"),
        (settings.IngestSettings, "service: {nme: x}\n", "unknown setting 'service.nme'"),
        (settings.IngestSettings, "retry_max_attempts: 5\n", "'retry_max_attempts' would have no effect in this role"),
        (settings.InferSettings, "reliability: {circuit_breaker_threshold: 9}\n", "would have no effect in this role"),
        (settings.InferSettings, "metrics: {prometheus_port: 9090}\n", "unknown setting 'metrics.prometheus_port'"),
        (settings.IngestSettings, "binance: {reconnect_interval_seconds: 99}\n", "less than or equal to 60"),
        (settings.IngestSettings, "binance: {api_secret: '${NO_SUCH_SECRET}'}\n", "NO_SUCH_SECRET.*not set"),
    ],
)
def test_no_entry_is_without_effect_and_without_a_word(
    tmp_path: Path, model: type[settings.Common], text: str, expected: str
) -> None:
    """An entry has an effect, is refused by name with the reason, or is reported to have no effect."""
    config = write(tmp_path, text)

    with pytest.raises(BadSettings, match=expected):
        load(model, {"config": config}, {})


@pytest.mark.parametrize("role", sorted(ROLES))
def test_every_setting_is_read_somewhere(role: str) -> None:
    """No setting of a role is accepted and then left alone: some code reads it by its name."""
    code = "".join(path.read_text(encoding="utf-8") for path in Path(settings.__file__).parents[1].rglob("*.py"))
    handed_on = {f"reanchor_{name}" for name in settings.ReanchorSettings.model_fields}  # see `reanchor_environment`

    unread = [
        name
        for name in set(ROLES[role].model.model_fields) - handed_on
        if not re.search(rf"settings\.{name}\b|own\.{name}\b|loaded\.{name}\b|self\.{name}\b", code)
    ]

    assert [] == unread


def test_a_dotted_entry_acts_as_the_nested_one(tmp_path: Path) -> None:
    """What is known by its path is taken, however it is written."""
    config = write(tmp_path, "binance.symbols: [ETHUSDT]\nredis: {url: 'redis://a'}\n")

    loaded = load(settings.IngestSettings, {"config": config}, {})

    assert (["ETHUSDT"], "redis://a") == (loaded.symbol, loaded.redis_url)


def test_a_secret_of_the_exchange_is_taken_and_not_shown(tmp_path: Path) -> None:
    """A file that names it by a variable loads; it is no flag and does not print."""
    config = write(tmp_path, "binance: {api_secret: '${BINANCE_API_SECRET}'}\n")

    loaded = load(settings.IngestSettings, {"config": config}, {"BINANCE_API_SECRET": "canary"})

    assert loaded.api_secret is not None
    assert "canary" not in repr(loaded)


def test_a_missing_file_is_named() -> None:
    """The error names the file."""
    with pytest.raises(BadSettings, match=r"nowhere\.yaml"):
        load(settings.IngestSettings, {"config": "nowhere.yaml"}, {})


def test_a_list_in_a_variable_is_separated_by_commas() -> None:
    """Two symbols fit into one variable."""
    loaded = load(settings.InferSettings, {}, {"SHEETANCHOR_SYMBOL": "BTCUSDT, ETHUSDT"})

    assert ["BTCUSDT", "ETHUSDT"] == loaded.symbol


def test_a_secret_has_no_flag_and_is_not_shown() -> None:
    """The API key is read from its variable, is no flag, and does not print."""
    loaded = load(settings.IngestSettings, {}, {"BINANCE_API_KEY": "canary"})

    assert "canary" not in repr(loaded)
    with pytest.raises(SystemExit):
        build_parser().parse_args(["ingest", "--api-key", "x"])


@pytest.mark.parametrize("role", sorted(ROLES))
def test_help_names_every_setting_of_a_role(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each field with a description is a flag in the help text."""
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args([role, "--help"])

    shown = capsys.readouterr().out
    fields = [name for name, info in ROLES[role].model.model_fields.items() if info.description]
    assert 0 == caught.value.code
    assert [] == [name for name in fields if "--" + name.rstrip("_").replace("_", "-") not in shown]


@pytest.mark.parametrize(
    ("role", "name", "older"), [("ingest", "linger_ms", "flush_ms"), ("process", "write_interval_ms", "flush_ms")]
)
def test_an_older_name_sets_the_same(role: str, name: str, older: str, tmp_path: Path) -> None:
    """Flags, variables and files of before go on working; where both names stand in one place, the new one counts."""
    model, flag = ROLES[role].model, "--" + older.replace("_", "-")
    (tmp_path / "lower").mkdir()
    old_file, lower_file = write(tmp_path, f"{older}: 7\n"), write(tmp_path / "lower", f"{older}: 8\n{name}: 7\n")

    given = vars(build_parser().parse_args([role, flag, "7"]))
    del given["role"]
    variable, old_variable = (f"SHEETANCHOR_{word}".upper() for word in (name, older))
    ways: list[tuple[dict[str, Any], dict[str, str]]] = [
        (given, {variable: "8"}),
        ({"config": old_file}, {}),
        ({"config": lower_file}, {}),
        ({"config": lower_file}, {old_variable: "7"}),
        ({}, {old_variable: "7"}),
        ({}, {old_variable: "8", variable: "7"}),
    ]

    assert [7.0] * len(ways) == [getattr(load(model, *way), name) for way in ways]
    with pytest.raises(BadSettings, match=rf"^{name} \(formerly {older}\) = '5000': "):
        load(model, {older: "5000"}, {})


def test_values_of_flags_are_taken_as_they_are() -> None:
    """No comma splits a list, and no special word means that there is no value."""
    faults = ["drop:n=3,at=30,line=a", '["x"]', "null"]

    words = [word for fault in faults for word in ("--fault", fault)]
    given = vars(build_parser().parse_args(["exchange", *words, "--burst", "null"]))
    del given["role"]
    loaded = load(settings.ExchangeSettings, given, {})

    assert (faults, "null") == (loaded.fault, loaded.burst)


def test_names_of_variables_are_exact() -> None:
    """Only the documented name is read, so that no variable of another program sets anything."""
    strangers = {
        "sheetanchor_line": "x",
        "LINE": "x",
        "SHEETANCHOR_API_KEY": "x",
        "api_key": "x",
        "SHEETANCHOR_FOR_": "9",
    }

    assert "a" == load(settings.IngestSettings, {}, strangers).line
    assert load(settings.IngestSettings, {}, strangers).api_key is None
    assert (0.0, 9.0) == tuple(
        load(settings.LocalSettings, {}, environ).for_ for environ in (strangers, {"SHEETANCHOR_FOR": "9"})
    )


def test_only_loading_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings that are made of values have those values and defaults, whatever the process' environment is."""
    monkeypatch.setenv("SHEETANCHOR_LINE", "b")
    monkeypatch.setenv("LINE", "b")

    assert "a" == settings.IngestSettings().line
    assert "a" == settings.IngestSettings.model_validate({}).line
    assert "a" == load(settings.IngestSettings, {}, {}).line


@pytest.mark.parametrize(
    ("role", "expected"),
    [
        ("ingest", "--log-level debug|info|warning|error least severe log line to print (default info) --"),
        (
            "ingest",
            "--streams trade|bestBidAsk|depth stream type to subscribe to; repeat for several (default trade best",
        ),
        ("ingest", "--redis-password-file PATH file that holds the Redis password --"),
        (
            "ingest",
            "--linger-ms X, --flush-ms X longest time in milliseconds that a frame waits for others (default 5.",
        ),
        ("local", "--live, --no-live use the real exchange (needs BINANCE_API_KEY) (default False) --"),
        ("local", "--for X end this many seconds after"),
        ("train", "--hidden N hidden layer size to try; repeat for several (default 16)"),
    ],
)
def test_help_is_in_words_of_the_field(role: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Placeholders, choices and defaults are shown as a user writes them, not as Python has them."""
    with pytest.raises(SystemExit):
        build_parser().parse_args([role, "--help"])

    assert expected in " ".join(capsys.readouterr().out.split())


def test_only_the_role_that_is_asked_for_gets_flags() -> None:
    """All roles' flags would slow every start."""
    parser = build_parser(["reanchor"])

    assert "manual" == parser.parse_args(["reanchor", "--reason", "manual"]).reason
    with pytest.raises(SystemExit):
        parser.parse_args(["ingest", "--line", "b"])


def test_settings_survive_being_rendered_as_variables() -> None:
    """What one process puts into another's environment is what that one reads."""
    first = load(settings.ProcessSettings, {"symbol": ["BTCUSDT", "ETHUSDT"], "gap_wait_ms": "150"}, {})
    rendered = {}
    for name, info in settings.ProcessSettings.model_fields.items():
        value = getattr(first, name)
        if value is not None:
            rendered[variable_of(name, info)] = ",".join(map(str, value)) if isinstance(value, list) else str(value)

    assert first == load(settings.ProcessSettings, {}, rendered)


def test_bad_settings_exit_with_two_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The command says what is wrong in one line on stderr and exits with 2."""
    code = main(["infer", "--symbol", "btc"])

    shown = capsys.readouterr()
    assert 2 == code
    assert "" == shown.out
    assert ["sheetanchor infer: symbol = 'btc': expected 2 to 20 capital letters or digits, for instance BTCUSDT"] == [
        line for line in shown.err.splitlines() if line
    ]


def test_a_secret_file_is_read_without_its_newline(tmp_path: Path) -> None:
    """Editors end files with a newline; the secret has none."""
    path = tmp_path / "key"
    path.write_text("secret\n", encoding="utf-8")

    assert "secret" == read_secret(path, "API key")


@pytest.mark.parametrize("content", [None, "", "  \n"])
def test_a_missing_or_empty_secret_file_is_named(tmp_path: Path, content: str | None) -> None:
    """The error names the file and what it should hold."""
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content, encoding="utf-8")

    with pytest.raises(BadSettings, match=r"API key file .*key"):
        read_secret(path, "API key")


@pytest.mark.parametrize(
    "url",
    [
        "ws://127.0.0.1:9",
        "ws://[::1]:9",
        "ws://localhost",
        "ws://exchange:8090",
        "ws://exchange.space.svc",
        "wss://a.example",
    ],
)
def test_a_key_may_go_to_this_machine_this_cluster_or_encrypted(url: str) -> None:
    """Plain WebSockets are accepted where the traffic cannot be intercepted on a network."""
    assert url == load(settings.IngestSettings, {"ws_url": url}, {"BINANCE_API_KEY": "secret"}).ws_url


@pytest.mark.parametrize(
    "url", ["ws://stream-sbe.binance.com:9443", "ws://192.0.2.7", "ws://exchange.space", "ws://svc.example"]
)
def test_a_key_does_not_go_over_a_network_in_clear(url: str, tmp_path: Path) -> None:
    """One clear error names the remedy and never the key; without a key anything may be plain."""
    for environment, flags in (({"BINANCE_API_KEY": "hidden"}, {}), ({}, {"api_key_file": tmp_path / "key"})):
        with pytest.raises(BadSettings, match="expected wss://, or the API key would go") as caught:
            load(settings.IngestSettings, {"ws_url": url, **flags}, environment)
        assert "hidden" not in str(caught.value)

    assert url == load(settings.IngestSettings, {"ws_url": url}, {"BINANCE_API_KEY": "none"}).ws_url
    assert url == load(settings.IngestSettings, {"ws_url": url}, {}).ws_url
