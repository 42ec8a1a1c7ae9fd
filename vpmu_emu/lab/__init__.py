"""Experiments: many runs, and what they say together; clients of System, with no state a run depends on."""
