"""Clients of a running system for people: they stop it, look at it, and change nothing by looking."""
