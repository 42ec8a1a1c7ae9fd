"""Each stop says why: a guest for every reason, every link of a chain and every hint, with its golden text.

A guest in `guests/` has lines that only these tests read: `#~ modes M…`, `#~ args …` as `vpmu run` takes
them, and `#= …`, the text of the stop in all its modes, or `#M,M= …` in some. `python -m tests.stops`
writes the texts as they are now.
"""
