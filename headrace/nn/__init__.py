"""Layers that know shapes, and not who asks."""
