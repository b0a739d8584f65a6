"""`sheetanchor redis`: one server of a replicated Redis, or its Sentinel."""
