"""How processes are named, configured, restarted and explained, without starting one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from sheetanchor.errors import BadSettings
from sheetanchor.local.coordinator import SymbolObservation, lock_is_abandoned, seen_of
from sheetanchor.local.dashboard.exposition import difference, histograms, parse, quantile_ms
from sheetanchor.local.dashboard.probe import delay_to_phase_s, message_rates
from sheetanchor.local.processes import RESTART_DELAY_MAX_S, describe_exit, restart_delay_s
from sheetanchor.local.redis_server import (
    BYTES_BASE,
    BYTES_PER_SYMBOL,
    memory_max_bytes,
    parse_version,
    process_start,
    remove_leftovers,
    server_spec,
)
from sheetanchor.local.relay import LINE_LENGTH_MAX, parse_line
from sheetanchor.local.roles import LocalPlan, MarketSource, child_environment, choose_market
from sheetanchor.policy import reanchor_scheduler
from sheetanchor.runtime.command_line import load
from sheetanchor.runtime.settings import LocalSettings
from sheetanchor.store.hot_records import Anchor

NO_PORT = 0


def settings(environ: dict[str, str] | None = None, **flags: Any) -> LocalSettings:
    return load(LocalSettings, flags, environ or {})


def pick_port() -> int:
    return 40_001


def plan(**flags: Any) -> LocalPlan:
    chosen = settings(**flags)
    return LocalPlan(
        chosen, choose_market(chosen, pick_port), "redis://:secret@127.0.0.1:6379/0", {"PATH": "/bin"}, 1_800_000_000.0
    )


# -- restarts ---------------------------------------------------------------------------------------------------------


def test_first_death_costs_no_time_and_later_ones_double() -> None:
    """A single crash is repaired at once; delays of a crash loop grow up to a bound."""
    delays = [restart_delay_s(deaths, 1.0) for deaths in (1, 2, 3, 4, 20, 10_000)]

    assert [0.0, 0.25, 0.5, 1.0, RESTART_DELAY_MAX_S, RESTART_DELAY_MAX_S] == delays


def test_restarts_are_spread() -> None:
    """Luck decides between half and all of the delay."""
    assert (0.5, 1.0) == (restart_delay_s(4, 0.0), restart_delay_s(4, 1.0))


@pytest.mark.parametrize(
    ("code", "text"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "killed by SIGKILL"), (-99, "killed by signal 99")]
)
def test_exit_in_words(code: int, text: str) -> None:
    """People read names of signals, not numbers."""
    assert text == describe_exit(code)


# -- market and roles -------------------------------------------------------------------------------------------------


def test_without_urls_the_market_is_a_local_exchange() -> None:
    """It needs no key of the user's."""
    expected = MarketSource("local", "ws://127.0.0.1:40001", "http://127.0.0.1:40001", "local", 40_001)

    assert expected == choose_market(settings(), pick_port)


def test_with_urls_no_exchange_is_started() -> None:
    """The origins are taken as they are; on this machine any key will do."""
    market = choose_market(settings(ws_url="ws://127.0.0.1:9", rest_url="http://127.0.0.1:9"), pick_port)

    assert ("external", "ws://127.0.0.1:9", 0) == (market.kind, market.ws_url, market.exchange_port)


def test_live_needs_a_key() -> None:
    """The real exchange refuses streams without one; that is said before anything is started."""
    with pytest.raises(BadSettings, match="BINANCE_API_KEY"):
        choose_market(settings(live=True), pick_port)


def test_live_uses_the_real_origins() -> None:
    """With a key the real exchange is used."""
    market = choose_market(settings({"BINANCE_API_KEY": "k"}, live=True), pick_port)

    assert ("live", "wss://stream-sbe.binance.com:9443", "k") == (market.kind, market.ws_url, market.api_key)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"ws_url": "ws://127.0.0.1:1"}, "rest_url"),
        ({"live": True, "ws_url": "ws://h", "rest_url": "http://h"}, "live"),
        ({"ws_url": "ws://exchange.example", "rest_url": "http://exchange.example"}, "ws_url"),
        ({"for_": "-1"}, "for"),
        ({"for_": "soon"}, "for"),
        ({"http_port": "70000"}, "http_port"),
        ({"speed": "0"}, "speed"),
        ({"symbol": ["btcusdt"]}, "symbol"),
        ({"symbol": ["BTCUSDT", "BTCUSDT"]}, "symbol"),
        ({"redis_url": "http://127.0.0.1"}, "redis_url"),
        ({"api_key_file": "/nonexistent/key"}, "key"),
    ],
)
def test_bad_settings_name_the_setting(flags: dict[str, Any], named: str) -> None:
    """Every wrong setting is refused with its name before a process is started."""
    with pytest.raises(BadSettings, match=named):
        choose_market(settings(**flags), pick_port)


