"""Statements that are instructions: operands resolved, bytes or a branch placed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

import attrs

from vpmu_emu.asm.core import Core, moved
from vpmu_emu.asm.encode import (
    PREFIXES,
    STRINGS,
    Address,
    Branch,
    Encoded,
    Fixup,
    Immediate,
    Resolved,
    encode,
    unknown_mnemonic,
)
from vpmu_emu.asm.errors import Fault, did_you_mean
from vpmu_emu.asm.nodes import (
    REGISTERS,
    SLOT,
    Binary,
    Expression,
    Memory,
    Name,
    Node,
    Number,
    Operand,
    Register,
    Unary,
)
from vpmu_emu.asm.parser import parse_operand
from vpmu_emu.asm.reader import Statement, split_operands, starts_word
from vpmu_emu.asm.sections import Amount, Deferred, Linear, Symbol, Tail, UndefinedFault, compares
from vpmu_emu.tables.instructions import BY_NAME

_WORD = re.compile(r"\S+")
# Through the procedure linkage table, which a static image does not have: the function itself.
_PLT = re.compile(r"@plt\Z", re.IGNORECASE)
_EQUALS = re.compile(r"(?:[^\"=']|'.|\"(?:\\.|[^\"])*\")*=")
_FIXED_LIMIT = 100_000
#: Bytes of statements that came out the same wherever they stood.
FIXED: dict[str, bytes] = {}


@lru_cache(maxsize=65536)
def _split_instruction(text: str) -> tuple[tuple[str, ...], str, tuple[tuple[int, Operand], ...]]:
    """Prefixes, mnemonic ("" after bare prefixes), and operands with their offsets."""
    prefixes: list[str] = []
    position = 0
    while True:
        match = _WORD.match(text, position)
        if match is None:
            return tuple(prefixes), "", ()
        word = match[0].lower()
        if word not in PREFIXES:
            break
        if word in prefixes:
            msg = f"'{word}' is there twice"
            raise Fault(msg, "", position, len(word))
        prefixes.append(word)
        position = match.end()
        while position < len(text) and text[position].isspace():
            position += 1
    if word not in BY_NAME and not (word in STRINGS and text[match.end() :].strip()):
        raise unknown_mnemonic(word).moved(position)
    operands: list[tuple[int, Operand]] = []
    rest = text[match.end() :]
    stripped = rest.lstrip()
    if stripped:
        begin = match.end() + len(rest) - len(stripped)
        if prefixes and not starts_word(stripped):
            # Behind a prefix GNU as reads `ret !5` as `ret!5`.
            raise Fault(f"'{stripped[0]}' cannot begin the operand behind a prefix", "", begin)
        for offset, piece in split_operands(stripped):
            at = begin + offset
            if _PLT.search(piece) and "branch" in BY_NAME[word][0].instruction.retires:
                piece = _PLT.sub("", piece)
            try:
                if "=" in piece and (equals := _EQUALS.search(piece)):
                    msg = "'=' cannot stand in an operand"
                    raise Fault(msg, "give the comparison a name with .equ", equals.end() - 1)
                operands.append((at, parse_operand(piece)))
            except Fault as fault:
                raise moved(fault, at) from None
    return tuple(prefixes), word, tuple(operands)


def _of_slot(amount: Amount) -> bool:
    return isinstance(amount, Linear) and any(
        isinstance(atom, Symbol) and atom.name.endswith(SLOT) for atom, _ in amount.terms
    )


class Instructions(Core):
    """Mnemonics and operands."""

    def _instruction(self, text: str, statement: Statement) -> None:
        try:
            prefixes, name, operands = _split_instruction(text)
        except Fault as fault:
            if self.macros and fault.message.startswith("no such instruction"):
                word = text[fault.at :].split()[0].lower()
                raise unknown_mnemonic(word, list(self.macros)).moved(fault.at) from None
            raise
        if not name:
            self._may_hold_code()
            self.pending += prefixes
            return
        resolved: list[Resolved] = []
        constant, bare = True, None
        for at, operand in operands:
            if isinstance(operand, Register):
                resolved.append(operand)
                continue
            try:
                value = self._resolve(operand)
            except UndefinedFault:
                raise
            except Fault as fault:
                raise moved(fault, at) from None
            if isinstance(operand, Expression):
                constant &= isinstance(operand.value, int)
                if isinstance(value, Address):
                    bare = value.disp
            else:
                constant &= isinstance(operand.disp, int) and isinstance(operand.scale, int)
                if operand.bare and isinstance(value, Address):
                    bare = value.disp
            resolved.append(value)
        try:
            encoded = encode(name, prefixes, resolved)
        except Fault as fault:
            self._check_register_names(operands)
            if fault.at < 0:
                at, operand = operands[min(-fault.at, len(operands)) - 1]
                length = len(operand.name) if isinstance(operand, Register) else len(operand.text)
                raise Fault(fault.message, fault.hint, at, length) from None
            raise
        self._may_hold_code()
        if isinstance(encoded, Branch):
            target = operands[0][1]
            named = target.value if isinstance(target, Expression) else None
            tail = Tail(
                "jump",
                target=encoded.target,
                short=encoded.short,
                long=encoded.long,
                symbol=named.name if isinstance(named, Name) else "",
                plt=bool(_PLT.search(text)),
            )
            if self.pending:
                self._flush_prefixes()
            self._tail(tail, "insn", statement)
            return
        if self.slots and encoded.fixups and _of_slot(encoded.fixups[0].amount):
            encoded = self._direct(encoded)
        self._place(encoded, text, constant, statement)
        if bare is not None and not any(f.pc_relative for f in encoded.fixups):
            self.bare.append((bare, statement))

    def _may_hold_code(self) -> None:
        if self.section.role == "bss":
            raise Fault("only zeros can be in .bss", "instructions go in .text")

    def _slot(self, operand: Memory) -> Amount | None:
        """The place of `x@GOTPCREL[rip]`, an address that holds the address of x."""
        if operand.base is None or operand.base.kind != "ip" or isinstance(operand.disp, int):
            return None
        node: Node = operand.disp
        more = 0
        if isinstance(node, Binary) and node.op == "+" and isinstance(node.right, Number):
            more = node.right.value
            node = node.left
        if not isinstance(node, Name) or not node.name.endswith(SLOT):
            return None
        name = node.name[: -len(SLOT)]
        if isinstance(self._symbol(name).value, int):
            raise Fault(f"'{name}' is a number and has no address", "", node.at, len(name))
        symbol = self.slots.setdefault(name, Symbol(node.name))
        return Linear(more, ((symbol, 1),))

    def _direct(self, encoded: Encoded) -> Encoded:
        """Without its slot where a static linker does without it (x86-64 ABI, B.2; as GNU ld)."""
        fixup = encoded.fixups[0]
        amount, at, code = fixup.amount, fixup.offset, bytearray(encoded.data)
        assert isinstance(amount, Linear)
        symbol = amount.terms[0][0]
        assert isinstance(symbol, Symbol)
        named = self._symbol(symbol.name[: -len(SLOT)])
        target = Linear(0, ((named, 1),))
        opcode, register = code[at - 2], code[at - 1] >> 3 & 7
        escaped = at > 2 and code[at - 3] == 0x0F
        if amount.constant or at + 4 != len(code) or escaped:
            return encoded
        if 0x66 in code[: at - 2]:
            if opcode != 0x8B:
                return encoded
            code[at - 2] = 0x8D
            return attrs.evolve(encoded, data=bytes(code), fixups=(attrs.evolve(fixup, amount=target),))
        if opcode == 0xFF and register == 2:
            code[at - 2 : at] = b"\x67\xe8"
            return attrs.evolve(encoded, data=bytes(code), fixups=(attrs.evolve(fixup, amount=target),))
        if opcode == 0xFF and register == 4:
            # The displacement ends before the no-operation that fills the room.
            code[at - 2 :] = b"\xe9\0\0\0\0\x90"
            beyond = Linear(1, target.terms)
            jump = attrs.evolve(fixup, offset=at - 1, amount=beyond)
            return attrs.evolve(encoded, data=bytes(code), fixups=(jump,))
        if opcode == 0x8B:
            code[at - 2 : at] = bytes((0xC7, 0xC0 | register))
        elif opcode & 0xC7 == 0x03:
            code[at - 2 : at] = bytes((0x81, 0xC0 | opcode & 0x38 | register))
        elif opcode == 0x85:
            code[at - 2 : at] = bytes((0xF7, 0xC0 | register))
        else:
            return encoded
        if at > 2 and code[at - 3] & 0xF4 == 0x44:
            code[at - 3] ^= 0x05  # the register has moved from ModRM.reg to ModRM.rm
        number = Fixup(at, 4, target, False, "signed")
        return attrs.evolve(encoded, data=bytes(code), fixups=(number,))

    def _check_differences(self, operand: Memory) -> None:
        """GNU as loses `b - a` of two labels that stands beside a register without parentheses."""
        node = operand.disp
        terms: list[Node] = []
        while isinstance(node, Binary) and node.op in "+-":
            if node.op == "-":
                terms.append(node.right)
            node = node.left
        if isinstance(node, Unary) and node.op == "-":
            terms.append(node.node)
        for term in terms:
            if not isinstance(self.evaluate(term), int):
                hint = "put the difference of two labels into parentheses"
                raise Fault("a label cannot be subtracted beside a register or a segment", hint, term.at)

    def _check_register_names(self, operands: Sequence[tuple[int, Operand]]) -> None:
        """A misspelt register is an undefined symbol, so memory; say what is meant."""
        for at, operand in operands:
            if isinstance(operand, Expression) and isinstance(operand.value, Name):
                name = operand.value.name
                hint = did_you_mean(name, REGISTERS)
                symbol = self.symbols.get(name)
                if hint and symbol is not None and symbol.value is None:
                    raise Fault(f"'{name}' is not a register", hint, at, len(name))

    def _place(self, encoded: Encoded, text: str, constant: bool, statement: Statement) -> None:
        code, shift = encoded.data, 0
        if self.pending:
            head = bytes(PREFIXES[p] for p in self.pending)
            self.pending.clear()
            code, shift = head + code, len(head)
        elif constant and not encoded.fixups:
            if len(FIXED) > _FIXED_LIMIT:
                FIXED.clear()
            if statement.text == text:
                FIXED[text] = code
        where = self._emit(code, "insn", statement)
        for fixup in encoded.fixups:
            end = where + len(code)
            self.fixups.append((self.fragment, where + shift, end, fixup, statement))

    def _resolve(self, operand: Expression | Memory) -> Immediate | Address:
        if isinstance(operand, Expression):
            value = self.evaluate(operand.value)
            if (
                not isinstance(value, int)
                and not operand.offset
                and len(value.terms) == 1
                and value.terms[0][1] == 1
                and not isinstance(value.terms[0][0], Deferred)
            ):
                memory = Memory(0, -1, None, None, 1, 0, True, operand.text, "b0")
                return Address(memory, value, 1, "b0")
            return Immediate(value, operand.text)
        slot = self._slot(operand)
        disp = slot if slot is not None else self.evaluate(operand.disp)
        beside = operand.base or operand.index or operand.segment >= 0
        if slot is None and beside and not isinstance(operand.disp, int):
            self._check_differences(operand)
        if compares(disp):
            msg = "a comparison of labels in an address"
            raise Fault(msg, "give it a name with .equ", 0, len(operand.text))
        if operand.bare and isinstance(disp, int):
            hint = f"write [{operand.text.split()[-1]}] for memory at that address"
            msg = "a number with a size is an immediate to GNU as"
            raise Fault(msg, hint, 0, len(operand.text))
        scale = self.evaluate(operand.scale)
        if scale not in (1, 2, 4, 8):
            raise Fault("the scale is not 1, 2, 4 or 8", "", 0, len(operand.text))
        assert isinstance(scale, int)
        return Address(operand, disp, scale, operand.key)
