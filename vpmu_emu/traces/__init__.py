"""Readers of the event ring: clients of a finished or stopped run, which they never alter."""
