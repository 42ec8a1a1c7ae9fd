"""The instruction table is total: every form reads, and no two forms share bytes."""

from __future__ import annotations

from collections import defaultdict

import pytest

from vpmu_emu.tables.instructions import (
    BY_NAME,
    CONDITIONS,
    EVENT_CLASSES,
    FLAGS,
    FORMS,
    INSTRUCTIONS,
    Encoding,
    Form,
)


def _decoder_keys(form: Form):
    encoding = form.encoding
    for size in form.opsizes:
        for mod in form.mod if form.mod in ("r", "m") else "rm":
            yield (
                form.requires,
                encoding.map,
                encoding.opcode,
                encoding.digit,
                encoding.modrm_fixed,
                encoding.plus_r,
                mod,
                size,
            )


def test_no_two_forms_decode_from_the_same_bytes():
    found = defaultdict(list)
    for form in FORMS:
        for key in _decoder_keys(form):
            found[key].append(form)
    assert {k: v for k, v in found.items() if len(v) > 1} == {}


def test_an_opcode_has_digits_or_not_and_registers_in_it_or_not():
    by_opcode = defaultdict(set)
    for form in FORMS:
        encoding = form.encoding
        group = encoding.digit is not None or encoding.modrm_fixed is not None
        by_opcode[form.requires, encoding.map, encoding.opcode].add((group, encoding.has_modrm))
    mixed = {key for key, kinds in by_opcode.items() if len(kinds) > 1}
    assert mixed == set()


def test_register_opcodes_overlap_only_where_the_manual_does():
    # 90 is NOP and not XCHG EAX, EAX (SDM Vol. 2 "XCHG"); nothing else shares.
    plus_r = {
        form.encoding.opcode[:-1] + bytes([form.encoding.opcode[-1] + i])
        for form in FORMS
        if form.encoding.plus_r
        for i in range(8)
    }
    plain = {form.encoding.opcode for form in FORMS if not form.encoding.plus_r}
    assert plus_r & plain == {b"\x90"}


def test_indices_are_positions_and_forms_know_their_row():
    assert [form.index for form in FORMS] == list(range(len(FORMS)))
    assert [form for row in INSTRUCTIONS for form in row.forms] == list(FORMS)
    assert all(form in form.instruction.forms for form in FORMS)


def test_a_row_is_named_by_mnemonic_and_meaning():
    names = [(row.mnemonic, row.sem) for row in INSTRUCTIONS]
    assert len(names) == len(set(names))


def test_every_condition_and_synonym_has_a_jump_a_set_and_a_move():
    for cc, (suffix, synonyms, _) in enumerate(CONDITIONS):
        for name in (suffix, *synonyms):
            for stem in ("j", "set", "cmov"):
                rows = {form.instruction for form in BY_NAME[stem + name]}
                assert [row.cc for row in rows] == [cc]


@pytest.mark.parametrize(
    ("name", "written", "undefined", "read"),
    [
        ("add", "oszapc", "", ""),
        ("adc", "oszapc", "", "c"),
        ("and", "oszpc", "a", ""),
        ("inc", "oszap", "", ""),
        ("shl", "oszpc", "oa", ""),
        ("bsf", "z", "osapc", ""),
        ("tzcnt", "zc", "osap", ""),
        ("bt", "c", "osap", ""),
        ("div", "", "oszapc", ""),
        ("mul", "oc", "szap", ""),
        ("jle", "", "", "osz"),
        ("cmovbe", "", "", "zc"),
        ("std", "d", "", ""),
        ("mov", "", "", ""),
    ],
)
def test_flags_are_those_of_the_manual(name, written, undefined, read):
    row = BY_NAME[name][0].instruction
    assert (set(row.written), set(row.undefined), set(row.read)) == (
        set(written),
        set(undefined),
        set(read),
    )


