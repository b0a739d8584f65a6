"""The form of Redis URLs, and how they are shown: never with a password.

A URL names a server, a user and a database. It must not change how the server is verified: options that redis-py reads
from the query (`ssl_cert_reqs=none`, or a password) would escape the checks of settings.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlsplit

from sheetanchor.runtime import sentinel_url

SCHEMES: Final = ("redis", "rediss", "unix", *sentinel_url.SCHEMES)
EXPECTED: Final = "expected a URL beginning with " + " or ".join(f"{scheme}://" for scheme in SCHEMES[:4])
NO_QUERY: Final = (
    "expected no query (?…) or fragment (#…): the database is the path, the password comes from redis_password_file, "
    "TLS from rediss:// and redis_ca_file"
)
HIDDEN: Final = "***"

_DATABASE: Final = re.compile(r"/?|/\d{1,4}/?")
_LOGIN: Final = re.compile(r"(?<=://)([^\s:/@'\"]*):[^\s'\"]*@")
_QUERY: Final = re.compile(r"([?&;](?:pass\w*|pwd|auth\w*|token|secret)=)[^&;\s'\"]+", re.IGNORECASE)


def check(url: str) -> str:
    """Give a valid URL in its normal form.

    Raises:
        ValueError: Says what was expected; never shows the URL, which may hold a password in an unexpected place.
    """
    if not url:
        return url
    if "?" in url or "#" in url:
        raise ValueError(NO_QUERY)
    if sentinel_url.is_sentinel_url(url):
        sentinel_url.parse(url)
        return url.rstrip("/")
    try:
        parts = urlsplit(url)
        usable = parts.scheme in SCHEMES and (bool(parts.hostname) or (parts.scheme == "unix" and bool(parts.path)))
        usable = usable and parts.port != 0
    except ValueError:  # also of a port that is no number
        usable = False
    if not usable:
        raise ValueError(EXPECTED)
    if parts.scheme != "unix" and not _DATABASE.fullmatch(parts.path):
        raise ValueError(
            "expected nothing or the number of a database after the host, for instance redis://HOST:6379/0"
        )
    return url.rstrip("/")


def masked(url: str) -> str:
    """Give a URL for display, also an invalid one: any part that may be a password is left out."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        scheme, rest = "", url
    login, at, rest = rest.rpartition("@")
    user, colon, _ = login.partition(":")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    hosts = ",".join(_host(one) for one in host.split(","))
    path, query, _ = rest[len(host) :].partition("?")
    path, fragment, _ = path.partition("#")
    # Text after an invalid host may be the rest of a password that contains a slash.
    shown = path if hosts == host else path and "/" + HIDDEN
    login = f"{user}:{HIDDEN}" if colon else user
    return f"{scheme}{mark}{login}{at}{hosts}{shown}{fragment and '#' + HIDDEN}{query and '?' + HIDDEN}"


def _host(text: str) -> str:
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d*)?", text)
    return text if found else text.partition(":")[0] + ":" + HIDDEN


def shown_value(value: Any, *, url: bool = False) -> Any:
    """Give a setting's value for display; one that is, or should be, a URL as `masked` gives it."""
    return masked(value) if isinstance(value, str) and (url or "://" in value or "@" in value) else value


def without_passwords(text: str) -> str:
    """Remove passwords of URLs from any text."""
    if "://" not in text and "=" not in text:
        return text
    return _QUERY.sub(rf"\g<1>{HIDDEN}", _LOGIN.sub(rf"\g<1>:{HIDDEN}@", text))
