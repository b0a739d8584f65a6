"""`kubectl reanchor`: requests re-anchors and shows the state of pipelines."""
