"""An address space is real page tables in memory: what a program may touch is what the tables say.

Each mapping is contiguous in physical memory and is all there from the start; nothing is paged.
mm/mmap.c, and the x86-64 layout of addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vpmu_emu.errors import LoadError
from vpmu_emu.linux.state import N_CORES, N_MMS, VMA_ANON
from vpmu_emu.linux.syscalls import files
from vpmu_emu.linux.syscalls.host import Errno, Host, signed
from vpmu_emu.linux.syscalls.pagetables import PAGE, TASK_SIZE, clear_pages, map_pages, tables
from vpmu_emu.tables.linux import constant

STACK_TOP = 0x7FFF_F000
STACK_SIZE = 64 << 10
MMAP_BASE, MMAP_END = 0x1000_0000, 0x7000_0000
HIGH_BASE = 1 << 32  # for what does not fit there
NOWHERE = -1  # percpu.space: of no address space, enter anew
IMAGE_BASE = 0x1000  # a null pointer must fault

PROT_READ, PROT_WRITE, PROT_EXEC = (constant(f"PROT_{n}") for n in ("READ", "WRITE", "EXEC"))
MAP_SHARED, MAP_PRIVATE, MAP_TYPE = (constant(f"MAP_{n}") for n in ("SHARED", "PRIVATE", "TYPE"))
MAP_FIXED, MAP_ANONYMOUS, MAP_HUGETLB = (
    constant(f"MAP_{n}") for n in ("FIXED", "ANONYMOUS", "HUGETLB")
)


# --- mappings -------------------------------------------------------------------------------------------
def vmas(mm: Any) -> Iterator[Any]:
    """The mappings of an address space."""
    return (vma for vma in mm.vmas if vma.length)


def overlaps(mm: Any, start: int, end: int) -> bool:
    """Whether any mapping has a byte in start..end."""
    return any(int(v.start) < end and start < int(v.start) + int(v.length) for v in vmas(mm))


def _free_vmas(mm: Any) -> list[Any]:
    return [vma for vma in mm.vmas if not vma.length]


def _find_hole(mm: Any, length: int) -> int:
    for first, end in ((MMAP_BASE, MMAP_END), (HIGH_BASE, TASK_SIZE)):
        start = _first_hole(mm, first, length)
        if start + length <= end:
            return start
    raise Errno("ENOMEM")


def _first_hole(mm: Any, start: int, length: int) -> int:
    for vma in sorted(vmas(mm), key=lambda v: int(v.start)):
        if int(vma.start) + int(vma.length) <= start:
            continue
        if int(vma.start) >= start + length:
            break
        start = int(vma.start) + int(vma.length)
    return start


def place(host: Host, address: int, length: int, flags: int) -> int:
    """Where a new mapping of whole pages goes (get_unmapped_area).

    Raises:
        Errno: ENOMEM, EINVAL.
    """
    mm = host.mm
    if flags & MAP_FIXED:
        if address % PAGE:
            raise Errno("EINVAL")
        if address + length > TASK_SIZE:
            raise Errno("ENOMEM")
        return address
    hint = -(-address // PAGE) * PAGE
    if hint and hint + length <= TASK_SIZE and not overlaps(mm, hint, hint + length):
        return hint
    return _find_hole(mm, length)


def make_room(host: Host, start: int, length: int, flags: int) -> None:
    """Take away what MAP_FIXED replaces.

    Raises:
        Errno: ENOMEM, no other mapping can be had; EINVAL, as unmap().
    """
    if flags & MAP_FIXED:
        unmap(host, host.mm, start, length)
    if not _free_vmas(host.mm):
        raise Errno("ENOMEM")


def add_vma(
    host: Host, mm: Any, start: int, length: int, hpa: int, prot: int, kind: int = VMA_ANON, obj: int = -1
) -> None:
    """Enter a mapping and its page tables; the addresses are free.

    Raises:
        Errno: ENOMEM, too many mappings or no page for the tables; nothing has changed then.
    """
    free = _free_vmas(mm)
    if not free:
        raise Errno("ENOMEM")
    try:
        _map(host, mm, start, length, hpa, prot)
    except Errno:
        clear_pages(host.words, int(mm.cr3), start, length // PAGE)
        raise
    vma = free[0]
    vma.start, vma.length, vma.hpa = start, length, hpa
    vma.prot, vma.kind, vma.obj = prot, kind, obj


def _map(host: Host, mm: Any, start: int, length: int, hpa: int, prot: int) -> None:
    map_pages(
        host.words,
        int(mm.cr3),
        start,
        length // PAGE,
        hpa,
        user=prot != 0,  # hardware knows no page that can be written or executed but not read
        write=bool(prot & PROT_WRITE),
        new=lambda: host.alloc_pages(1),
    )


def _flush(host: Host) -> None:
    """flush_tlb_range(): any core may have been in this address space."""
    for cpu in range(N_CORES):
        if host.S.percpu[cpu].online and not host.S.cores[cpu].vmx.nonroot:
            host.flush(cpu)  # one in a guest forgets them when it comes back


def unmap(host: Host, mm: Any, start: int, length: int) -> None:
    """Remove whatever is mapped in start..start + length.

    Raises:
        Errno: EINVAL, a part of a mapping that cannot be split; ENOMEM, too many mappings. Nothing has
            changed then.
        Restart: a guest that is shown some of it has to come out first. Nothing has changed.
    """
    end = start + length
    hit = [v for v in vmas(mm) if int(v.start) < end and start < int(v.start) + int(v.length)]
    if not hit:
        return
    pieces = 0
    for vma in hit:
        inside = int(vma.start) >= start and int(vma.start) + int(vma.length) <= end
        if not inside and int(vma.kind) != VMA_ANON:
            raise Errno("EINVAL")  # perf_mmap_may_split(): a buffer goes as a whole
        pieces += int(vma.start) < start and int(vma.start) + int(vma.length) > end
    if pieces > len(_free_vmas(mm)):
        raise Errno("ENOMEM")
    host.invalidate_range_start(mm, start, end)
    for vma in hit:
        low, high = int(vma.start), int(vma.start) + int(vma.length)
        hpa, prot, kind, obj = int(vma.hpa), int(vma.prot), int(vma.kind), int(vma.obj)
        cut_low, cut_high = max(low, start), min(high, end)
        clear_pages(host.words, int(mm.cr3), cut_low, (cut_high - cut_low) // PAGE)
        vma.length = max(0, cut_low - low)
        if high > cut_high:
            rest = vma if not vma.length else _free_vmas(mm)[0]
            rest.start, rest.length = cut_high, high - cut_high
            rest.hpa, rest.prot, rest.kind, rest.obj = hpa + cut_high - low, prot, kind, obj
        if kind == VMA_ANON:
            host.free_pages(hpa + cut_low - low, (cut_high - cut_low) // PAGE)
        else:
            files.unmapped(host, kind, obj)
    _flush(host)


def sys_mmap(
    host: Host, task: Any, address: int, length: int, prot: int, flags: int, fd: int, offset: int
) -> int:
    """ksys_mmap_pgoff(), do_mmap(): the address of a new mapping."""
    if offset % PAGE or not length:
        raise Errno("EINVAL")
    pages = -(-length // PAGE)
    length = pages * PAGE
    if length > TASK_SIZE:
        raise Errno("ENOMEM")
    prot &= PROT_READ | PROT_WRITE | PROT_EXEC
    shared = flags & MAP_TYPE
    if not flags & MAP_ANONYMOUS:
        start = files.mmap_file(host, signed(fd, 32), address, length, prot, flags, offset)
        host.charge("do_mmap")
        return start
    if shared not in (MAP_SHARED, MAP_PRIVATE):
        raise Errno("EINVAL")
    start = place(host, address, length, flags)
    make_room(host, start, length, flags)
    hpa = host.alloc_pages(pages, pool=bool(flags & MAP_HUGETLB))
    try:
        add_vma(host, host.mm, start, length, hpa, prot)
    except Errno:
        host.free_pages(hpa, pages)
        raise
    host.charge("do_mmap")
    return start


def sys_munmap(host: Host, task: Any, address: int, length: int) -> int:
    """Remove mappings."""
    if address % PAGE or not length or address > TASK_SIZE or length > TASK_SIZE - address:
        raise Errno("EINVAL")
    unmap(host, host.mm, address, -(-length // PAGE) * PAGE)
    host.charge("do_munmap")
    return 0


def sys_mprotect(host: Host, task: Any, address: int, length: int, prot: int) -> int:
    """Change the rights of whole mappings' pages."""
    if address % PAGE or prot & ~(PROT_READ | PROT_WRITE | PROT_EXEC):
        raise Errno("EINVAL")
    length = -(-length // PAGE) * PAGE
    if not length:
        return 0
    if address + length > TASK_SIZE:
        raise Errno("ENOMEM")
    mm = host.mm
    at = address
    hit = []
    while at < address + length:
        found = [v for v in vmas(mm) if int(v.start) <= at < int(v.start) + int(v.length)]
        if not found:
            raise Errno("ENOMEM")
        hit.append(found[0])
        at = int(found[0].start) + int(found[0].length)
    host.invalidate_range_start(mm, address, address + length)
    for vma in hit:
        low = max(address, int(vma.start))
        high = min(address + length, int(vma.start) + int(vma.length))
        if (low, high) != (int(vma.start), int(vma.start) + int(vma.length)):
            _split(mm, vma, low, high)
    for vma in [v for v in vmas(mm) if address <= int(v.start) < address + length]:
        vma.prot = prot
        _map(host, mm, int(vma.start), int(vma.length), int(vma.hpa), prot)
    _flush(host)
    host.charge("do_munmap")
    return 0


def _split(mm: Any, vma: Any, low: int, high: int) -> None:
    """Make low..high of a mapping one of its own."""
    start, end, hpa = int(vma.start), int(vma.start) + int(vma.length), int(vma.hpa)
    if int(vma.kind) != VMA_ANON:
        raise Errno("EINVAL")
    cuts = [start, *([low] if low > start else []), *([high] if high < end else []), end]
    free = _free_vmas(mm)
    if len(cuts) - 2 > len(free):
        raise Errno("ENOMEM")
    rows = [vma, *free]
    for row, first, last in zip(rows, cuts, cuts[1:], strict=False):
        row.start, row.length, row.hpa = first, last - first, hpa + first - start
        row.prot, row.kind, row.obj = int(vma.prot), VMA_ANON, -1


# --- whole address spaces -------------------------------------------------------------------------------
def mm_create(host: Host) -> int:
    """A new empty address space with one user.

    Raises:
        Errno: ENOMEM.
    """
    for k in range(N_MMS):
        mm = host.S.mms[k]
        if not mm.users:
            mm.cr3 = host.alloc_pages(1)
            mm.users = 1
            mm.perf_rdpmc_allowed = 0
            for vma in mm.vmas:
                vma.length = 0
            return k
    raise Errno("ENOMEM")


def exit_mmap(host: Host, mm: Any) -> None:
    """Remove all mappings.

    Raises:
        Restart: one shows an event of a core that is in a guest; call again.
    """
    for vma in list(vmas(mm)):
        unmap(host, mm, int(vma.start), int(vma.length))


def mmput(host: Host, row: int) -> None:
    """One user less; the last one takes mappings and tables along."""
    mm = host.S.mms[row]
    if int(mm.users) > 1:
        mm.users -= 1
        return
    exit_mmap(host, mm)
    mm.users = 0
    for table in list(tables(host.words, int(mm.cr3))):
        host.free_pages(table, 1)
    mm.cr3 = 0
    for percpu in host.S.percpu:
        percpu.space = NOWHERE  # the next address space in this row is another one


def load_program(host: Host, row: int, program: Any, argv: list[str], envp: list[str]) -> tuple[int, int]:
    """Put a program and its stack into address space `row`: (rip, rsp) of its first instruction.

    argc is at rsp, then argv, envp and the auxiliary vector, as the x86-64 ABI has it.

    Raises:
        LoadError: it is linked where a program cannot be, or memory does not suffice.
    """
    try:
        return _load_program(host, row, program, argv, envp)
    except Errno as error:
        raise LoadError(f"{program.name}: no room in the host's memory ({error})") from None


def _load_program(
    host: Host, row: int, program: Any, argv: list[str], envp: list[str]
) -> tuple[int, int]:
    mm = host.S.mms[row]
    pieces: list[list[int]] = []  # start, end, prot of whole pages
    for segment in sorted((s for s in program.segments if s.data), key=lambda s: s.vaddr):
        low, high = segment.vaddr // PAGE * PAGE, -(-(segment.vaddr + len(segment.data)) // PAGE) * PAGE
        if low < IMAGE_BASE or high > MMAP_BASE:
            raise LoadError(
                f"{program.name}: section {segment.name} at {segment.vaddr:#x} is where no host program "
                f"can be; link it between {IMAGE_BASE:#x} and {MMAP_BASE:#x}"
            )
        prot = PROT_READ | (PROT_WRITE if segment.write else 0) | (PROT_EXEC if segment.exec else 0)
        if pieces and low < pieces[-1][1]:
            pieces[-1][1] = max(pieces[-1][1], high)
            pieces[-1][2] |= prot
        else:
            pieces.append([low, high, prot])
    if not pieces:
        raise LoadError(f"{program.name}: no program: there is nothing in it")
    for low, high, prot in pieces:
        hpa = host.alloc_pages((high - low) // PAGE)
        add_vma(host, mm, low, high - low, hpa, prot)
        for segment in program.segments:
            if segment.data and low <= segment.vaddr < high:
                host.write_physical(hpa + segment.vaddr - low, bytes(segment.data))
    hpa = host.alloc_pages(STACK_SIZE // PAGE)
    bottom = STACK_TOP - STACK_SIZE
    add_vma(host, mm, bottom, STACK_SIZE, hpa, PROT_READ | PROT_WRITE)
    image, rsp = _stack(program, argv, envp)
    host.write_physical(hpa + rsp - bottom, image)
    return int(program.entry), rsp


def _stack(program: Any, argv: list[str], envp: list[str]) -> tuple[bytes, int]:
    """The bytes from the first rsp to the top of the stack, and that rsp."""
    strings = b""
    places = []
    for text in (*argv, *envp):
        data = text.encode() + b"\0"
        strings = data + strings
        places.append(STACK_TOP - len(strings))
    auxv = [constant("AT_PAGESZ"), PAGE, constant("AT_ENTRY"), int(program.entry), constant("AT_NULL"), 0]
    words = [len(argv), *places[: len(argv)], 0, *places[len(argv) :], 0, *auxv]
    rsp = (STACK_TOP - len(strings) - 8 * len(words)) & ~15
    if STACK_TOP - rsp > STACK_SIZE // 2:
        raise LoadError(f"{program.name}: its arguments are longer than {STACK_SIZE // 2} bytes")
    image = b"".join(word.to_bytes(8, "little") for word in words)
    return image + bytes(STACK_TOP - rsp - len(image) - len(strings)) + strings, rsp