def test_redis_password_is_in_no_command_line() -> None:
    """All users of a machine can read command lines, so the URL is passed in the environment."""
    specs = [
        plan().processor(pick_port),
        *plan().replicas(pick_port),
        *plan().ingestors(pick_port),
        plan().reanchor("BTCUSDT", start("rebuild"), "id"),
    ]

    assert not [spec.name for spec in specs if "secret" in " ".join(spec.command)]
    assert ["redis://:secret@127.0.0.1:6379/0"] * 6 == [spec.environ["SHEETANCHOR_REDIS_URL"] for spec in specs]


def test_key_reaches_only_the_ingestors() -> None:
    """Who does not need a secret does not get it."""
    p = plan()
    specs = [p.exchange(), p.processor(pick_port), *p.replicas(pick_port), *p.ingestors(pick_port)]

    assert ["ingest/a", "ingest/b"] == [spec.name for spec in specs if "BINANCE_API_KEY" in spec.environ]


def start(kind: reanchor_scheduler.Kind) -> reanchor_scheduler.Start:
    return reanchor_scheduler.Start(
        kind, "why", "rule", reanchor_scheduler.Request("immediate_reanchor", "why", "rule", 0)
    )


@pytest.mark.parametrize(("kind", "flagged"), [("rebuild", False), ("validate", True)])
def test_validation_is_passed_to_the_run(kind: reanchor_scheduler.Kind, flagged: bool) -> None:
    """A run that is only to check is started as such."""
    command = plan().reanchor("BTCUSDT", start(kind), "id").command

    assert flagged is ("--validate-only" in command)


def test_every_symbol_reaches_every_role() -> None:
    """Symbols are handed on one flag each."""
    p = plan(symbol=["BTCUSDT", "ETHUSDT"])
    specs = [p.exchange(), p.processor(pick_port), *p.replicas(pick_port), *p.ingestors(pick_port)]

    assert {2} == {spec.command.count("--symbol") for spec in specs}


def test_children_do_not_inherit_what_sets_the_supervisor() -> None:
    """Its own variables and file stay with it; those of single roles go on."""
    given = {"SHEETANCHOR_HTTP_PORT": "1", "SHEETANCHOR_CONFIG": "f", "SHEETANCHOR_GAP_WAIT_MS": "5", "HOME": "/root"}

    inherited = child_environment(given)

    assert {"SHEETANCHOR_GAP_WAIT_MS": "5", "HOME": "/root", "PYTHONUNBUFFERED": "1"} == inherited


# -- the embedded server ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1", True),
        ("Redis server v=6.2.14 sha=00000000:0", False),
        ("Valkey server v=8.0.1 sha=00000000:0", True),
        ("Valkey server v=7.2.5 sha=00000000:0", False),
        ("Valkey server v=10.0.0", True),
    ],
)
def test_server_versions(text: str, usable: bool) -> None:
    """Redis from 7 and Valkey from 8 run the function library."""
    binary = parse_version("/bin/x", text)

    assert binary is not None
    assert usable is binary.usable


def test_something_else_is_no_server() -> None:
    """A program of the right name that says something else is not run."""
    assert parse_version("/bin/x", "KeyDB server v=6.3.4") is None


def test_memory_is_bounded_by_the_machine() -> None:
    """The server may hold what the streams can reach, but never more than half of the machine."""
    assert BYTES_BASE + 2 * BYTES_PER_SYMBOL == memory_max_bytes(2, 2**40)
    assert 2**29 == memory_max_bytes(2, 2**30)


def test_server_keeps_nothing_on_disk_and_opens_no_port(tmp_path: Path) -> None:
    """Only a socket in its private folder, and no eviction."""
    binary = parse_version("/bin/x", "Valkey server v=9.1.0")
    assert binary is not None

    command = server_spec(binary, tmp_path, 1).command

    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert ("0", "", "no", "noeviction", "yes") == tuple(
        options[f"--{name}"] for name in ("port", "save", "appendonly", "maxmemory-policy", "lazyfree-lazy-server-del")
    )


def test_folders_of_dead_supervisors_are_removed(tmp_path: Path) -> None:
    """A folder is removed if its process has ended or its pid belongs to another process; our own folder stays."""
    own = tmp_path / f"sheetanchor-{os.getpid()}-{process_start(os.getpid())}"
    reused, dead = tmp_path / f"sheetanchor-{os.getpid()}-7", tmp_path / "sheetanchor-4194999-1"
    other = tmp_path / "sheetanchor-notes-old"
    for folder in (own, reused, dead, other):
        (folder / "inner").mkdir(parents=True)

    removed = remove_leftovers([tmp_path])

    assert {reused, dead} == set(removed)
    assert {own, other} == set(tmp_path.iterdir())


# -- logs -------------------------------------------------------------------------------------------------------------


def test_json_line_goes_on_as_it_is() -> None:
    """What a role logs is not changed; a warning becomes a notice besides."""
    line = json.dumps({"level": "WARNING", "message": "connection lost", "service": "x"})

    passed, notice = parse_line("ingest/a", line, 5)

    assert line == passed
    assert notice is not None
    assert ("ingest/a", "warning", "connection lost", 5) == (notice.source, notice.level, notice.text, notice.at_us)


