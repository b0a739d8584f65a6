"""Re-anchors: which to create, start, end and delete, and what their statuses say. Pure."""
