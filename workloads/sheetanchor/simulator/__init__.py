"""`sheetanchor exchange`: a recorded market served over the real protocols, with scripted faults.

Read in this order: `playback` (the market: when, what, in a loop, and the state behind the answers), `faults`,
`limits` and `control` (rules), `venue` (the tick), `sessions`, `rest` and `app` (the network).
"""
