"""`sheetanchor process`: from the lines' streams to the hot keys, and the gaps between them."""
