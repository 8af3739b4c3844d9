"""Measure how fast the engine is."""
