"""HTTP of every long-running process: health and what it is made of, metrics, errors, listeners."""
