"""The data plane: exchange to ingestor, processor, inference and re-anchor."""

from importlib.metadata import version

__version__ = version("sheetanchor")
