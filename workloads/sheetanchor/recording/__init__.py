"""Recorded markets: their files, and `sheetanchor capture`, which makes one."""
