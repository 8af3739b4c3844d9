"""Says how fast and how good an engine is."""
