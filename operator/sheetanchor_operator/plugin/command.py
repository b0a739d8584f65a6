"""`kubectl reanchor`: requests a re-anchor of a pipeline, waits for its receipt, and shows the state of pipelines."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import yaml

from sheetanchor_operator.plugin.api import Api, Target
from sheetanchor_operator.plugin.errors import EXIT_DONE, EXIT_FAILED, EXIT_NOT_KNOWN, EXIT_USAGE, PluginError
from sheetanchor_operator.plugin.explain.explanation import NOT_KNOWN, SOUND, explain, to_json
from sheetanchor_operator.plugin.explain.observe import observe
from sheetanchor_operator.plugin.explain.text import text_of_explanation
from sheetanchor_operator.plugin.move import MoveOptions, confirm, prepare
from sheetanchor_operator.plugin.move import exit_code_of as exit_code_of_move
from sheetanchor_operator.plugin.move import submit as submit_move
from sheetanchor_operator.plugin.move import wait as wait_for_move
from sheetanchor_operator.plugin.request import RequestOptions, exit_code_of, submit, wait
from sheetanchor_operator.plugin.words import escaped, history, overview, print_line, row_of, summary, table

__all__ = ["main"]

COMMANDS: Final = ("status", "history", "explain", "switchover", "evacuate", "return")
MOVES: Final = ("switchover", "evacuate", "return")
PREFIXES: Final = ("pp/", "predictionpipeline/", "predictionpipelines/")
REASON_LENGTH_MAX: Final = 500
INTERRUPTED: Final = 130
"""128 + SIGINT."""

USAGE: Final = """kubectl reanchor NAME [options]           request a re-anchor of a pipeline
       kubectl reanchor status [NAME] [options]  show the state of pipelines
       kubectl reanchor explain NAME [options]   show why a pipeline is not sound, and what you can do
       kubectl reanchor history NAME [options]   list a pipeline's re-anchors
       kubectl reanchor switchover NAME [--to ZONE]   have another zone's processor write
       kubectl reanchor evacuate NAME ZONE       have a pipeline leave a zone, and stay out
       kubectl reanchor return NAME ZONE         let it into that zone again"""

EPILOG: Final = """A pipeline that is named like a command, for instance status, is written pp/status.

