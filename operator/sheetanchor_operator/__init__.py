"""The control plane: reads the world, decides, applies. It never touches market data."""
