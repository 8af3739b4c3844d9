"""From messages to token ids and back: tokenizers, templates, incremental detokenizing, stop strings."""
