"""System calls of host programs: rare, so plain Python over the same record, with nothing kept beside it."""
