"""System calls of host programs: rare, so plain Python over the same record, nothing kept beside it."""
