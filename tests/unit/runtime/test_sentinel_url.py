"""URLs that name Sentinels."""

from __future__ import annotations

from pathlib import Path

import pytest

from sheetanchor.errors import BadSettings
from sheetanchor.runtime.sentinel_url import SentinelUrl, is_sentinel_url, parse
from sheetanchor.store.redis_client import redis_client


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sentinel://a", SentinelUrl((("a", 26379),))),
        ("sentinel://a:1,b:2/set", SentinelUrl((("a", 1), ("b", 2)), "set")),
        ("sentinel://infer@a.b.svc:1/", SentinelUrl((("a.b.svc", 1),), user="infer")),
        ("sentinel://u:p%40w@[::1]:5/s", SentinelUrl((("::1", 5),), "s", "u", "p@w")),
        ("sentinels://u@a/s", SentinelUrl((("a", 26379),), "s", "u", tls=True)),
    ],
)
def test_a_url_names_user_sentinels_and_set(url: str, expected: SentinelUrl) -> None:
    """Ports and the set have defaults."""
    assert is_sentinel_url(url)
    assert parse(url) == expected


@pytest.mark.parametrize(
    "url",
    ["sentinel://", "sentinel:///s", "sentinel://a:0/s", "sentinel://a:99999", "sentinel://a,a", "sentinel://a/s/0",
     "sentinel://a,,b", "sentinel://a b", "sentinel://u@x@a", "sentinel://a?db=1"],
)  # fmt: skip
def test_what_is_no_such_url_is_refused(url: str) -> None:
    """The message shows how one looks."""
    with pytest.raises(ValueError, match="expected sentinel://USER@HOST"):
        parse(url)


def test_a_url_is_written_without_its_password() -> None:
    """And means the same otherwise."""
    url = parse("sentinel://u:secret@a:1,[::1]:2/s")

    assert str(url) == "sentinel://u@a:1,[::1]:2/s"


def test_other_urls_are_left_to_others() -> None:
    """Only the scheme decides."""
    assert not is_sentinel_url("redis://sentinel://a")


def test_a_bad_url_or_authority_is_reported_as_a_setting(tmp_path: Path) -> None:
    """The setting is named."""
    with pytest.raises(BadSettings, match="redis_url: expected sentinel://"):
        redis_client("sentinel://a:b")
    with pytest.raises(BadSettings, match="redis_ca_file: expected none"):
        redis_client("redis://a", ca_file=tmp_path / "ca.crt")
    with pytest.raises(BadSettings, match="redis_ca_file: expected a readable file"):
        redis_client("rediss://a", ca_file=tmp_path / "ca.crt")
