"""The host kernel, compiled, over the machine's record; functions bear the names they have in Linux."""
