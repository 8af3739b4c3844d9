"""What every part may rely on, with nothing but the standard library (and msgspec)."""
