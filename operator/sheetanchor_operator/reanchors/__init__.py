"""Re-anchors: which to create, start, give up and forget, and what is written of them. Pure."""
