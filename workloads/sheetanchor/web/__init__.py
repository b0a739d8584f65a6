"""HTTP of every long-running process: health checks, metrics, errors, listeners."""
