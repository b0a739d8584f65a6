"""Needed by every process: settings, logs, metrics, memory, retries."""
