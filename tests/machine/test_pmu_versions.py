"""What each version of architectural performance monitoring does, on silicon and in guests of version 1."""

from __future__ import annotations

import pytest

from tests.machine.test_pmu import (
    BRANCH,
    CYCLES,
    EN,
    FIXED_VECTOR,
    HANDLERS,
    HEAD,
    INST,
    INT,
    NMI,
    OS,
    RING_TAIL,
    RINGS,
    TAIL,
    USR,
    WIDTH,
    armed,
    taken,
    write,
)  # fmt: skip
from tests.tools.whole import machine, reg
from vpmu_emu.asm import assemble
from vpmu_emu.errors import ConfigError
from vpmu_emu.system import System

pytestmark = pytest.mark.uncompiled

ON = INST | OS | EN
CTR_FRZ = 1 << 59
FREEZE = write(0x1D9, 1 << 12)


def run(body: str, tail: str = "", mode: str = "bare", **options):
    options.setdefault("max_insns", 100_000)
    system = machine(assemble(HEAD + body + TAIL + tail, "version"), mode, **options)
    stop = system.run()
    assert (stop.reason, stop.info) == ("debug-exit", 0), str(stop)
    return system


def version(n: int) -> dict:
    return {"settings": {"pmu.version": n}}


# --- version 1 ------------------------------------------------------------------------------------------
WINDOW = write(0x186, ON) + "nop\n" * 10 + write(0x186, 0)


def test_version_1_counts_while_en_is_set():
    pmu = run(WINDOW, **version(1)).guest_pmu()
    assert pmu["pmc"][0] == 10 + 4  # the WRMSR that ends the window retires in it
    assert pmu["fixed"] == []
    assert pmu["global_status"] == 0


@pytest.mark.parametrize("index", [0x309, 0x38D, 0x38E, 0x38F, 0x390, 0x391, 0x392])
@pytest.mark.parametrize("access", ["rdmsr", "wrmsr"])
def test_version_1_has_no_global_registers(index, access):
    text = HEAD + write(index, 0).replace("wrmsr", access) + TAIL
    stop = machine(assemble(text, "absent"), "bare", **version(1)).run()
    assert (stop.reason, stop.info) == ("triple-fault", 13)


@pytest.mark.parametrize("lvt", [NMI, FIXED_VECTOR])
def test_version_1_has_pmis_without_a_status(lvt):
    text = armed(-4, lvt=lvt).replace(write(0x38F, 0), "").replace(write(0x38F, 0xFF), "")
    # the selector is written before the counter here, so the write of the counter is the last one before
    system = run(("sti\n" if lvt != NMI else "") + text + "nop\n" * 9, HANDLERS, **version(1))
    assert taken(system) == [4]
    assert system.guest_pmu()["global_status"] == 0
    assert int(system.core.stats.overflows) == 1


@pytest.mark.parametrize(
    ("mode", "options"),
    [("emulated", {}), ("passthrough", {}), ("passthrough", {"all_passthrough": True})],
)
def test_a_guest_of_version_1_counts_as_silicon_does(mode, options):
    """Its hardware has a GLOBAL_CTRL: KVM loads it with all ones."""
    system = run(WINDOW, mode=mode, guest={"version": 1}, **options)
    assert system.guest_pmu()["pmc"][0] == 10 + 4
    text = HEAD + write(0x38F, 1) + TAIL
    stop = machine(assemble(text, "absent"), mode, guest={"version": 1}, **options).run()
    assert (stop.reason, stop.info) == ("triple-fault", 13)


@pytest.mark.parametrize("mode", ["emulated", "passthrough", "none"])
def test_a_host_of_version_1_has_no_guests(mode):
    with pytest.raises(ConfigError, match="GLOBAL_CTRL"):
        System(assemble("hlt", "empty"), vpmu=mode, ram=2, **version(1))


@pytest.mark.parametrize("mode", ["emulated", "passthrough"])
@pytest.mark.parametrize("host", [0, 2, 3, 4])
def test_hosts_of_other_versions_have_guests(mode, host):
    if host == 0:
        system = run("mov eax, 10\ncpuid\n", mode=mode, **version(0))
        assert reg(system, 0) & 0xFFFFFFFF == 0
        return
    text = write(0x38F, 0) + write(0x186, ON) + write(0x38F, 1) + "nop\n" * 10 + write(0x38F, 0)
    assert run(text, mode=mode, **version(host)).guest_pmu()["pmc"][0] == 10 + 4


