"""The silicon: what an x86 core does by itself; knows no Linux and no Python object."""
