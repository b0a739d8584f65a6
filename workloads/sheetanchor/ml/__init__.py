"""Models: features, data sets, training, the registry, running one."""