# --- CPUID ----------------------------------------------------------------------------------------------
LEAF_A = "mov eax, 10\nxor ecx, ecx\ncpuid\nmov r8, rax\nmov r9, rbx\nmov r10, rcx\nmov r11, rdx\n"


def leaf_a(**options) -> tuple[int, ...]:
    system = run(LEAF_A, **options)
    return tuple(reg(system, k) for k in range(8, 12))


@pytest.mark.parametrize(
    ("options", "leaf"),
    [
        ({}, (0x08300805, 0, 0xF, 0x8604)),
        ({"cpu": "emr"}, (0x08300805, 0, 0xF, 0x8604)),
        ({"cpu": "skx"}, (0x07300404, 0, 0, 0x603)),
        ({"cpu": "generic"}, (0x08300805, 0, 0xF, 0x8604)),
        (version(0), (0, 0, 0, 0)),
        (version(1), (0x08300801, 0, 0, 0)),
        (version(3), (0x08300803, 0, 0, 0x604)),
        ({"settings": {"pmu.gp": 2, "pmu.fixed": 1, "pmu.width": 40}}, (0x08280205, 0, 1, 0x8501)),
    ],
)
def test_leaf_0a_of_silicon(options, leaf):
    assert leaf_a(**options) == leaf


@pytest.mark.parametrize("mode", ["emulated", "passthrough"])
@pytest.mark.parametrize(
    ("options", "leaf"),
    [
        # KVM_GET_SUPPORTED_CPUID: version 2, three fixed counters, no bitmap, EDX[15] whatever the CPU has
        ({}, (0x08300802, 0, 0, 0x8603)),
        ({"kvm": {"fixed_cap": 4}}, (0x08300802, 0, 0, 0x8603)),  # mediated guests only
        ({"cpu": "skx"}, (0x07300402, 0, 0, 0x8603)),
        ({"cpu": "generic"}, (0x08300802, 0, 0, 0x8603)),
        # What the VMM says stands, even if KVM does not do it.
        ({"guest": {"version": 5, "fixed": 4}}, (0x08300805, 0, 0xF, 0x8604)),
        ({"guest": {"version": 1, "gp": 2}}, (0x08300201, 0, 0, 0x8000)),
        ({"guest": {"version": 0}}, (0, 0, 0, 0)),
        ({"guest": {"gp": 1, "fixed": 0, "width": 32}}, (0x08200102, 0, 0, 0x8400)),
    ],
)
def test_leaf_0a_of_guests(mode, options, leaf):
    assert leaf_a(mode=mode, **options) == leaf


def test_leaf_0a_without_a_vpmu():
    assert leaf_a(mode="none") == (0, 0, 0, 0)


# --- shapes that cannot be ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": ["pmu.version=6"]}, ["set pmu.version", "0 to 5"]),
        ({"settings": ["pmu.gp=9"]}, ["set pmu.gp", "0 to 8"]),
        ({"settings": ["pmu.fixed=5"]}, ["set pmu.fixed", "0 to 4"]),
        ({"settings": ["pmu.width=31"]}, ["set pmu.width", "32 to 48"]),
        ({"settings": ["pmu.width=49"]}, ["set pmu.width", "32 to 48"]),
        ({"settings": ["pmu.gps=1"]}, ["set pmu.gps", "pmu.version"]),
        ({"settings": ["pmu.gp"]}, ["set", "NAME=NUMBER"]),
        ({"settings": ["pmu.gp=x"]}, ["set", "NAME=NUMBER"]),
        ({"cpu": "sprx"}, ["cpu", "did you mean spr"]),
        ({"vpmu": "emulated", "guest": ["pmu.version=256"]}, ["guest pmu.version", "0 to 255"]),
        ({"vpmu": "emulated", "guest": ["pmu.gp=9"]}, ["guest pmu.gp", "0 to 8"]),
        ({"vpmu": "emulated", "guest": ["pmu.perf_caps=1"]}, ["guest pmu.perf_caps", "0x2000"]),
        ({"vpmu": "emulated", "guest": ["gpp=1"]}, ["guest gpp", "pmu.gp"]),
        ({"vpmu": "emulated", "kvm": ["fixed_cap=5"]}, ["kvm fixed_cap", "3 4"]),
        ({"guest": ["pmu.gp=4"]}, ["guest", "no hypervisor"]),
    ],
)
def test_wrong_shapes_are_named_with_what_is_allowed(options, words):
    with pytest.raises(ConfigError) as caught:
        System(assemble("hlt", "empty"), ram=2, **options)
    for word in words:
        assert word in str(caught.value)


