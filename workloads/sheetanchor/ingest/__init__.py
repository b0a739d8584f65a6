"""`sheetanchor ingest`: from the exchange's WebSocket to the lines' streams in Redis."""
