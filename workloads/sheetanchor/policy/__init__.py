"""Decisions that workloads and operator share: gap rules, re-anchor scheduling. Pure."""