# --- version 4: STATUS_SET, INUSE, CTR_FRZ --------------------------------------------------------------
def test_status_set_sets_and_raises_nothing():
    selectors = "".join(write(0x186 + n, ON | INT) for n in range(2))
    text = armed(-1000).replace(write(0x38F, 0xFF), "") + selectors + write(0x391, 3 | 1 << 32 | 1 << 62)
    system = run(text + "nop\n" * 4, HANDLERS)
    assert system.guest_pmu()["global_status"] == 3 | 1 << 32 | 1 << 62
    assert taken(system) == []
    assert int(system.core.stats.pmis_hw) == int(system.core.stats.overflows) == 0
    assert int(system.core.lapic.lvt[3]) == NMI  # not masked: nothing was sent


def test_status_reset_clears_what_is_written_and_nothing_else():
    text = write(0x391, 0xF | 3 << 32) + write(0x390, 5 | 1 << 33)
    assert run(text).guest_pmu()["global_status"] == 0xA | 1 << 32


@pytest.mark.parametrize(
    ("selectors", "fixed", "wanted"),
    [
        ({}, 0, 0),
        ({0: 0xC0}, 0, 1),  # by its event, enabled or not
        ({0: EN | OS}, 0, 0),  # event 0 is none
        ({7: 0x3C, 2: 0xC4 | EN}, 0, 1 << 7 | 1 << 2),
        ({1: INT}, 0, 1 << 63),
        ({}, 0x1, 1 << 32),
        ({}, 0x2020, 1 << 33 | 1 << 35),
        ({}, 0x800, 1 << 63),  # a PMI enable without a ring
        ({0: 0xC0 | INT}, 0xB, 1 | 1 << 32 | 1 << 63),
    ],
)
def test_inuse_follows_the_selectors(selectors, fixed, wanted):
    text = "".join(write(0x186 + n, value) for n, value in selectors.items()) + write(0x38D, fixed)
    system = run(text + "mov ecx, 0x392\nrdmsr\nmov r8d, eax\nmov r9d, edx\n")
    assert reg(system, 9) << 32 | reg(system, 8) == wanted


def test_status_reset_of_ctr_frz_lets_the_counters_run_again():
    text = FREEZE + armed(-4, count=2) + "nop\n" * 10 + "mov ecx, 0\nrdpmc\nmov r8d, eax\n"
    text += write(0x390, 1) + "nop\nnop\nmov ecx, 0\nrdpmc\nmov r9d, eax\n"
    text += write(0x390, CTR_FRZ) + "nop\n" * 5 + "mov ecx, 0\nrdpmc\nmov r10d, eax\n"
    system = run(text, HANDLERS)
    frozen, still, thawed = (reg(system, k) for k in (8, 9, 10))
    assert (frozen, still) == (0, 0)  # clearing the overflow alone changes nothing
    assert thawed == 5 + 1  # the WRMSR that thaws does not count, RDPMC reads before it retires
    assert system.guest_pmu()["global_status"] == 2


def test_status_set_of_ctr_frz_freezes():
    text = write(0x38F, 1) + write(0x186, ON) + "nop\n" * 3 + write(0x391, CTR_FRZ) + "nop\n" * 9
    system = run(text)
    assert system.guest_pmu()["pmc"][0] == 3 + 4  # the WRMSR retires with the enables that it found
    assert system.guest_pmu()["global_ctrl"] == 1


def test_before_version_4_freezing_is_global_ctrl():
    text = FREEZE + armed(-4, count=2) + "nop\n" * 10 + write(0x38F, 2) + "nop\n" * 5 + write(0x38F, 0)
    system = run(text, HANDLERS, **version(3))
    assert system.guest_pmu()["pmc"][:2] == [0, 5 + 4]
    assert system.guest_pmu()["global_status"] == 3  # no CTR_FRZ bit


@pytest.mark.parametrize("n", [2, 5])
def test_freezing_comes_with_the_request_masked_or_not(n):
    """'Each ENABLE bit is cleared on a PMI request' (SDM 4 table 2-2): the LVT entry has no say."""
    text = FREEZE + armed(-4, lvt=NMI | 1 << 16) + "nop\n" * 10
    system = run(text, HANDLERS, **version(n))
    assert taken(system) == []
    assert system.guest_pmu()["pmc"][0] == 0


