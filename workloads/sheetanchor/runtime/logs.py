"""Logs: JSON lines on stderr, each with at least `message`."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from pythonjsonlogger.json import JsonFormatter

from sheetanchor.runtime.redis_url import without_passwords


class _Formatter(JsonFormatter):
    def format(self, record: logging.LogRecord) -> str:
        return without_passwords(super().format(record))

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def set_up(service: str, level: str = "info") -> None:
    """Send every log line of this process to stderr as one JSON object.

    Args:
        service: Name of the service, added to every line.
        level: Least severe level to print.
    """
    log_lines = logging.StreamHandler(sys.stderr)
    log_lines.setFormatter(
        _Formatter(
            "{asctime}{levelname}{name}{message}",
            style="{",
            rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
            static_fields={"service": service},
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [log_lines]
    root.setLevel(level.upper())
    # A line per HTTP request, and five about a server's start, would hide important ones.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    # Its warnings are about malformed requests, of which any client may send many; the answers to them are counted.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
