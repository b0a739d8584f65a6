"""Redis: connections, frame streams and the hot state."""