def test_flag_lists_are_flags_without_repeats():
    for row in INSTRUCTIONS:
        for flags in (row.written, row.undefined, row.read):
            assert len(set(flags)) == len(flags)
            assert set(flags) <= set(FLAGS)
        assert set(row.retires) <= set(EVENT_CLASSES)


def _form(name: str, operands: str) -> Form:
    (found,) = [f for f in BY_NAME[name] if f.operands == tuple(operands.split(", "))]
    return found


@pytest.mark.parametrize(
    ("name", "operands", "memory", "classes"),
    [
        ("add", "r/m32, r32", True, {"inst", "load", "store"}),
        ("add", "r/m32, r32", False, {"inst"}),
        ("add", "r32, r/m32", True, {"inst", "load"}),
        ("cmp", "r/m8, imm8", True, {"inst", "load"}),
        ("mov", "r/m64, r64", True, {"inst", "store"}),
        ("mov", "r64, r/m64", True, {"inst", "load"}),
        ("lea", "r64, m", True, {"inst"}),
        ("nop", "r/m32", True, {"inst", "nop"}),
        ("clflush", "m", True, {"inst"}),
        ("prefetchw", "m8", True, {"inst", "load"}),
        ("push", "r/m64", True, {"inst", "load", "store"}),
        ("pop", "r/m64", True, {"inst", "load", "store"}),
        ("call", "r/m64", True, {"inst", "branch", "taken", "call", "indirect", "load", "store"}),
        ("call", "rel32", False, {"inst", "branch", "taken", "call", "store"}),
        ("jmp", "r/m64", False, {"inst", "branch", "taken", "indirect"}),
        ("jne", "rel8", False, {"inst", "branch", "cond"}),
        ("movabs", "moffs64, rax", True, {"inst", "store"}),
        ("movabs", "rax, moffs64", True, {"inst", "load"}),
    ],
)
def test_event_classes_follow_the_operands(name, operands, memory, classes):
    assert set(_form(name, operands).retires(memory=memory)) == classes


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("REX.W 81 /0 id", {"rex_w": True, "opcode": b"\x81", "digit": 0, "imm": ("id",)}),
        ("66 F3 0F B8 /r", {"osize": True, "prefix": 0xF3, "opcode": b"\x0f\xb8"}),
        ("66 0F AE /7", {"osize": True, "prefix": 0x66, "digit": 7}),
        ("0F 01 C1", {"modrm_fixed": 0xC1, "opcode": b"\x0f\x01", "has_modrm": True}),
        ("F3 0F 1E FA", {"modrm_fixed": 0xFA, "mandatory": 0xF3}),
        ("0F C8+r", {"plus_r": True, "opcode": b"\x0f\xc8", "has_modrm": False}),
        ("C8 iw ib", {"imm": ("iw", "ib"), "imm_size": 3}),
        ("F3 90", {"prefix": 0xF3, "opcode": b"\x90"}),
    ],
)
def test_notation_comes_apart(text, fields):
    encoding = Encoding.parse(text)
    assert {key: getattr(encoding, key) for key in fields} == fields


def test_condition_codes_go_into_the_opcode():
    assert Encoding.parse("0F 80+cc cd", 5).opcode == b"\x0f\x85"
    with pytest.raises(ValueError, match="outside"):
        Encoding.parse("70+cc cb")
    with pytest.raises(ValueError, match="what is"):
        Encoding.parse("70 xx")


def test_opsizes_say_which_prefixes_a_form_takes():
    assert _form("add", "r/m8, r8").opsizes == (16, 32, 64)
    assert _form("add", "r/m32, r32").opsizes == (32,)
    assert _form("push", "r64").opsizes == (32, 64)
    assert _form("push", "imm32s").opsizes == (32, 64)
    assert _form("jmp", "rel32").opsizes == (16, 32, 64)
    assert _form("movsxd", "r64, r/m32").opsizes == (64,)
    assert BY_NAME["iretq"][0].opsizes == (64,)
