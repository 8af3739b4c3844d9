"""Loads an OpenAI-compatible server from outside and says how it did: nothing here imports the engine or torch."""
