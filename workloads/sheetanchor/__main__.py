"""The command line: `sheetanchor ROLE`."""


def main() -> None:
    """Run the role named on the command line."""
