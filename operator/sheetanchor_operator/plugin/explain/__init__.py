"""`kubectl reanchor explain`: why a pipeline is not sound, what is done about it, and what a person can do."""
