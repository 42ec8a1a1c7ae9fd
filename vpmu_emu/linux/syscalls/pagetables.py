"""The four levels of tables in memory are all that says what a program may touch.

`words` is physical memory as 64-bit words, `cr3` the index of the first table in it, in bytes.
SDM volume 3, 5.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vpmu_emu.machine.physical import PTE_FRAME, PTE_P, PTE_U, PTE_W

PAGE = 4096
TASK_SIZE = (1 << 47) - PAGE  # the last page is not used: SYSRET to its end would fault in the kernel
_FRAME, _P, _W, _U = (int(bits) for bits in (PTE_FRAME, PTE_P, PTE_W, PTE_U))
_ENTRIES = 512
Words = np.ndarray[Any, Any]


def _table(words: Words, cr3: int, va: int, new: Callable[[], int] | None) -> int:
    """Where the page table of `va` is; 0 if there is none and `new` does not make it."""
    table = cr3
    for shift in (39, 30, 21):
        at = (table + (va >> shift & 511) * 8) // 8
        entry = int(words[at])
        if not entry & _P:
            if new is None:
                return 0
            entry = new() | _P | _W | _U
            words[at] = entry
        table = entry & _FRAME
    return table


def map_pages(
    words: Words, cr3: int, va: int, n: int, at: int, *, user: bool, write: bool, new: Callable[[], int]
) -> None:
    """Let n pages from `va` on show physical memory from `at` on; not `user`: nothing at all.

    `new` gives a zeroed page for a table. What it raises goes through; some pages are mapped then.
    """
    rights = _P | _U | (_W if write else 0)
    while n:
        slot = va >> 12 & 511
        part = min(n, _ENTRIES - slot)
        first = _table(words, cr3, va, new) // 8 + slot
        pages = np.arange(part, dtype=np.uint64) * np.uint64(PAGE) + np.uint64(at | rights)
        words[first : first + part] = pages if user else 0
        va, at, n = va + part * PAGE, at + part * PAGE, n - part


def clear_pages(words: Words, cr3: int, va: int, n: int) -> None:
    """Let n pages from `va` on show nothing."""
    while n:
        slot = va >> 12 & 511
        part = min(n, _ENTRIES - slot)
        table = _table(words, cr3, va, None)
        if table:
            words[table // 8 + slot : table // 8 + slot + part] = 0
        va, n = va + part * PAGE, n - part


def tables(words: Words, table: int, level: int = 3) -> Iterator[int]:
    """Every table of an address space, itself last."""
    if level:
        for entry in words[table // 8 : table // 8 + _ENTRIES].tolist():
            if entry & _P:
                yield from tables(words, entry & _FRAME, level - 1)
    yield table


def pieces(words: Words, cr3: int, va: int, n: int, write: bool) -> Iterator[tuple[int, int]] | None:
    """(physical address, bytes) of each page's part of n bytes; None if a program could not touch them."""
    if n < 0 or va < 0 or va + n > TASK_SIZE:
        return None
    found = []
    wanted = _P | _U | (_W if write else 0)
    while n:
        part = min(n, PAGE - va % PAGE)
        table = _table(words, cr3, va, None)
        entry = int(words[table // 8 + (va >> 12 & 511)]) if table else 0
        if entry & wanted != wanted:
            return None
        found.append(((entry & _FRAME) + va % PAGE, part))
        va, n = va + part, n - part
    return iter(found)
