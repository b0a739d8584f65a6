"""Print the version, or say where it is another one.

    python .ci/version.py

The distribution, the chart and the image that the chart names by default are of one version; a chart of another one
would install an operator that was not released with it.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def versions() -> dict[str, str]:
    """Give the version by the place that states it."""
    chart = (ROOT / "charts" / "sheetanchor" / "Chart.yaml").read_text(encoding="utf-8")
    found = {
        "pyproject.toml: project.version": tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    }
    for field in ("version", "appVersion"):
        match = re.search(rf"^{field}: *\"?([^\"\s]+)\"?$", chart, re.MULTILINE)
        found[f"charts/sheetanchor/Chart.yaml: {field}"] = match[1] if match else "(none)"
    return found


def main() -> int:
    """Compare them."""
    found = versions()
    if len(set(found.values())) == 1:
        print(next(iter(found.values())))
        return 0
    for place, version in found.items():
        print(f"{place} is {version}; expected one version everywhere", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
