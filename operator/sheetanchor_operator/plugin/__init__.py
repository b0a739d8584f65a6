"""`kubectl reanchor`: asks for re-anchors and shows how pipelines are."""
