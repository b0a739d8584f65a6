"""Zones: where a pipeline's pods can run, and which line is in which. Pure."""