@pytest.mark.parametrize("line", ["Segmentation fault", "[1, 2]", '{"no": "message"}', "ValueError: x"])
def test_any_other_line_becomes_a_json_line(line: str) -> None:
    """Whatever a process prints, our stderr holds JSON lines only."""
    passed, notice = parse_line("process", line, 5)

    assert (line, "process") == (json.loads(passed)["message"], json.loads(passed)["service"])
    assert notice is not None


def test_receipt_on_stdout_is_no_warning() -> None:
    """What a run prints as its result goes on as a line of its own kind."""
    passed, notice = parse_line("reanchor", '{"id": "r", "message": "epoch 1"}', 5)

    assert ("INFO", None) == (json.loads(passed)["level"], notice)


def test_long_lines_are_cut() -> None:
    """One line cannot fill the memory."""
    passed, _ = parse_line("process", "x" * 10 * LINE_LENGTH_MAX, 5)

    assert LINE_LENGTH_MAX == len(json.loads(passed)["message"])


# -- what is observed -------------------------------------------------------------------------------------------------


def observed(**changes: Any) -> SymbolObservation:
    anchor = Anchor(epoch=3, state="anchored", stamp_us=1_000_000_000)
    values: dict[str, Any] = {"anchor": anchor, "lock_holder": "", "lock_ttl_ms": -2, "now_us": 1_000_042_000}
    return SymbolObservation(**(values | changes))


@pytest.mark.parametrize(("later_us", "fresh"), [(0, True), (4_900_000, True), (5_000_000, False)])
def test_freshness_is_the_age_of_the_last_event(later_us: int, fresh: bool) -> None:
    """A state whose last market event is five seconds old is not fresh."""
    assert fresh is seen_of(observed(now_us=1_000_000_000 + later_us)).fresh


@pytest.mark.parametrize(
    ("holder", "ttl_ms", "abandoned"),
    [("", -2, False), ("x", 290_000, False), ("x", 161_000, False), ("x", 159_000, True), ("x", -1, False)],
)
def test_lock_older_than_any_run_is_abandoned(holder: str, ttl_ms: int, abandoned: bool) -> None:
    """A run ends within two minutes, so the owner of an older lock is gone."""
    assert abandoned is lock_is_abandoned(observed(lock_holder=holder, lock_ttl_ms=ttl_ms))


# -- what is measured -------------------------------------------------------------------------------------------------

PAGE = """# HELP sheetanchor_inference_stage_seconds Time by stage
# TYPE sheetanchor_inference_stage_seconds histogram
sheetanchor_inference_stage_seconds_bucket{le="0.001",stage="read"} 10.0
sheetanchor_inference_stage_seconds_bucket{le="0.002",stage="read"} 20.0
sheetanchor_inference_stage_seconds_bucket{le="+Inf",stage="read"} 20.0
sheetanchor_inference_stage_seconds_count{stage="read"} 20.0
ingestor_sbe_messages_total{stream="depth",symbol="BTCUSDT"} 300.0
ingestor_sbe_messages_total{stream="trade",symbol="BTCUSDT"} 100.0
ingestor_sbe_connection_status{line="a"} 1.0
ingestor_sbe_messages_total{stream="depth",symbol="BTCUSDT"} what
"""


def test_metrics_page_is_read() -> None:
    """Only what is shown is read, and a malformed line harms nothing."""
    samples = parse(PAGE)

    assert 6 == len(samples)
    assert ("ingestor_sbe_connection_status", {"line": "a"}, 1.0) in samples


def test_quantiles_are_estimated_within_buckets() -> None:
    """Half of the observations lie in the first bucket."""
    buckets = histograms(parse(PAGE))["read"]

    assert (0.5, 1.0, 2.0) == tuple(quantile_ms(buckets, share) for share in (0.25, 0.5, 1.0))
    assert quantile_ms({}, 0.5) is None


def test_window_begins_anew_when_a_process_was_restarted() -> None:
    """Counters that went down belong to a new process."""
    assert {1.0: 3.0} == difference({1.0: 8.0}, {1.0: 5.0})
    assert {1.0: 2.0} == difference({1.0: 2.0}, {1.0: 5.0})


def test_message_rate_is_taken_between_two_looks() -> None:
    """All streams of a symbol count; the first poll gives no rate."""
    counts, rates = message_rates(parse(PAGE), {"BTCUSDT": 200.0}, 2.0)

    assert ({"BTCUSDT": 400.0}, {"BTCUSDT": 100.0}) == (counts, rates)
    assert {} == message_rates(parse(PAGE), {}, 2.0)[1]


@pytest.mark.parametrize(("now_us", "delay_s"), [(0, 1.0), (900_000, 0.1), (1_000_000, 0.0), (1_500_000, 1.5)])
def test_roles_are_asked_in_the_middle_of_a_slot(now_us: int, delay_s: float) -> None:
    """No replica is asked for its metrics when it should predict."""
    assert delay_s == pytest.approx(delay_to_phase_s(now_us))
