"""`sheetanchor infer`: from the hot keys to one prediction per slot and symbol."""
