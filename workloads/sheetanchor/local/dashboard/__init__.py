"""The state of a local run, and how it is shown: the live view and the status page."""
