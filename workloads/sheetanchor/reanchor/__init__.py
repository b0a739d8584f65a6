"""`sheetanchor reanchor`: from the exchange's REST interface to hot keys that are swapped in."""
