"""HTTP in front of an engine; all JSON lives and dies here."""
