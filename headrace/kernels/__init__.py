"""Pure tensor functions, one operation per file, each with a plain torch version that defines it."""
