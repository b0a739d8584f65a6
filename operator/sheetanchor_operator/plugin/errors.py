"""Exit codes of `kubectl reanchor`, and the error that carries one."""

from __future__ import annotations

from typing import Final

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_NOT_KNOWN: Final = 2
"""Of `explain`: whether the pipeline is sound could not be found out."""

EXIT_NOT_FOUND: Final = 3
EXIT_FORBIDDEN: Final = 4
EXIT_NOT_IN_TIME: Final = 5
EXIT_CHANGED_NOTHING: Final = 6
EXIT_UNREACHABLE: Final = 7


class PluginError(Exception):
    """The command cannot be carried out.

    Args:
        message: One line that a person can act on.
        exit_code: Exit code of the command.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
