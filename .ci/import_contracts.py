"""A contract for import-linter that its own types cannot say: what a package may import, all else being refused.

`forbidden` lists what is wrong, so what is new is allowed until it is added to the list. Here the list is of what is
right: a new package, or a new library, needs a line in pyproject.toml before code under a contract can import it.
"""

from __future__ import annotations

import sys
from typing import Final

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output
from importlinter.application import contract_utils
from importlinter.domain import helpers

EDGES: Final = frozenset(
    {
        *("asyncio", "concurrent", "multiprocessing", "queue", "sched", "signal", "subprocess", "threading"),
        *("http", "select", "selectors", "socket", "socketserver", "ssl", "urllib"),
    }
)
"""Modules of the standard library by which a decision would wait, listen, connect or start something."""


class Allowlist(Contract):
    """Modules, and all that is in them, import what is allowed, and what is in that, and nothing else directly.

    The standard library is allowed; with `pure` without the modules by which code waits, connects or starts something.
    `sheetanchor` and `sheetanchor_operator` by themselves mean only what is in their `__init__`. Exceptions are single
    imports in `ignore_imports`; one that is not needed any more is an error.
    """

    type_name = "allowlist"

    source_modules = fields.ListField(subfield=fields.ModuleExpressionField())
    allowed_modules = fields.ListField(subfield=fields.StringField())
    pure = fields.BooleanField(required=False, default=False)
    ignore_imports = fields.SetField(subfield=fields.ImportExpressionField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Judge each import that a source module makes."""
        removal = contract_utils.remove_ignored_imports_and_report(
            graph=graph,
            ignore_imports=self.ignore_imports,  # type: ignore[arg-type]
            unmatched_alerting=contract_utils.AlertLevel.ERROR,
        )
        sources = {
            module.name
            for module in helpers.module_expressions_to_modules(
                graph=graph,
                expressions=self.source_modules,  # type: ignore[arg-type]
                as_packages=True,
            )
        }
        refused = [
            (source, imported, graph.get_import_details(importer=source, imported=imported))
            for source in sorted(sources)
            for imported in sorted(graph.find_modules_directly_imported_by(source))
            if not self._allows(imported)
        ]
        found = {
            f"{source} imports {imported} (line {details[0]['line_number'] if details else '?'})"
            for source, imported, details in refused
        }
        return ContractCheck(kept=not found, warnings=list(removal.warnings), metadata={"found": sorted(found)})

    def _allows(self, imported: str) -> bool:
        allowed = set(self.allowed_modules)  # type: ignore[call-overload]
        if imported in allowed:
            return True
        top = imported.partition(".")[0]
        if top in sys.stdlib_module_names:
            return not (self.pure and top in EDGES)
        return any(imported.startswith(f"{one}.") for one in allowed - {"sheetanchor", "sheetanchor_operator"})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print what is imported though it is not allowed."""
        for line in check.metadata["found"]:
            output.print_error(f"{line}: not in allowed_modules", bold=False)
            output.new_line()
