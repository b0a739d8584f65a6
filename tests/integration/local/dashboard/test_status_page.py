"""The status page over HTTP: complete in itself, and the JSON it draws itself from."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from sheetanchor.local.dashboard import page
from sheetanchor.web.server import Health, create_app, serve
from support.local_samples import FIRST_SLOT, full_status

HOSTILE = "<img src=x onerror=alert(1)>"
FILES = ("/", "/page.css", "/page.js", "/icon.svg")


@pytest.fixture
async def origin() -> AsyncIterator[str]:
    """The page of a run in which everything has happened."""
    health = Health("sheetanchor-local", [])
    app = create_app(health)
    page.add_routes(app, lambda: full_status(text=HOSTILE))
    async with serve(app, health, "127.0.0.1", 0) as port:
        yield f"http://127.0.0.1:{port}"


async def get(url: str) -> tuple[int, dict[str, str], str]:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return answer.status, dict(answer.headers), await answer.text()


@pytest.mark.parametrize("path", FILES)
async def test_page_asks_nobody_else(origin: str, path: str) -> None:
    """No file of the page names another origin; the SVG namespaces are names, not addresses."""
    status, _, text = await get(origin + path)

    assert 200 == status
    assert {"http://www.w3.org/2000/svg"} >= set(re.findall(r"""(?:https?:)?//[^\s"'<>)]+\.[^\s"'<>)]+""", text))


@pytest.mark.parametrize("path", FILES)
async def test_policy_forbids_everything_from_elsewhere(origin: str, path: str) -> None:
    """Even if data became markup, the browser would neither run nor load it."""
    _, headers, _ = await get(origin + path)

    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert ("'none'", "'self'", "'self'") == tuple(
        policy[name] for name in ("default-src", "script-src", "connect-src")
    )
    assert "nosniff" == headers["X-Content-Type-Options"]


async def test_page_has_no_inline_code(origin: str) -> None:
    """The policy would not run it anyway."""
    _, _, html = await get(origin + "/")

    assert [] == re.findall(r"<script(?![^>]*\bsrc=)[^>]*>|\son\w+=|<style|\sstyle=", html)


async def test_script_sets_text_only(origin: str) -> None:
    """What comes from the market or from a log is never made markup."""
    _, _, script = await get(origin + "/page.js")

    assert [] == re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", script)


async def test_every_place_the_script_fills_exists(origin: str) -> None:
    """Script and page have the same elements."""
    _, _, html = await get(origin + "/")
    _, _, script = await get(origin + "/page.js")

    used = set(re.findall(r'(?:at|setText|fill|events)\("([a-z-]+)"', script))
    assert set() == used - set(re.findall(r'\bid="([a-z-]+)"', html))


async def test_page_is_usable_on_a_phone_and_with_a_screen_reader(origin: str) -> None:
    """It has a viewport, a language, a title, and every section is named."""
    _, _, html = await get(origin + "/")

    sections = re.findall(r"<section[^>]*aria-labelledby=\"([a-z-]+)\"", html)
    assert html.count("<section") == len(sections)
    assert [] == [name for name in sections if f'<h2 id="{name}"' not in html]
    assert {True} == {part in html for part in ('<html lang="en">', 'name="viewport"', "<title>", "<noscript>")}


async def test_json_holds_everything_that_is_shown(origin: str) -> None:
    """The answer has a fixed set of parts, and says what has become of each prediction."""
    status, headers, text = await get(origin + "/api/status")

    body: dict[str, Any] = json.loads(text)
    assert (200, "no-store") == (status, headers["Cache-Control"])
    assert {
        "now_us",
        "phase",
        "market",
        "uptime_s",
        "ends_in_s",
        "summary",
        "symbols",
        "stages",
        "roles",
        "redis",
        "redis_memory_mb",
        "notices",
        "page_url",
        "skill_note",
        "dropped_log_lines",
    } == set(body)
    symbol = body["symbols"][0]
    assert {"symbol", "anchor", "predictions", "missed", "gaps", "receipts", "lines"} == set(symbol)
    first = symbol["predictions"][0]
    assert (FIRST_SLOT, FIRST_SLOT * 2_000, FIRST_SLOT * 2_000 + 10_000, False, 61_805.0) == tuple(
        first[name] for name in ("slot", "time_ms", "target_ms", "hit", "outcome_price")
    )


async def test_hostile_text_stays_text(origin: str) -> None:
    """A log line with markup in it reaches the page as JSON, which no browser takes for a document."""
    _, headers, text = await get(origin + "/api/status")

    assert HOSTILE == json.loads(text)["notices"][0]["text"]
    assert "application/json" == headers["Content-Type"]


async def test_health_and_metrics_are_there_too(origin: str) -> None:
    """The supervisor answers what every role answers."""
    statuses = [(await get(origin + path))[0] for path in ("/health", "/health/live", "/health/ready", "/metrics")]

    assert [200, 200, 200, 200] == statuses
