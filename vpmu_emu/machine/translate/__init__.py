"""Hot code becomes native: docs/translator.md."""
