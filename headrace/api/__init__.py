"""The entry points of the library: LLM and AsyncLLM."""