exit codes: 0 done, or explain: sound; 1 a run failed, the API server refused something, or explain: not sound; 2 wrong
usage, or explain: whether it is sound is not known; 3 no such pipeline or symbol; 4 forbidden; 5 not done within
--timeout; 6 nothing was changed (paused, suspended, or the request was skipped); 7 the API server cannot be reached"""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; the first word decides which command it is."""
    parser = argparse.ArgumentParser(
        prog="kubectl reanchor",
        usage=USAGE,
        description="Rebuild the hot state of a PredictionPipeline from the exchange, and see the result.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("words", metavar="NAME", nargs="*", help="name of a PredictionPipeline, after a command if any")
    parser.add_argument("-n", "--namespace", default="", help="namespace; default the context's")
    parser.add_argument("--context", default="", help="context of the kubeconfig; default the current one")
    parser.add_argument("--kubeconfig", default="", help="kubeconfig file; default KUBECONFIG or ~/.kube/config")
    parser.add_argument("-o", "--output", choices=("text", "json", "yaml"), default="text", help="how to print")
    parser.add_argument("--symbol", default="", help="one trading pair; default all of the pipeline's")
    request = parser.add_argument_group("requesting a re-anchor")
    request.add_argument("--reason", default="", help="reason in one line; kept in the receipt")
    request.add_argument("--wait", action="store_true", help="wait until it is done, and exit with its result")
    request.add_argument("--timeout", type=float, default=180.0, metavar="S", help="seconds to wait (default 180)")
    request.add_argument("--dry-run", action="store_true", help="do everything but the swap; of a move: check it only")
    request.add_argument(
        "--force",
        action="store_true",
        help="ignore cool-down, budget, suspension, maintenance and spec.reanchor.enabled: false",
    )
    request.add_argument(
        "--request-id", default="", metavar="ID", help="id of the request: the same id twice is one request"
    )
    moves = parser.add_argument_group("moving a pipeline")
    moves.add_argument("--to", default="", metavar="ZONE", help="zone to go to; default any that has a standby")
    moves.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the plugin.

    Args:
        argv: Arguments after the program's name; default those of this process.

    Returns:
        The exit code.
    """
    parser = build_parser()
    given = parser.parse_intermixed_args(argv)
    command = given.words[0] if given.words and given.words[0] in COMMANDS else "request"
    names = given.words[1:] if command in COMMANDS else given.words
    names = [_bare(name) for name in names]
    if command in ("evacuate", "return") and len(names) != 2:
        print_line(f"kubectl reanchor: {command} needs the names of a pipeline and of a zone", sys.stderr)
        return EXIT_USAGE
    zone = names.pop() if command in ("evacuate", "return") else given.to
    if given.to and command != "switchover":
        print_line("kubectl reanchor: --to belongs to switchover", sys.stderr)
        return EXIT_USAGE
    if len(names) > 1 or (not names and command != "status"):
        print_line(f"usage: {USAGE}", sys.stderr)
        found = f"{len(names)} names" if names else "none"
        print_line(f"kubectl reanchor: expected the name of one pipeline, found {found}", sys.stderr)
        return EXIT_USAGE
    try:
        api = Api(Target(given.kubeconfig, given.context, given.namespace))
        if command == "status":
            return _status(api, names[0] if names else "", given)
        if command == "explain":
            return _explain(api, names[0], given)
        if command in MOVES:
            return _move(api, MoveOptions(command, names[0], zone, given.request_id, given.dry_run), given)
        if command == "history":
            return _history(api, names[0], given)
        return _request(api, names[0], given)
    except PluginError as error:
        print_line(f"kubectl reanchor: {' '.join(str(error).split())}", sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print_line("kubectl reanchor: interrupted; the request stays, see kubectl reanchor history", sys.stderr)
        return INTERRUPTED


def _bare(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _now_us() -> int:
    return time.time_ns() // 1_000


def _print(what: Any, output: str) -> None:
    if output == "json":
        print(escaped(json.dumps(what, indent=2, ensure_ascii=False)))
    else:
        print(_yaml(what), end="")


def _yaml(what: Any) -> str:
    """Render as YAML; all strings are escaped if one of them holds a control character of terminals."""
    text = yaml.safe_dump(what, sort_keys=False, allow_unicode=True)
    return text if text == escaped(text) else str(yaml.safe_dump(what, sort_keys=False))


def _list_of(objects: Sequence[dict[str, Any]]) -> dict[str, Any]:
    for one in objects:
        one["metadata"].pop("managedFields", None)
    return {"apiVersion": "v1", "kind": "List", "items": list(objects)}


def _request(api: Api, name: str, given: argparse.Namespace) -> int:
    reason = " ".join(given.reason.split())
    if len(reason) > REASON_LENGTH_MAX:
        raise PluginError(f"--reason has {len(reason)} characters: expected at most {REASON_LENGTH_MAX}", EXIT_USAGE)
    if given.timeout <= 0:
        raise PluginError(f"--timeout = {given.timeout:g}: expected more than 0 seconds", EXIT_USAGE)
    submitted = submit(api, RequestOptions(name, given.symbol, reason, given.request_id, given.dry_run, given.force))
    if submitted.note:
        print_line(submitted.note, sys.stderr)
    if not given.wait:
        requested = {"pipeline": name, "namespace": api.namespace, "request": submitted.request_id}
        if given.output == "text":
            for one in submitted.names:
                print_line(f"reanchor/{one} requested")
        else:
            _print({**requested, "reanchors": list(submitted.names)}, given.output)
        return EXIT_DONE
    done = wait(api, submitted, given.timeout)
    if given.output == "text":
        rows = [row_of(one, _now_us(), message_max=1_000) for one in done]
        print_line(table([["NAME", "PHASE", "RESULT", "TRIGGER", "AGE", "TOOK", "EPOCH", "MESSAGE"], *rows]))
    else:
        _print(_list_of(done), given.output)
    return exit_code_of(done)


def _move(api: Api, options: MoveOptions, given: argparse.Namespace) -> int:
    if given.timeout <= 0:
        raise PluginError(f"--timeout = {given.timeout:g}: expected more than 0 seconds", EXIT_USAGE)
    move = prepare(api, options)
    if not given.yes and not options.dry_run:
        if not sys.stdin.isatty():
            raise PluginError(f"{move.text}: use --yes without a terminal", EXIT_USAGE)
        confirm(move)
    submit_move(api, move)
    done: dict[str, Any] = {}
    if given.wait and not options.dry_run:
        done = wait_for_move(api, move, given.timeout)
    if given.output != "text":
        asked = {"pipeline": options.name, "namespace": api.namespace, "command": options.command}
        _print({**asked, "request": move.value, "dryRun": options.dry_run, "failover": done or None}, given.output)
    elif done:
        print_line(f"{options.command} {done.get('phase', 'Done')}: {done.get('message') or move.text}")
    else:
        print_line(f"{'would be requested' if options.dry_run else 'requested'}: {move.text}")
    return exit_code_of_move(move, done) if given.wait and not options.dry_run else EXIT_DONE


def _status(api: Api, name: str, given: argparse.Namespace) -> int:
    if not name:
        pipelines = api.pipelines()
        if given.output != "text":
            _print(_list_of(pipelines), given.output)
        elif pipelines:
            print_line(overview(pipelines, _now_us()))
        else:
            print_line(f"No pipelines in namespace {api.namespace}.")
        return EXIT_DONE
    pipeline = api.pipeline(name)
    if given.output != "text":
        _print(_list_of([pipeline])["items"][0], given.output)
        return EXIT_DONE
    print_line(summary(pipeline, _of_symbol(api.reanchors(name), given.symbol), _now_us()))
    return EXIT_DONE


def _explain(api: Api, name: str, given: argparse.Namespace) -> int:
    explanation = explain(observe(api, name, given.symbol, _now_us()))
    if given.output == "text":
        print_line(text_of_explanation(explanation))
    else:
        _print(to_json(explanation), given.output)
    if explanation.verdict == NOT_KNOWN:
        return EXIT_NOT_KNOWN
    return EXIT_DONE if explanation.verdict == SOUND else EXIT_FAILED


def _history(api: Api, name: str, given: argparse.Namespace) -> int:
    api.pipeline(name)
    reanchors = _of_symbol(api.reanchors(name), given.symbol)
    if given.output == "text":
        print_line(history(reanchors, _now_us()))
    else:
        _print(_list_of(reanchors), given.output)
    return EXIT_DONE


def _of_symbol(reanchors: list[dict[str, Any]], symbol: str) -> list[dict[str, Any]]:
    return [one for one in reanchors if not symbol or one["spec"].get("symbol") == symbol]
