"""Words that the field's own terms have replaced do not come back, in names or in what people read.

Each is listed with what to write instead; docs/glossary.md says what the terms mean.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.repository import ROOT, tracked

NAMES = {
    "beat": "heartbeat",
    "bury": "on_closed",
    "company": "debounce",
    "complaint": "error",
    "dead": "closed, stale",
    "deaf": "no_pong, stale_watch",
    "draft": "plan",
    "forecast": "slot_loop, prediction",
    "forecaster": "slot_loop",
    "greet": "acknowledge",
    "heed": "check",
    "hole": "missing_range",
    "holes": "missing_ranges",
    "intake": "frame_receiver",
    "keeper": "connection_supervisor",
    "keeping": "apply_children",
    "looked": "observed",
    "lookout": "gap_detector",
    "looks": "observations",
    "measures": "pipeline_metrics",
    "mute": "no_first_message",
    "outbox": "send_buffer",
    "outboxes": "send_buffers",
    "pen": "write_ownership",
    "predictor": "model_fallback",
    "pulse": "newest_message",
    "pulses": "newest_messages",
    "reign": "term",
    "scene": "context",
    "sender": "stream_publisher",
    "shelf": "model_cache",
    "sight": "observation",
    "strangers": "unknown_symbols",
    "tell": "report, emit_event, record",
    "tells": "reports",
    "told": "message, reported",
    "trouble": "problem",
    "troubles": "problems",
    "twin": "duplicate_of",
    "vitals": "connection_state",
    "whence": "scheduling_fields",
    "wish": "request",
    "wishes": "requests",
    "world": "replication_history",
}
"""Words within names: of modules, classes, functions, arguments, attributes and variables."""

KEPT_NAMES = {"BEAT_INTERVAL_US"}
"""Names with such a word that stay: of the contract that all roles share."""

DEFINED = {
    "blocks": "shared_fields",
    "grace": "debounce",
    "leading": "leader",
    "moments": "timestamps",
    "parts": "object_meta",
}
"""Words within names of modules, classes and functions only."""

WHOLE_NAMES = {
    "clear_errors": "translate_errors",
    "held_back": "deferred",
    "may_go": "can_delete",
    "redis_set": "topology",
    "speaks_against": "counts_as_failure",
    "stay_away": "honour_retry_after",
    "unlock_for_the_dead": "release_stale_lock",
    "where_and_whence": "scheduling_fields",
}

TEXTS = {
    "anew": "again",
    "beat": "heartbeat, deadline, slot",
    "beside that": "notes",
    "company": "others to join it",
    "deaf": "receives nothing",
    "forecast": "prediction",
    "greet": "acknowledge",
    "anybody": "any client, any user",
    "complaint": "error",
    "everybody": "every client, every user",
    "he": "it, they",
    "hears": "reaches, receives",
    "heed": "check",
    "him": "it, them",
    "hole": "missing range",
    "holes": "missing ranges",
    "his": "its, their",
    "keeper": "connection supervisor",
    "last words": "termination message, last log line",
    "lately": "recently",
    "left to spare": "redundancy",
    "let gather": "debounced",
    "lookout": "gap detector",
    "mend": "fix, repair",
    "mended": "fixed, repaired, replaced",
    "mends": "fixes, repairs, recovers",
    "nobody": "no client, no user, or the passive",
    "of late": "recently",
    "pen": "write ownership",
    "scene": "context",
    "somebody": "a user, another client",
    "looks after": "manages",
    "speaks": "is about, reports, uses",
    "stands still": "is blocked, is paused",
    "strangers": "unknown clients",
    "switched off": "disabled",
    "told": "reported, recorded, shown",
    "tell": "report, show, say",
    "tells": "reports, shows, says",
    "trouble": "problem",
    "troubles": "problems",
    "wish": "request",
    "wishes": "requests",
    "whoever": "the client, the user who",
}
"""Words within messages, help, status texts, alerts and pages."""


def words_of(name: str) -> set[str]:
    """Take a name apart at underscores, dots and capitals."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def defined_in(tree: ast.Module) -> Iterator[str]:
    """Give the names of a module's classes and functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name


def named_in(tree: ast.Module) -> Iterator[str]:
    """Give each name that a module makes."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.arg(arg=name) | ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name


