"""The command line: `sheetanchor ROLE [flags]`.

A role is imported only when it runs, so that it needs no packages but those of its own extra. Exit codes: 0 done,
2 bad settings; `sheetanchor reanchor --help` lists its own.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from sheetanchor import __version__
from sheetanchor.contract import EXIT_BAD_SETTINGS, EXIT_FAILED
from sheetanchor.errors import DECODER_MISSING, DECODER_MODULE, BadRecording, BadSettings, SheetAnchorError
from sheetanchor.runtime import logs, settings
from sheetanchor.runtime.command_line import add_flags, load
from sheetanchor.runtime.redis_url import without_passwords

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoleDefinition:
    """A sub-command: its settings, and the module whose `run` does it, by default `command` in its package."""

    model: type[settings.Common]
    summary: str
    epilog: str = ""
    module: str = ""


ROLES: dict[str, RoleDefinition] = {
    "local": RoleDefinition(
        settings.LocalSettings, "run the whole pipeline on this machine, with a live view and a status page"
    ),
    "ingest": RoleDefinition(settings.IngestSettings, "receive the exchange's binary stream and append it to Redis"),
    "process": RoleDefinition(
        settings.ProcessSettings, "keep book, windows and features; find gaps; write the hot keys"
    ),
    "infer": RoleDefinition(settings.InferSettings, "predict once per two-second slot from the hot keys"),
    "reanchor": RoleDefinition(
        settings.ReanchorSettings,
        "rebuild the hot state from the exchange's REST interface and swap it in atomically",
        "exit codes: 0 swapped or nothing to do, 2 bad settings, 3 exchange, 4 validation, 5 Redis, "
        "6 lock held elsewhere, 7 superseded",
    ),
    "redis": RoleDefinition(
        settings.RedisSettings,
        "run one server of a replicated Redis, or with --sentinel its Sentinel",
        module="managed_redis.command",
    ),
    "train": RoleDefinition(
        settings.TrainSettings, "train a model on recorded markets and add it to a registry", module="ml.train"
    ),
    "model": RoleDefinition(
        settings.ModelSettings,
        "list the models of a registry, add one, choose the one in use, roll back",
        module="ml.model_command",
    ),
    "exchange": RoleDefinition(
        settings.ExchangeSettings,
        "serve a recorded market over the exchange's real protocols",
        module="simulator.app",
    ),
    "capture": RoleDefinition(
        settings.CaptureSettings, "record the raw frames that flow through Redis to a file", module="recording.capture"
    ),
}


def build_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Build the parser with one sub-command per role.

    Args:
        argv: The arguments. Only roles that they name get their flags: those of all roles would take a tenth of the
            start-up time of a re-anchor. Without it all roles get theirs.
    """
    parser = argparse.ArgumentParser(
        prog="sheetanchor",
        description="Real-time market prediction pipelines that stay anchored to the exchange.",
        epilog="Every flag --some-name is also the variable SHEETANCHOR_SOME_NAME and the entry some_name of the file "
        "given by --config; a flag overrides a variable, a variable the file. The exchange's API key comes from "
        "BINANCE_API_KEY or a file, never from a flag.",
    )
    parser.add_argument("--version", action="version", version=f"sheetanchor {__version__}")
    commands = parser.add_subparsers(dest="role", metavar="ROLE", required=True)
    for name, role in ROLES.items():
        command = commands.add_parser(
            name,
            help=role.summary,
            description=role.summary[0].upper() + role.summary[1:] + ".",
            epilog=role.epilog or None,
            allow_abbrev=False,
        )
        if argv is None or name in argv:
            add_flags(command, role.model)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one role.

    Args:
        argv: Arguments after the program's name; default those of this process.

    Returns:
        The exit code.
    """
    argv = sys.argv[1:] if argv is None else argv
    flags: dict[str, Any] = vars(build_parser(argv).parse_args(argv))
    name = flags.pop("role")
    try:
        notes: list[str] = []
        loaded = load(ROLES[name].model, flags, dict(os.environ), notes)
        logs.set_up(getattr(loaded, "service_name", "") or f"sheetanchor-{name}", loaded.log_level)
        for note in notes:
            log.warning("%s", note)
        run: Callable[[Any], Coroutine[Any, Any, int]] = importlib.import_module(
            f"sheetanchor.{ROLES[name].module or f'{name}.command'}"
        ).run
        return uvloop.run(run(loaded))
    except (BadSettings, BadRecording) as error:
        print(f"sheetanchor {name}: {without_passwords(str(error))}", file=sys.stderr)
        return EXIT_BAD_SETTINGS
    except SheetAnchorError as error:
        print(f"sheetanchor {name}: {without_passwords(str(error))}", file=sys.stderr)
        return EXIT_FAILED
    except ImportError as error:
        if error.name != DECODER_MODULE:
            raise
        print(f"sheetanchor {name}: {DECODER_MISSING}", file=sys.stderr)
        return EXIT_FAILED
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 0


if __name__ == "__main__":
    sys.exit(main())
