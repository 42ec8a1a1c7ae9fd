"""The oracle: a second, slow machine written from the manuals, sharing no code with the engine."""