def texts_in(tree: ast.Module) -> Iterator[str]:
    """Give each string of a module that is no docstring."""
    prose = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def parsed() -> list[tuple[Path, ast.Module]]:
    """Read the product's modules."""
    paths = tracked("operator/*.py", "workloads/*.py")
    assert len(paths) > 150
    return [(path, ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


@pytest.fixture(scope="module")
def modules() -> list[tuple[Path, ast.Module]]:
    return parsed()


def test_no_name_has_a_word_that_was_replaced(modules: list[tuple[Path, ast.Module]]) -> None:
    """A reader who knows the field knows by its name what a module, a class or a function is about."""
    found = {
        f"{path.relative_to(ROOT)}: {name}: write {replaced[word]}"
        for path, tree in modules
        for names, replaced in (
            ({path.stem, *path.relative_to(ROOT).parent.parts, *named_in(tree)}, NAMES),
            ({path.stem, *path.relative_to(ROOT).parent.parts, *defined_in(tree)}, DEFINED),
        )
        for name in names - KEPT_NAMES
        for word in words_of(name) & replaced.keys()
    }

    assert set() == found


def test_no_whole_name_that_was_replaced(modules: list[tuple[Path, ast.Module]]) -> None:
    """The same for names whose single words are good."""
    found = {
        f"{path.relative_to(ROOT)}: {name}: write {WHOLE_NAMES[name.strip('_').lower()]}"
        for path, tree in modules
        for name in {path.stem, *named_in(tree)}
        if name.strip("_").lower() in WHOLE_NAMES
    }

    assert set() == found


READ = re.compile(rf"\b(?:{'|'.join(TEXTS)})\b", re.IGNORECASE)


def pages() -> list[Path]:
    """Give what people read that is no Python: documents, definitions, rules, the chart and the status page."""
    paths = tracked(
        "README.md",
        "CONTRIBUTING.md",
        "docs/*.md",
        "decoder/*.md",
        "charts/*",
        "crds/*",
        "workloads/*.js",
        "workloads/*.html",
    )
    readable = [
        path for path in paths if path.suffix in {".md", ".yaml", ".yml", ".txt", ".tpl", ".json", ".js", ".html"}
    ]
    assert len(readable) > 100
    return readable


def test_nothing_that_people_read_has_a_word_that_was_replaced(modules: list[tuple[Path, ast.Module]]) -> None:
    """Messages, help, status texts, alerts and pages are in the words of the glossary."""
    texts = [(path, text) for path, tree in modules for text in texts_in(tree)]
    texts += [(path, line) for path in pages() for line in path.read_text(encoding="utf-8").splitlines()]

    found = [
        f"{path.relative_to(ROOT)}: {text.strip()[:100]!r}: write {TEXTS[match[0].lower()]}"
        for path, text in texts
        for match in [READ.search(text)]
        if match
    ]

    assert [] == found


PROSE = {
    "anew": "again",
    "anybody": "any client, any user",
    "beside that": "in addition",
    "complaint": "error",
    "everybody": "every client, all of them",
    "he": "it, they",
    "hears": "reaches, receives",
    "heed": "honour, check",
    "heeds": "honours, checks",
    "him": "it, them",
    "his": "its, their",
    "hole": "missing range",
    "holes": "missing ranges",
    "last words": "termination message, last log line",
    "lately": "recently",
    "left to spare": "redundancy",
    "let gather": "debounced",
    "mend": "fix, repair",
    "mended": "fixed, repaired",
    "mends": "fixes, repairs",
    "nobody": "no client, no user, or the passive",
    "of late": "recently",
    "looks after": "manages",
    "somebody": "a user, another client, another run",
    "speaks": "is about, reports, uses",
    "stranger": "another user, another program",
    "strangers": "unknown symbols, other users",
    "switched off": "disabled",
    "the pen": "write ownership",
    "tell": "report, show, distinguish",
    "tells": "reports, shows, distinguishes",
    "told": "reported, recorded, requested",
    "twin": "duplicate",
    "whoever": "the caller, the client, the user",
    "wish": "request",
    "wishes": "requests",
    "without a word": "silently, without a message",
}
"""Words within comments and docstrings: the subject is the part that acts, not a person who might."""


def prose_in(source: str) -> Iterator[tuple[int, str]]:
    """Give comments and docstrings of a module, each with its line."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def test_comments_have_no_word_that_was_replaced() -> None:
    """A reader of the code, or of a test that failed, should not have to find out who is meant by a pronoun."""
    words = re.compile(rf"\b(?:{'|'.join(PROSE)})\b", re.IGNORECASE)
    found = [
        f"{name}:{line}: {match[0]!r}: write {PROSE[match[0].lower()]}"
        for path in tracked("operator/*.py", "workloads/*.py", "tests/*.py")
        for name in [path.relative_to(ROOT).as_posix()]
        for line, text in prose_in(path.read_text(encoding="utf-8"))
        for match in words.finditer(text)
    ]

    assert [] == found


@pytest.mark.parametrize("name", ["Keeper", "_tell_loss", "HTTPKeeper", "lookout", "LOOKOUT_S", "see_world2"])
def test_a_word_is_found_wherever_it_is_in_a_name(name: str) -> None:
    """Capitals, underscores and digits part words."""
    assert words_of(name) & NAMES.keys()


@pytest.mark.parametrize("name", ["opening", "teller", "spend", "housekeeper_", "connection_supervisor"])
def test_a_part_of_a_word_is_none(name: str) -> None:
    """`spend` has no `pen` in it."""
    assert not words_of(name) & NAMES.keys()
