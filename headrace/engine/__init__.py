"""Turns requests into tokens: decides, runs, commits."""
