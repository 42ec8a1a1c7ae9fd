"""Runs of one guest beside each other: where they part, who decided it, what an overflow does anywhere."""
