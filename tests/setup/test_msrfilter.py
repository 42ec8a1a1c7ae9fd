"""An MSR filter from TOML to its VMM: what is written, what is refused, what a guest then meets."""

from __future__ import annotations

import pytest

import vpmu_emu
from vpmu_emu.asm import assemble
from vpmu_emu.errors import VpmuError
from vpmu_emu.setup.msrfilter import MsrFilter, load_msr_filter, parse_msr_filter
from vpmu_emu.tables.linux import STRUCTS

pytestmark = pytest.mark.uncompiled

READ, WRITE = 1, 2
INVAL, UNKNOWN, FILTER = 1, 2, 4


def test_what_is_written():
    made = parse_msr_filter("""
        default = "deny"
        user_space = ["filter", "inval", "filter"]
        ranges = [
            { first = "IA32_PMC0", count = 8, access = ["write"], allow = ["IA32_PMC1", 0xc8] },
            { first = 0x38f, access = ["read"], allow = true },
            { first = 0x400000, count = 65 },
        ]
    """)
    assert (made.flags, made.user_space) == (1, FILTER | INVAL)
    assert [(r.flags, r.base, r.nmsrs, r.bitmap) for r in made.ranges] == [
        (WRITE, 0xC1, 8, b"\x82" + bytes(7)),
        (READ, 0x38F, 1, b"\x01" + bytes(7)),
        (READ | WRITE, 0x400000, 65, bytes(16)),
    ]
    assert parse_msr_filter("") == MsrFilter(0)


def test_files_of_the_vmm():
    """Bitmaps lie behind the structure, at the offsets that the VMM makes addresses of."""
    ranges = "{ first = 0xc1, allow = true }, { first = 0x186, count = 100, allow = true }"
    files = parse_msr_filter(f'user_space = ["unknown"]\nranges = [{ranges}]').files()
    data = files["/msr_filter"]
    head = STRUCTS["kvm_msr_filter"].read(data[: STRUCTS["kvm_msr_filter"].size])
    assert int(head["flags"]) == 0
    places = [(int(r["base"]), int(r["nmsrs"]), int(r["bitmap"])) for r in head["ranges"] if r["nmsrs"]]
    assert places == [(0xC1, 1, 392), (0x186, 100, 400)]
    assert data[392:] == b"\x01" + bytes(7) + b"\xff" * 12 + b"\x0f" + bytes(3)
    cap = STRUCTS["kvm_enable_cap"].read(files["/user_space_msr"])
    assert (int(cap["cap"]), int(cap["flags"]), int(cap["args"][0])) == (188, 0, UNKNOWN)
    assert set(parse_msr_filter("").files()) == {"/msr_filter"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("default = ", "f: not TOML"),
        ("default = 'forbid'", "f.default: 'forbid' is not allowed (allowed: allow deny)"),
        ("default = 'deny'", "f.ranges: are missing"),
        ("defaults = 'deny'", "f.defaults: unknown key; did you mean default?"),
        ("user_space = 'filter'", "f.user_space: 'filter' is not a list"),
        ("user_space = ['filtre']", "f.user_space[0]: 'filtre' is not allowed; did you mean filter?"),
        ("ranges = 1", "f.ranges: 1 is not a list"),
        ("ranges = [1]", "f.ranges[0]: 1 is not a range"),
        ("ranges = [{}]", "f.ranges[0].first: is missing"),
        ("ranges = [{first = -1}]", "f.ranges[0].first: -1 is not an MSR"),
        ("ranges = [{first = 4294967296}]", "f.ranges[0].first: 4294967296 is not an MSR"),
        ("ranges = [{first = 'IA32_PMCX'}]", "IA32_PMC"),
        ("ranges = [{first = 1, count = 0}]", "f.ranges[0].count: 0 is not allowed"),
        ("ranges = [{first = 1, count = 12289}]", "count: 12289 is not allowed (allowed: 1 to 0x3000)"),
        ("ranges = [{first = 4294967295, count = 2}]", "count: 2 is not allowed (allowed: 1 to 0x1)"),
        ("ranges = [{first = 1, access = []}]", "f.ranges[0].access: is empty"),
        ("ranges = [{first = 1, access = ['reed']}]", "'reed' is not allowed; did you mean read?"),
        ("ranges = [{first = 1, allow = 1}]", "f.ranges[0].allow: 1 is not allowed"),
        ("ranges = [{first = 1, allow = [2]}]", "allow[0]: 2 is not in the range (allowed: 0x1 to 0x1)"),
        ("ranges = [{first = 1, alow = [1]}]", "f.ranges[0].alow: unknown key; did you mean allow?"),
        ("ranges = [" + "{first = 1}," * 17 + "]", "f.ranges: 17 ranges (allowed: at most 16)"),
        ("ranges = " + "[" * 5000, "f: "),
    ],
)  # fmt: skip
def test_what_is_refused(text, message):
    with pytest.raises(VpmuError) as error:
        parse_msr_filter(text, "f")
    assert message in str(error.value)


def test_a_file_that_is_none(tmp_path):
    for path in (tmp_path, tmp_path / "none.toml"):
        with pytest.raises(VpmuError, match="msr-filter: cannot read"):
            load_msr_filter(path)


GUEST = """
        .include "macros.inc"
_start: load_idt
        set_gate 13, refused
        xor esi, esi
        mov ecx, 0xc1
        rdmsr
        mov eax, 5
        xor edx, edx
        wrmsr
        mov ecx, 0xc2
        wrmsr
        rdmsr
        mov [rip + found], rax
        mov eax, esi
        out 0xf4, al
refused:
        add qword ptr [rsp + 8], 2
        inc esi
        add rsp, 8
        iretq
        .bss
found:  .zero 8
        idt_storage
"""


@pytest.mark.parametrize(("mode", "ram"), [("emulated", 2), ("passthrough", 2), ("none", 3074)])
@pytest.mark.parametrize("user_space", ["[]", '["filter"]'])
def test_what_a_guest_meets(mode, ram, user_space, tmp_path):
    """Writes of PMC0 are #GP, whoever is asked; its reads and PMC1 are not."""
    file = tmp_path / "f.toml"
    file.write_text(f'user_space = {user_space}\nranges = [{{ first = "IA32_PMC0", access = ["write"] }}]')
    program = assemble(GUEST, "msrs.s")
    result = vpmu_emu.run(program, vpmu=mode, ram=ram, msr_filter=str(file)).to_json()
    assert result["exit_code"] == 1
    through = mode == "passthrough"
    assert result["exits"].get("MSR_READ", 0) == (0 if through else 2)
    assert result["exits"]["MSR_WRITE"] == (1 if through else 2)
