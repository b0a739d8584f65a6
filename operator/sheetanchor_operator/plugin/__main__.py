"""`python -m sheetanchor_operator.plugin` is `kubectl reanchor`."""

from __future__ import annotations

import sys

from sheetanchor_operator.plugin.command import main

sys.exit(main())
