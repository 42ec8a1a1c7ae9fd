"""How much memory a machine can have, and how much of it lies below the devices of a PC."""

from __future__ import annotations

MAX_RAM_MIB = 4096  # --ram
LOW_RAM_MIB = 3072  # of it below 4 GiB; the rest begins there
