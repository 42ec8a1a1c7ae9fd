"""The tables of `isa/` as frozen rows; one module per file."""
