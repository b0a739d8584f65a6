"""What the chart's metadata claims about the product."""

from __future__ import annotations

import yaml

from support.rendered_parts import CHART

LEVELS = ("Basic Install", "Seamless Upgrades", "Full Lifecycle", "Deep Insights", "Auto Pilot")


def test_no_level_is_claimed_that_is_not_reached() -> None:
    """Each level includes those before it, and the third is backup and restore: no field of a pipeline has them."""
    claimed = yaml.safe_load((CHART / "Chart.yaml").read_text())["annotations"]["artifacthub.io/operatorCapabilities"]
    definition = yaml.safe_load((CHART / "files" / "crds" / "predictionpipelines.yaml").read_text())
    fields = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]

    assert ("backup" in fields) == (LEVELS.index(claimed) >= LEVELS.index("Full Lifecycle"))
