"""A local exchange: a recorded market served over the real protocols, with faults to order.

Read in this order: `clock` (when), `script` (what, round and round), `book`, `tape` and `market` (the state behind the
answers), `faults`, `limits` and `control` (rules), `venue` (the tick), `sessions`, `rest` and `app` (the network).
"""

from __future__ import annotations

from sheetanchor.exchange.app import Server, run, serving
from sheetanchor.exchange.sessions import Terms

__all__ = ["Server", "Terms", "run", "serving"]
