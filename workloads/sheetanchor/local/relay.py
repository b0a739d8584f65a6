"""Passes on the log lines of all processes without ever blocking the pipeline.

A thread writes; when the reader of our stderr is slower than the logs, lines are dropped and counted. Under a live view
on the same terminal nothing is written: the last warnings are kept for the view.
"""

from __future__ import annotations

import json
import logging
import queue
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TextIO

LINES_MAX: Final = 5_000
"""About a megabyte of logs; reached only when the reader has stopped reading."""

LINE_LENGTH_MAX: Final = 8_192
NOTICES_KEPT: Final = 30
CLOSE_TIMEOUT_S: Final = 2.0

_NOTABLE: Final = frozenset({"WARNING", "ERROR", "CRITICAL"})


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning or an error to show.

    Attributes:
        at_us: When it was read here, in µs since 1970.
        source: Process that logged it, for instance `ingest/a`.
        level: warning, error or critical.
    """

    at_us: int
    source: str
    level: str
    text: str


def parse_line(source: str, line: str, now_us: int) -> tuple[str, Notice | None]:
    """Make one JSON log line of a line that a process wrote, and a notice if it is a warning or worse.

    Args:
        source: Process that wrote it.
        line: One line without its end.
        now_us: Time for a line that has none.
    """
    line = line[:LINE_LENGTH_MAX]
    try:
        entry: Any = json.loads(line)
    except ValueError:
        entry = None
    printed = isinstance(entry, dict) and "message" in entry and "level" not in entry  # a receipt on stdout
    if printed or not isinstance(entry, dict) or "message" not in entry:
        # Not from our logging: lines of the Redis server, a traceback, a message about bad settings.
        time_text = datetime.fromtimestamp(now_us / 1e6, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        entry = {"time": time_text, "level": "INFO", "logger": "output", "message": line}
        framing = line.startswith((" ", "Traceback ", "During handling", "The above exception")) or not line.strip()
        if not printed and not source.startswith("redis") and not framing:
            entry["level"] = "WARNING"
        line = json.dumps({**entry, "service": source})
    level = str(entry.get("level", "INFO")).upper()
    notice = Notice(now_us, source, level.lower(), str(entry["message"])) if level in _NOTABLE else None
    return line, notice


class Relay:
    """Receives all log lines.

    Args:
        out: File to write to, None to keep notices only.
    """

    def __init__(self, out: TextIO | None) -> None:
        self.notices: deque[Notice] = deque(maxlen=NOTICES_KEPT)
        self.dropped = 0
        self._out = out
        self._lines: queue.Queue[str | None] = queue.Queue(LINES_MAX)
        self._writer = threading.Thread(target=self._write, name="log relay", daemon=True)
        if out is not None:
            self._writer.start()

    def take(self, source: str, line: str) -> None:
        """Pass one line on."""
        text, notice = parse_line(source, line, time.time_ns() // 1_000)
        if notice is not None:
            self.notices.append(notice)
        self._put(text)

    def _put(self, text: str) -> None:
        if self._out is None:
            return
        try:
            self._lines.put_nowait(text)
        except queue.Full:
            self.dropped += 1

    def _write(self) -> None:
        out = self._out
        while out is not None and (line := self._lines.get()) is not None:
            try:
                out.write(line + "\n")
                if self._lines.empty():
                    out.flush()
            except (OSError, ValueError):
                return  # stderr is closed; the queue fills and further lines are counted as dropped

    def close(self) -> None:
        """Write the queued lines, for a short time at most."""
        if not self._writer.is_alive():
            return
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            return
        self._writer.join(CLOSE_TIMEOUT_S)


class RelayHandler(logging.Handler):
    """Sends this process's own log lines through the relay."""

    def __init__(self, relay: Relay, formatter: logging.Formatter | None) -> None:
        super().__init__()
        self._relay = relay
        self.setFormatter(formatter)

    def emit(self, record: logging.LogRecord) -> None:
        """Pass one record on."""
        self._relay.take("local", self.format(record))


def take_over_logging(relay: Relay) -> None:
    """Send the root logger's lines through a relay, in their format."""
    root = logging.getLogger()
    formatter = root.handlers[0].formatter if root.handlers else None
    root.handlers[:] = [RelayHandler(relay, formatter)]


def for_terminal(live_view: bool) -> Relay:
    """Make the relay for this process: stderr, unless a live view is drawn on the same terminal."""
    return Relay(None if live_view and sys.stderr.isatty() else sys.stderr)
