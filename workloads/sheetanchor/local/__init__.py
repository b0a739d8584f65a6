"""`sheetanchor local`: the whole pipeline as processes of one machine, under one supervisor."""
