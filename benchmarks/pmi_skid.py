"""Whose PMI is it, once it comes late? docs/pmi_skid.md, by runs of guests/workloads/pmi_skid.s.

    python benchmarks/pmi_skid.py            write the page anew
    python benchmarks/pmi_skid.py --check    status 1 if it is another

Every pair of both parts of the skid, in every mode that can be told from another by it, with a host that
samples itself and one that does not. A run is a pure function of its options: the page is exact.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

from vpmu_emu.asm import Program, assemble_file
from vpmu_emu.system import System

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "pmi_skid.md"
GUEST = ROOT / "guests" / "workloads" / "pmi_skid.s"

CYCLES = (0, 100, 300, 600, 1000, 2000)
KINDS = (
    ("emulated", "dedicated"), ("passthrough", "dedicated"), ("passthrough", "nmi"),
    ("mediated", "dedicated"), ("mediated", "nmi"),
)  # fmt: skip
HOSTS = {"Only the guest samples": (), "The host samples, too": ("cycles/period=3001/:H",)}

HEAD = """\
# PMIs that come late

Design open 3 of the series: when the interrupt of a guest's counter comes only after the guest has been
left, who can still tell whose it is? Measured with `{guest}` (a PMI every 5003 instructions, an exit
every 600 to 1600 cycles), by `python benchmarks/pmi_skid.py`.

`--pmi-skid OVERFLOW:RECOGNITION` says in core cycles how late. The first part ends with the message to
the local APIC, and the vector is what LVTPC holds *then*; the second ends when the core recognises the
interrupt, whose vector is fixed by then. On each part one request is under way at a time: a counter that
overflows meanwhile sets its bit in GLOBAL_STATUS and asks for nothing more, and once the message has come
the entry masks itself (SDM 3A 11.5.1), so that it drops the next. (That overflows on the way are one
request is the rule taken here, where the manual is silent; a handler has to look at every bit of
GLOBAL_STATUS for the same reason, SDM 3B 20.2.) NMIs and vectors have latches of their own in the core,
so that either can follow the other. What DEBUGCTL freezes stops at the overflow. KVM's switch of the PMU is
one piece here: an NMI that becomes due in the midst of it is taken at its end.

`--pmi-vector dedicated` is what the series has and what was merged: the guest's PMIs have vector 0xf5 and
only they; an NMI while a guest has the PMU is not the PMU's, for perf's handler. `nmi` is what the cover
letter weighs against it: LVTPC stays NMI, and the handler decides. It can see only who has the PMU *now*,
and his GLOBAL_STATUS: with the guest's context in, any bit there makes it the guest's (KVM_REQ_PMI); else
it is perf's.

- misattributed: PMIs that were taken for those of the other side
- unclaimed: NMIs without a cause that a handler could find: "{unknown}"
- lost: PMIs of which their owner has never heard

In expectations and JSON they are `perf.pmis_misattributed`, `perf.nmis_unclaimed` and `perf.pmis_lost`.

What the tables say:

- Without a skid nobody is mistaken, in any mode and with either vector.
- From message to recognition (first line of each table) the vector keeps the guest's PMI apart:
  `dedicated` has no misattribution. With `nmi` what comes behind the put is taken for the host's, whose
  GLOBAL_STATUS says nothing.
- From overflow to message (first column) no vector helps: behind the put LVTPC says NMI again, nobody
  claims it, and the guest's profiler loses its sample. The reverse too: a message of the host's that
  comes when the guest has LVTPC is a PMI of the guest's by its vector; here the guest's handler finds no
  status bit and goes on.
- The NMI of a host's event that comes while a guest has the PMU is unclaimed with `dedicated`, and the
  sample lost: that is the price of not looking at NMIs then (patch 09, and `guest_lvtpc_loaded` as
  merged).
- In `emulated` perf owns every counter, and finds the status bit whenever the NMI comes; but KVM stops
  and restarts its events at every instruction that it emulates, and an overflow whose NMI comes behind
  that is nobody's any more (`pmc_pause_counter()`): the guest's counter has wrapped, and its
  GLOBAL_STATUS does not say so.
"""


@attrs.frozen
class Found:
    """What one run counts."""

    raised: int
    misattributed: int
    unclaimed: int
    lost: int

    def __str__(self) -> str:
        wrong = (self.misattributed, self.unclaimed, self.lost)
        return " ".join(map(str, wrong)) if any(wrong) else "-"


def measure(
    program: Program, mode: str, vector: str, skid: tuple[int, int], host_events: Sequence[str]
) -> Found:
    """One run of the guest."""
    options = {"pmi_vector": vector} if mode != "emulated" else {}
    system = System(program, vpmu=mode, ram=2, pmi_skid=skid, host_events=host_events, **options)
    stop = system.run()
    result = system.result(stop).to_json()
    if result["exit_code"] != 0:
        raise RuntimeError(f"{mode} {vector} {skid}: {stop}")
    names = ("pmis_misattributed", "nmis_unclaimed", "pmis_lost")
    return Found(int(result["pmis_hw"]), *(int(result["perf"][name]) for name in names))


def grid(
    program: Program, mode: str, vector: str, host_events: Sequence[str], cycles: Sequence[int] = CYCLES
) -> dict[tuple[int, int], Found]:
    """Every pair of skids."""
    pairs = [(overflow, recognition) for overflow in cycles for recognition in cycles]
    return {pair: measure(program, mode, vector, pair, host_events) for pair in pairs}


Tables = dict[tuple[str, str, str], dict[tuple[int, int], Found]]


def measured() -> Tables:
    """Every grid, by title of HOSTS, mode and vector."""
    program = assemble_file(GUEST)
    return {
        (title, mode, vector): grid(program, mode, vector, events)
        for title, events in HOSTS.items() for mode, vector in KINDS
    }  # fmt: skip


def _tables(grids: Tables) -> Iterator[str]:
    for title, events in HOSTS.items():
        words = " and ".join(f"`--host-event {event}`" for event in events) or "no event of the host"
        yield f"\n## {title}\n\nWith {words}. A cell is misattributed, unclaimed, lost; `-`: none of it.\n"
        for mode, vector in KINDS:
            found = grids[title, mode, vector]
            name = mode if mode == "emulated" else f"{mode}, `--pmi-vector {vector}`"
            yield f"\n{name}: {found[0, 0].raised} PMIs without a skid.\n\n"
            yield f"| overflow → message, then recognition: | {' | '.join(map(str, CYCLES))} |\n"
            yield f"|---|{'---|' * len(CYCLES)}\n"
            for overflow in CYCLES:
                yield f"| {overflow} | {' | '.join(str(found[overflow, r]) for r in CYCLES)} |\n"


def text(grids: Tables) -> str:
    """The page."""
    unknown = "Uhhuh. NMI received for unknown reason 00 on CPU 0."
    head = HEAD.format(guest=GUEST.relative_to(ROOT), unknown=unknown)
    return head + "".join(_tables(grids))


def main() -> int:
    """Status 1 with `--check` if the page is old."""
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != text(measured()))
    PAGE.write_text(text(measured()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
