"""What tests share and what writes docs: not a test among it; `python -m tests.tools.NAME`."""
