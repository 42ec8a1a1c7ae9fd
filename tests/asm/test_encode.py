"""Every form of the table, byte for byte as GNU as writes it."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.asm.cases import WRITTEN, all_cases
from tests.asm.gnu import gnu, require
from vpmu_emu.asm import assemble
from vpmu_emu.asm import instructions as module
from vpmu_emu.asm.encode import Branch
from vpmu_emu.tables.instructions import BY_NAME

_HEAD = "_start: nop\n.equ N, 5\nhere: nop\n"


def _program(statements):
    return _HEAD + "".join(f"1: {s}\n2: nop\n" for s in statements)


def test_every_form_is_the_bytes_of_gnu_as(tmp_path, monkeypatch, capsys):
    used = []
    real = module.encode

    def spy(name, prefixes, operands):
        encoded = real(name, prefixes, operands)
        used.append(encoded)
        return encoded

    monkeypatch.setattr(module, "encode", spy)
    module.FIXED.clear()
    statements = [statement for _, statement in all_cases()]
    program = assemble(_program(statements))
    data = gnu(_program(statements), tmp_path)[".text"][1]
    ours = program.segments[0].data
    for line in program.lines:
        start = line.addr - program.segments[0].addr
        mine, theirs = ours[start : start + line.size], data[start : start + line.size]
        assert mine == theirs, f"{line.text}: {mine.hex(' ')}, GNU as has {theirs.hex(' ')}"
    assert ours == data

    covered: Counter[int] = Counter()
    for encoded in used:
        if isinstance(encoded, Branch):
            for form in BY_NAME_OF[encoded.short]:
                covered[form.index] += 1
        else:
            covered[encoded.form.index] += 1
    with capsys.disabled():
        widths = Counter()
        for form in WRITTEN:
            widths[form.instruction.mnemonic, form.width] += covered[form.index]
        print(f"\n{len(statements)} statements, {len(WRITTEN)} forms, {len(widths)} widths")
    for form in WRITTEN:
        print(f"{covered[form.index]:4} {form.instruction.mnemonic:10} {form.width:3} {form.text}")
    assert [form for form in WRITTEN if not covered[form.index]] == []


BY_NAME_OF = {
    form.encoding.opcode: [form, *(f for f in form.instruction.forms if f.operands == ("rel32",))]
    for form in WRITTEN
    if form.operands == ("rel8",)
}


def test_every_name_and_alias_is_known_to_gnu_as(tmp_path):
    statements = []
    for name, forms in BY_NAME.items():
        form = forms[0]
        words = {"r/m8": "al", "r/m16": "ax", "r16": "ax", "rel8": ".", "rel32": "_start"}
        words |= {"r8": "al", "r32": "eax", "r64": "rax", "r/m64": "rax", "m80": "[rax]", "m8": "[rax]"}
        words |= {"imm8": "1", "imm16": "1", "m": "[rax]", "imm64": "1", "r/m32": "eax"}
        words |= {f"m{size}": "[rax]" for size in (16, 32, 64, 128)} | {"dr": "dr0"}
        operands = [words.get(word, word) for word in form.operands]
        if not any(word.startswith(("moffs", "imm8s")) for word in operands):
            statements.append(f"{name} {', '.join(operands)}")
    assert assemble(_HEAD + "\n".join(statements)).segments[0].data == (
        gnu(_HEAD + "\n".join(statements) + "\n", tmp_path)[".text"][1]
    )


SPELLINGS = """
xchg eax, eax
xchg rax, rax
xchg ax, ax
xchg eax, ecx
xchg ecx, [rax]
xchg r8d, eax
xchg al, cl
test ecx, [rax]
test [rax], ecx
add eax, 0xffffffff
add ax, 0xffff
add al, -255
and al, ~0x80
add rax, 0xffffffffffffffff
mov rax, 0xffffffff
mov rax, -1
mov eax, -0xffffffff
mov al, [0xffffffff80000000]
imul eax, 5
imul rcx, 500
shl eax
sar qword ptr [rax]
shld eax, ecx
shrd [rax], rcx
int 3
push [rax]
push x
push OFFSET x
pop [rax]
call [rax]
call x
call [x]
call qword ptr x
call x[rip]
jmp rax
jmp [rax]
jmp [x]
jmp x[rax*8]
notrack jmp rax
mov ds, eax
mov ds, rax
mov rax, ds
str rax
sldt rax
ltr word ptr [rax]
lgdt [rax]
lgdt tbyte ptr [rax]
movsx rax, ecx
movsx rax, dword ptr [rcx]
rep nop
rep ret
repe cmpsb
repne scasb
rep; stosd
lock; add word ptr [rax], cx
lock add [rax], ecx
lock xchg ecx, [rax]
loop .
jrcxz .
jmp $+2
MOV EAX, Dword Ptr [RAX]
mov eax, x
mov x, eax
mov eax, x+4
mov eax, N
mov eax, [N]
mov eax, N[rax]
mov eax, N-4[rbp]
mov eax, [rax+N*2]
mov eax, [rax+rcx*4+N]
mov dword ptr x, N
mov eax, dword ptr gs:4
mov gs:4, eax
mov eax, DWORD PTR x[rip+12]
mov eax, OFFSET FLAT:x
mov rax, OFFSET x+4
movabs rax, OFFSET x
add rax, OFFSET x
cmp dword ptr x[rip], OFFSET x
mov edx, (2f-1b)
mov edx, 2f-1b
add edx, (2f-1b)
mov al, 2f-1b
shl eax, 2f-1b
mov eax, '\\n'
mov eax, 'a'+1
mov eax, 1+2<<3|1
enter 16, 0
nop word ptr cs:[rax+rax*1+0]
cs nop word ptr [rax+rax*1]
cs nop
ds mov eax, [rsi]
fs mov eax, [rsi]
cs jne 2f
rep stosd dword ptr es:[rdi], eax
rep stos dword ptr es:[rdi], eax
rep stos qword ptr [rdi], rax
stos byte ptr [rdi]
rep movs dword ptr es:[rdi], dword ptr ds:[rsi]
rep movsq [rdi], [rsi]
movsd dword ptr [rdi], [rsi]
lods al, byte ptr ds:[rsi]
lodsw ax, [rsi]
scas al, byte ptr es:[rdi]
repnz scas byte ptr es:[rdi]
repz cmps byte ptr ds:[rsi], byte ptr es:[rdi]
prefetcht0 [rax]
prefetchnta byte ptr 64[rax+rcx]
call x@PLT
jmp x@PLT
jne x@plt
lock xadd dword ptr [rax], ecx
notrack jmp qword ptr [rax*8+x]
movzx eax, byte ptr x[rax]
.globl x; jmp x@PLT
.weak x; jmp x
.weak x; jne x
data_here: mov rax, [rip+data_here]
""".strip().split("\n")


@pytest.mark.parametrize("statement", SPELLINGS)
def test_spelling(statement, tmp_path):
    source = f".equ N, 8\nx: nop\n1: {statement}\n2: nop\n"
    assert assemble(source).segments[0].data.hex(" ") == gnu(source, tmp_path)[".text"][1].hex(" ")



def test_a_missing_oracle_is_a_skip_or_a_failure(monkeypatch):
    monkeypatch.delenv("VPMU_REQUIRE_ORACLES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no-such-tool is not installed"):
        require("no-such-tool")
    monkeypatch.setenv("VPMU_REQUIRE_ORACLES", "1")
    with pytest.raises(pytest.fail.Exception, match="no-such-tool is required"):
        require("no-such-tool")
