"""Layers that know shapes and how they split, not how many ranks there are or who asks."""
