"""The leader's work: observe, decide, apply, report."""
