"""The objects that a pipeline consists of, as manifests. Pure."""
