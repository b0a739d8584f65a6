"""The control plane: observes the cluster, decides, applies. It never touches market data."""
