"""Recorded markets: their files, and `sheetanchor capture`, which writes one."""