def test_without_the_bit_nothing_freezes():
    system = run(armed(-4) + "nop\n" * 10 + write(0x38F, 0), HANDLERS)
    assert system.guest_pmu()["pmc"][0] > 10
    assert system.guest_pmu()["global_status"] == 1


# --- version 3 and 5: AnyThread -------------------------------------------------------------------------
@pytest.mark.parametrize("n", [3, 4, 5])
def test_anythread_changes_nothing_with_one_thread(n):
    text = write(0x38F, 0) + write(0x186, ON | 1 << 21) + write(0x187, ON) + write(0x38D, 0x17)
    text += write(0x38F, 3 | 3 << 32) + "nop\n" * 9 + write(0x38F, 0)
    pmu = run(text, **version(n)).guest_pmu()
    assert pmu["pmc"][0] == pmu["pmc"][1] == pmu["fixed"][0] == 9 + 4
    assert pmu["eventsel"][0] & 1 << 21  # the bit is kept


# --- overflow, to the event -----------------------------------------------------------------------------
@pytest.mark.parametrize("left", [1, 2, 3])
def test_the_status_bit_is_set_by_the_event_that_wraps_and_not_before(left):
    text = write(0x38F, 0) + write(0x186, BRANCH | OS | EN) + write(0x4C1, -left % WIDTH) + write(0x38F, 1)
    text += "xor r8d, r8d\nmov ecx, 0x38e\n"
    for k in range(4):
        text += f"rdmsr\nshl eax, {k}\nor r8d, eax\njmp {k + 1}f\n{k + 1}:\n"
    system = run(text)
    # reading k comes after k jumps; the register's bit 0 shows from the one after the wrap on
    assert reg(system, 8) == sum(1 << k for k in range(4) if k >= left)


@pytest.mark.parametrize("counter", [*range(8), *range(32, 36)])
@pytest.mark.parametrize("width", [32, 40, 48])
def test_every_counter_wraps_at_its_width(counter, width):
    fixed = counter >= 32
    text = write(0x38F, 0)
    if fixed:
        text += write(0x38D, 1 << 4 * (counter - 32)) + write(0x309 + counter - 32, (1 << width) - 3)
    else:
        text += write(0x186 + counter, ON) + write(0x4C1 + counter, (1 << width) - 3)
    text += write(0x38F, 1 << counter) + "nop\n" * 60 + write(0x38F, 0)
    system = run(text, settings={"pmu.width": width})
    pmu = system.guest_pmu()
    assert pmu["global_status"] == 1 << counter
    value = pmu["fixed"][counter - 32] if fixed else pmu["pmc"][counter]
    if counter < 33:
        assert value == 60 + 4 - 3
    assert 0 < value < 1000


@pytest.mark.parametrize("fixed", [0, 1, 2, 3])
def test_fixed_counters_raise_pmis(fixed):
    text = armed(-1000, selector=0).replace(write(0x38F, 0xFF), "")
    text += write(0x309 + fixed, -2 % WIDTH) + write(0x38D, 9 << 4 * fixed) + "work:\n"
    text = text.replace("work:\n", "", 1) + write(0x38F, 1 << 32 + fixed) + "nop\n" * 24
    system = run(text, HANDLERS)
    assert len(taken(system)) == 1
    assert system.guest_pmu()["global_status"] == 1 << 32 + fixed
    quiet = run(text.replace(write(0x38D, 9 << 4 * fixed), write(0x38D, 1 << 4 * fixed)), HANDLERS)
    assert taken(quiet) == []


def test_a_latched_pmi_comes_although_its_status_is_cleared():
    text = armed(-3, lvt=FIXED_VECTOR) + "nop\n" * 6 + write(0x38F, 0) + write(0x390, 1)
    system = run(text + "sti\nnop\nnop\n", HANDLERS)
    assert len(taken(system)) == 1
    assert system.guest_pmu()["global_status"] == 0


@pytest.mark.parametrize("index", [0xC1, 0x4C1])
def test_a_write_to_a_running_counter_counts_from_there(index):
    text = write(0x38F, 0) + write(0x186, ON | INT) + write(0x38F, 1) + "nop\n" * 30
    pmu = run(text + write(index, -5 % WIDTH) + "nop\n" * 20 + write(0x38F, 0)).guest_pmu()
    # the WRMSR retires before its effect: it is not counted
    assert pmu["pmc"][0] == 20 + 4 - 5
    assert pmu["global_status"] == 1


