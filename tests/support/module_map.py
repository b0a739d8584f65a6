"""Prints the page `docs/modules.md`: every module of the product with the first line of its docstring or comment."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]

HEAD = """# Every module in one line

`make modules` writes this page from the first line of each module, and a test compares. The packages as steps of the
pipeline, and what may import what, are in [architecture.md](architecture.md).
"""

TREES = {
    "workloads/sheetanchor": "Workloads: what runs in the pods, and on one machine",
    "operator/sheetanchor_operator": "Operator and `kubectl reanchor`",
    "operator/krew": "The archive for krew",
}


def first_line(path: Path) -> str:
    """Give the first line of a module's docstring, "" without one."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0].replace("|", "\\|")


NUMBERS = re.compile(r"^([A-Z][A-Z_0-9]+): Final(?:\[int\]|\[float\])? = [\d(]", re.MULTILINE)
FLAGS = re.compile(r"^    (\w+): [\w ,\[\]|]+ = setting\(", re.MULTILINE)
FIELDS = re.compile(r"^    (\w+): [\w ,\[\]|]+ = field\(", re.MULTILINE)
HOLDS = {
    "workloads/sheetanchor/contract.py": ("Its numbers", NUMBERS),
    "workloads/sheetanchor/runtime/settings.py": ("Its flags", FLAGS),
    "operator/sheetanchor_operator/settings.py": ("Its flags", FLAGS),
    "operator/sheetanchor_operator/api/pipeline_spec.py": ("Its fields", FIELDS),
    "operator/sheetanchor_operator/api/recovery_spec.py": ("Its fields", FIELDS),
    "operator/sheetanchor_operator/api/redis_spec.py": ("Its fields", FIELDS),
    "operator/sheetanchor_operator/api/shared_fields.py": ("Its fields", FIELDS),
}
"""Modules whose contents people look for by name."""


def holds(path: Path) -> str:
    """Give the names of what a module holds, "" if they are not listed."""
    held = HOLDS.get(path.relative_to(ROOT).as_posix())
    if held is None:
        return ""
    what, pattern = held
    names = sorted(set(pattern.findall(path.read_text())))
    return f" {what}: {', '.join(f'`{name}`' for name in names)}."


def rows(folder: Path) -> list[str]:
    """Give a row for each module of a folder."""
    modules = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    return [f"| [{path.stem}](../{path.relative_to(ROOT)}) | {first_line(path)}{holds(path)} |" for path in modules]


def commented(path: Path, mark: str) -> str:
    """Give the row of a file that begins with a comment, and the alerts in it."""
    text = path.read_text()
    opening = itertools.takewhile(lambda line: line.startswith(f"{mark} "), text.splitlines())
    first = " ".join(line.removeprefix(mark).strip() for line in opening).split(". ")[0].rstrip(".") + "."
    alerts = ", ".join(f"`{name.removeprefix('SheetAnchor')}`" for name in re.findall(r"- alert: (\w+)", text))
    named = f" Alerts, without `SheetAnchor`: {alerts}" if alerts else ""
    return f"| [{path.name}](../{path.relative_to(ROOT)}) | {first}{named} |"


def page() -> str:
    """Give the page."""
    lines = [HEAD]
    for tree, title in TREES.items():
        lines.append(f"## {title}\n")
        folders = [ROOT / tree, *sorted(path for path in (ROOT / tree).rglob("*") if path.is_dir())]
        for folder in folders:
            if found := rows(folder):
                lines += [f"### `{folder.relative_to(ROOT)}/`\n", "| module | what it is |\n|---|---|", *found, ""]
    headers = [*sorted((ROOT / "decoder").glob("*.hpp")), *sorted((ROOT / "decoder").glob("*.cpp"))]
    lines += ["## `decoder/`: C++, what is done to every message\n", "| file | what it is |\n|---|---|"]
    lines += [*(commented(path, "//") for path in headers), ""]
    rules = sorted((ROOT / "charts/sheetanchor/rules").glob("*.yaml"))
    lines += ["## `charts/sheetanchor/rules/`: alerts\n", "| file | what it is about |\n|---|---|"]
    lines += [*(commented(path, "#") for path in rules), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
