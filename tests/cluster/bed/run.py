"""Run commands with a limit, and print one line for each step."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

STARTED = time.monotonic()


class BedError(Exception):
    """A step failed; the text is one line that says which and where to read on."""


class CannotHost(BedError):
    """This machine lacks something that no step can give it; the text names it."""


def say(text: str) -> None:
    """Print one line with the seconds since the start."""
    print(f"[cluster {time.monotonic() - STARTED:3.0f} s] {text}", file=sys.stderr, flush=True)


def run(
    *command: str | Path,
    within_s: float,
    folder: Path | None = None,
    extra_env: Mapping[str, str] | None = None,
    log: Path | None = None,
    text_in: str | None = None,
) -> str:
    """Run a command to its end and return what it printed.

    Args:
        command: Program and arguments.
        within_s: The command and everything it started is killed after these seconds.
        folder: Where to run it.
        extra_env: Variables on top of this process's.
        log: A file that gets all output instead (the answer is then empty).
        text_in: What the command reads.

    Raises:
        BedError: The command failed or took too long.
    """
    words = [str(word) for word in command]
    sink = log.open("a") if log else subprocess.PIPE
    try:
        process = subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, **(extra_env or {})},
            stdin=subprocess.PIPE if text_in is not None else subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT if log else subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a time-out ends the compilers and shells that the command started too
        )
        try:
            printed, complaints = process.communicate(text_in, timeout=within_s)
        except BaseException as trouble:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(trouble, subprocess.TimeoutExpired):
                raise BedError(f"{shown(words)}: not done within {within_s:g} s{pointer(log)}") from None
            raise
    except OSError as error:
        raise BedError(f"{words[0]}: {error.strerror}") from error
    finally:
        if log:
            sink.close()
    if process.returncode != 0:
        reason = tail(log.read_text(errors="replace") if log else complaints or printed or "")
        raise BedError(f"{shown(words)}: exit code {process.returncode}: {reason}{pointer(log)}")
    return printed or ""


def succeeds(*command: str | Path, within_s: float = 20) -> bool:
    """Say whether a command that only reads succeeds."""
    try:
        run(*command, within_s=within_s)
    except BedError:
        return False
    return True


def shown(words: list[str]) -> str:
    """Shorten a command to what distinguishes it from others."""
    text = " ".join(words)
    return text if len(text) <= 100 else f"{text[:97]}..."


def tail(text: str) -> str:
    """Keep the last lines of an output, as one line."""
    return " | ".join(line.strip() for line in text.strip().splitlines()[-4:])[-600:]


def pointer(log: Path | None) -> str:
    return f" (all of it: {log})" if log else ""
