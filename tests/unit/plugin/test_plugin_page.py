"""The page of `kubectl reanchor` says what the command does."""

from __future__ import annotations

import re
from pathlib import Path

from sheetanchor_operator.plugin import errors
from sheetanchor_operator.plugin.command import COMMANDS, build_parser

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "kubectl-reanchor.md").read_text()


def test_every_flag_is_on_the_page() -> None:
    """And no flag that there is not."""
    flags = {option for action in build_parser()._actions for option in action.option_strings if option[:2] == "--"}
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", re.sub(r"```.*?```|kubectl krew[^`]*`", "", PAGE, flags=re.S)))

    assert flags - {"--help", "--output"} == told


def test_every_exit_code_is_on_the_page() -> None:
    """Each with one row of the table."""
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}

    assert codes == {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.M)}


def test_every_command_is_on_the_page() -> None:
    """With what it needs the right for."""
    assert [] == [command for command in COMMANDS if PAGE.count(f"`{command} ") + PAGE.count(f"`{command}`") < 1]
