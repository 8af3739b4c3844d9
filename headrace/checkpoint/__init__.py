"""Tensors, configuration and tokenizers between disk and modules."""