def test_a_write_that_retires_over_the_edge_overflows_first():
    """WRMSR of the counter is itself the event that wraps it: the status is set, then the value."""
    text = write(0x38F, 0) + write(0x186, ON) + write(0x4C1, -4 % WIDTH) + write(0x38F, 1)
    text += write(0x4C1, 100) + write(0x38F, 0)
    pmu = run(text).guest_pmu()
    assert pmu["global_status"] == 1
    assert pmu["pmc"][0] == 100 + 4


# --- RDPMC ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", range(6))
@pytest.mark.parametrize(
    ("ecx", "since"),
    [
        (0, 1), (7, 1), (8, None), (0x100, None), (0x4000_0000, 2), (0x4000_0003, 2), (0x4000_0004, None),
        (0x2000_0000, 2), (0x2000_0001, None), (0x8000_0000, None), (0xC000_0000, None),
        (0x4000_0100, None),
    ],
)  # fmt: skip
def test_rdpmc_by_version(n, ecx, since):
    text = RINGS + "set_gate 13, fault\nxor esi, esi\n" + f"mov rcx, {0xABC << 32 | ecx}\nrdpmc\n"
    tail = "fault:\nmov esi, 1\nmov rsp, [kernel_rsp]\nback:\ndebug_exit 0\n" + RING_TAIL
    faulted = reg(run(text, tail, **version(n)), 6)
    assert faulted == (0 if since is not None and n >= since else 1)


# --- rings ----------------------------------------------------------------------------------------------
CHANGES = """
    wrmsr_const IA32_STAR, (0x18 << 48) | (0x08 << 32)
    lea rax, [kernel]
    wrmsr_rax IA32_LSTAR
    wrmsr_const IA32_FMASK, 0x200
    wrmsr_const IA32_EFER, 0x501
    set_gate 0x60, handler
    lapic_enable_x2apic
"""
USER = """
    push_user_frame user
    mov qword ptr [rsp + 16], 0x202
    iretq
user:
    nop
    syscall
    nop
    nop
    int 0x40
    nop
    int 0x41
back:
"""
KERNEL = """
kernel:
    mov r14, rcx
    mov ecx, 0x83f
    mov eax, 0x60
    xor edx, edx
    wrmsr
    mov rcx, r14
    sysretq
handler:
    push rax
    lapic_eoi
    pop rax
    iretq
"""


def test_rings_across_every_kind_of_change():
    """IRETQ, SYSCALL, SYSRETQ, INT and an interrupt: each instruction counts in the ring it begins in."""
    text = write(0x38F, 0)
    for n, ring in enumerate((OS, USR, OS | USR)):
        text += write(0x186 + n, INST | EN | ring) + write(0x189 + n, 0x40C4 | EN | ring)
    text += write(0x38D, 0x21) + write(0x187 + 5, CYCLES | EN | USR) + write(0x38F, 0xFF | 3 << 32)
    begin = RINGS + CHANGES + text
    system = run(begin + USER + write(0x38F, 0), KERNEL + RING_TAIL)
    pmu = system.guest_pmu()
    os, usr, both, far_os, far_usr, far = pmu["pmc"][:6]
    # nop syscall nop nop int nop int; the interrupt comes after SYSRETQ, before the first nop
    assert usr == 7
    assert far_usr == 3
    # frame and iretq | seven of `kernel` | push xor xor mov wrmsr pop iretq | nop iretq | mov jmp | close
    frame = 8  # push_user_frame and the flags
    assert os == frame + 1 + 7 + 7 + 2 + 2 + 4
    assert far_os == 1 + 1 + 1 + 1
    assert both == os + usr
    assert far == far_os + far_usr
    assert pmu["fixed"][0] == os
    assert pmu["fixed"][1] == pmu["pmc"][6]


@pytest.mark.parametrize("mode", ["bare", "emulated", "passthrough"])
@pytest.mark.parametrize("masks", [1, 0])
def test_whether_a_pmi_masks_its_entry_is_the_models(mode, masks):
    text = armed(-3) + "nop\n" * 5 + write(0x38F, 0) + write(0x4C1, -3 % WIDTH) + write(0x38F, 1)
    text += "nop\n" * 9 + write(0x38F, 0) + "mov ecx, 0x834\nrdmsr\nmov r8d, eax\n"
    code = assemble(HEAD + text + TAIL + HANDLERS, "masks")
    system = machine(code, mode, max_insns=20_000)
    system.core.pmu.masks_lvtpc = masks
    assert system.run().reason == "debug-exit"
    assert len(taken(system)) == (1 if masks else 2)
    assert reg(system, 8) == NMI | masks << 16
