"""The custom resources: what users write and read, and the definitions rendered from it. Pure."""
