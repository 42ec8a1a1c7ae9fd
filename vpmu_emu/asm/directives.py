"""Directives that make bytes, names and sections."""

from __future__ import annotations

import re
from collections.abc import Callable

from vpmu_emu.asm.core import MAX_DEPTH, Core, moved
from vpmu_emu.asm.encode import Fixup
from vpmu_emu.asm.errors import DirectiveFault, Fault
from vpmu_emu.asm.parser import number_value, parse_expression
from vpmu_emu.asm.reader import STRING, SYMBOL, Statement, split_operands, string_bytes
from vpmu_emu.asm.sections import MAX_IMAGE, Section, Tail, UndefinedFault

_NAME = re.compile(rf"{SYMBOL}\Z")
_STRING = re.compile(STRING, re.DOTALL)
_LOC_WORDS = (
    r"(?:basic_block|prologue_end|epilogue_begin|is_stmt\s+[01]|isa\s+[0-9]+|discriminator\s+[0-9]+|view\s+\S+)"
)
#: Directives without an effect: what may follow them, and an example.
IGNORED = {
    ".type": (rf"{SYMBOL}\s*,?\s*(?:[@%]\w+|{STRING}|STT_\w+)", ".type NAME, @function"),
    ".ident": (STRING, '.ident "text"'),
    ".print": (STRING, '.print "text"'),
    ".title": (STRING, '.title "text"'),
    ".sbttl": (STRING, '.sbttl "text"'),
    ".warning": (rf"(?:{STRING})?", '.warning "text"'),
    ".code64": ("", ".code64"),
    ".att_mnemonic": ("", ".att_mnemonic"),
    ".intel_mnemonic": ("", ".intel_mnemonic"),
    ".addrsig": ("", ".addrsig"),
    ".addrsig_sym": (r"\S+", ".addrsig_sym NAME"),
    ".extern": (".*", ".extern NAME"),
}
_CFI_WORDS = """
sections startproc endproc personality personality_id fde_data lsda inline_lsda def_cfa def_cfa_register
def_cfa_offset adjust_cfa_offset offset val_offset rel_offset register restore undefined same_value
remember_state restore_state return_column signal_frame window_save escape val_encoded_addr label
"""
CFI = tuple(f".cfi_{word}" for word in _CFI_WORDS.split())
# Sections that are data without saying so.
_LOADED = (
    ".data1", ".rodata1", ".init_array", ".fini_array", ".preinit_array", ".tdata", ".ctors", ".dtors",
)  # fmt: skip
DATA_SIZES = {
    ".byte": 1, ".word": 2, ".short": 2, ".value": 2, ".hword": 2, ".2byte": 2,
    ".long": 4, ".int": 4, ".4byte": 4, ".quad": 8, ".8byte": 8,
}  # fmt: skip


class Directives(Core):
    """Data, symbols, sections and places."""

    def _data(self, size: int) -> Callable[[str, Statement], None]:
        limit = 1 << 8 * size

        def handler(text: str, statement: Statement) -> None:
            if not text:
                return
            for offset, piece in split_operands(text):
                try:
                    value = self.evaluate(parse_expression(piece))
                    if isinstance(value, int):
                        if size < 8 and not -limit < value < limit:
                            msg = f"{value:#x} does not fit in {size} byte{'s'[: size > 1]}"
                            raise Fault(msg, "", 0, len(piece))
                        code = (value & (limit - 1)).to_bytes(size, "little")
                        self._emit(code, "data", statement)
                        continue
                except UndefinedFault:
                    raise
                except Fault as fault:
                    raise moved(fault, offset) from None
                if self.section.role == "bss":
                    raise Fault("only zeros can be in .bss", "put it in .data", offset, len(piece))
                where = self._emit(bytes(size), "data", statement)
                fixup = Fixup(0, size, value, False, "either")
                self.fixups.append((self.fragment, where, where + size, fixup, statement))

        return handler

    def _binding(self, names: set[str] | None) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            for offset, name in split_operands(text):
                if not _NAME.match(name):
                    raise Fault("a name is expected", "", offset, max(1, len(name)))
                if names is not None:
                    names.add(name.strip('"'))

        return handler

    def _ignored(self, pattern: str, example: str) -> Callable[[str, Statement], None]:
        """A directive that means nothing here, but is read: `pattern` is what may follow it."""
        expected = re.compile(pattern)

        def handler(text: str, statement: Statement) -> None:
            if not expected.fullmatch(text):
                raise Fault("something else is expected here", f"write {example}", 0, max(1, len(text)))

        return handler

    def _size(self, text: str, statement: Statement) -> None:
        name, comma, value = text.partition(",")
        if not comma or not _NAME.match(name.strip()):
            msg = "a name, a comma and a size are expected"
            raise Fault(msg, ".size NAME, .-NAME", 0, max(1, len(text)))
        try:
            amount = self.evaluate(parse_expression(value.strip()))
        except Fault as fault:
            raise moved(fault, len(text) - len(value.lstrip())) from None
        if not isinstance(amount, int):
            self.sizes.append((amount, statement))

    def _file(self, text: str, statement: Statement) -> None:
        match = re.fullmatch(rf"([0-9]*)\s*{STRING}(\s+({STRING}|md5\s+0x[0-9a-f]+|source\s.*))*", text)
        if not match:
            raise Fault("a file name in double quotes is expected", '.file "x.c"', 0, max(1, len(text)))
        if match[1]:
            self.files.add(int(match[1]))

    def _loc(self, text: str, statement: Statement) -> None:
        match = re.fullmatch(rf"([0-9]+)(\s+[0-9]+){{1,2}}(\s+{_LOC_WORDS})*", text)
        if not match:
            raise Fault("a file, a line and a column are expected", ".loc 1 5 3", 0, max(1, len(text)))
        if int(match[1]) not in self.files:
            raise Fault(f"file number {match[1]} is not assigned", "by .file above", 0, len(match[1]))

    def _cfi(self, name: str) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            if name == ".cfi_startproc":
                if self.in_frame:
                    raise DirectiveFault(f"{name} before the last .cfi_endproc")
                self.in_frame = True
            elif name != ".cfi_sections" and not self.in_frame:
                raise DirectiveFault(f"{name} without .cfi_startproc")
            elif name == ".cfi_endproc":
                self.in_frame = False

        return handler

    def _leb128(self, signed: bool) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            for _, piece in split_operands(text):
                value = self._number(piece, "a number of .uleb128 or .sleb128")
                if signed:
                    self._check_signed(piece, value)
                value = value if signed else value & (1 << 64) - 1
                out = bytearray()
                while True:
                    out.append(value & 0x7F | 0x80)
                    value >>= 7
                    if value == (-1 if signed and out[-1] & 0x40 else 0):
                        break
                out[-1] &= 0x7F
                self._emit(bytes(out), "data", statement)

        return handler

    @staticmethod
    def _check_signed(text: str, value: int) -> None:
        """GNU as keeps whether a number is signed, by how it came about."""
        words = re.findall(r"(?<![\w.$'])(?![0-9]+[bf]\b)[0-9]\w*", text)
        named = re.search(r"(?<![\w.$'])[A-Za-z_.$]", text)
        least = value == -(1 << 63) and re.fullmatch(r"-\s*\w+", text)
        wrapped = any(number_value(word) < 0 for word in words) and not least
        unclear = named or text[0] not in "-~"
        if re.search(r"[=!&|^/%]|(?<!<)<(?!<)|>", text) or wrapped or (value < 0 and unclear):
            msg = "the sign of this number is not clear"
            raise Fault(msg, "write it as a plain number", 0, len(text))

    def _ascii(self, terminated: bool) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            position, out, fresh = 0, bytearray(), True
            if not text:
                raise Fault("a string in double quotes is expected")
            while position < len(text):
                char = text[position]
                if char in " \t":
                    position += 1
                elif char == ",":
                    out += b"\0" if terminated and not fresh else b""
                    position += 1
                    fresh = True
                else:
                    match = _STRING.match(text, position)
                    piece = match[0] if match else text[position:]
                    try:
                        out += string_bytes(piece)
                    except Fault as fault:
                        raise moved(fault, position) from None
                    position += len(piece)
                    fresh = False
            if fresh:
                raise Fault("a string is missing", "", len(text))
            out += b"\0" if terminated else b""
            self._emit(bytes(out), "data", statement)

        return handler

    def _equ(self, once: bool) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            name, comma, value = text.partition(",")
            name = name.strip()
            if not _NAME.match(name) or not comma:
                msg = "a name, a comma and a value are expected"
                raise Fault(msg, ".equ NAME, 5", 0, max(1, len(name)))
            self._assign(name.strip('"'), value, len(text) - len(value.lstrip()), statement, once)

        return handler

    def _align(self, power: bool) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            parts = [part for _, part in split_operands(text)]
            amount = self._number(parts[0], "an alignment") if parts[0] else 0
            if power:
                if not 0 <= amount < 64:
                    raise Fault("the exponent of an alignment is 0 to 26", "", 0, len(parts[0]))
                amount = 1 << amount
            amount = amount or 1
            if amount < 0 or amount & (amount - 1):
                raise Fault("an alignment is a power of two", "", 0, len(parts[0]))
            if amount > MAX_IMAGE:
                raise Fault(f"an alignment is at most {MAX_IMAGE >> 20} MiB", "", 0, len(parts[0]))
            fill: int | None = None
            if len(parts) == 2 and not parts[1]:
                raise Fault("a fill is missing behind the comma", "", 0, len(text))
            if len(parts) > 1 and parts[1]:
                fill = self._number(parts[1], "the fill") & 255
            limit = self._number(parts[2], "the limit") if len(parts) > 2 and parts[2] else 0
            if limit < 0:
                raise Fault("a negative limit", "", 0, len(text))
            if len(parts) > 3:
                raise Fault("an alignment, a fill and a limit are all there is", "", 0, len(text))
            if self.section.role == "text":
                fill = None if fill == 0x90 else fill
            else:
                fill = fill or 0
            if self.section.role == "bss" and fill:
                raise Fault("only zeros can be in .bss", "")
            if amount == 1:
                return
            # An alignment beyond the limit still aligns the section, as in GNU as.
            self.section.alignment = max(self.section.alignment, amount)
            kind = "insn" if fill is None else "data"
            self._tail(Tail("align", alignment=amount, limit=limit, fill=fill), kind, statement)

        return handler

    @staticmethod
    def _most(text: str, most: int) -> list[str]:
        parts = [part for _, part in split_operands(text)]
        if len(parts) > most:
            raise Fault(f"at most {most} operands are read", "", 0, len(text))
        return parts

    def _skip(self, text: str, statement: Statement) -> None:
        parts = self._most(text, 2)
        fill = self._number(parts[1], "the fill") & 255 if len(parts) > 1 else 0
        if self.section.role == "bss" and fill:
            raise Fault("only zeros can be in .bss", "put it in .data")
        size = self.evaluate(parse_expression(parts[0]))
        if isinstance(size, int):
            if size < 0:
                raise Fault("a negative length", "", 0, len(parts[0]))
            if size > self.room:
                raise self._too_big()
            self._emit(bytes((fill,)) * size, "data", statement)
        else:
            self._tail(Tail("skip", target=size, fill=fill), "data", statement)

    def _fill(self, text: str, statement: Statement) -> None:
        parts = [self._number(part, "an operand of .fill") for part in self._most(text, 3)]
        repeat, size, value = (*parts, 1, 0)[:3] if len(parts) < 2 else (*parts, 0)[:3]
        if self.section.role == "bss" and value:
            raise Fault("only zeros can be in .bss", "put it in .data", 0, len(text))
        if repeat < 0 or not 0 <= size <= 8:
            raise Fault("a count from 0 and a size of 0 to 8 are expected", "", 0, len(text))
        if repeat * size > self.room:
            raise self._too_big()
        # GNU as keeps four bytes of the value, whatever the size.
        unit = (value & 0xFFFFFFFF).to_bytes(4, "little")[:size].ljust(size, b"\0")
        self._emit(unit * repeat, "data", statement)

    def _org(self, text: str, statement: Statement) -> None:
        parts = self._most(text, 2)
        fill = self._number(parts[1], "the fill") & 255 if len(parts) > 1 else 0
        if self.section.role == "bss" and fill:
            raise Fault("only zeros can be in .bss", "put it in .data")
        target = self.evaluate(parse_expression(parts[0]))
        if isinstance(target, int) and not 0 <= target <= MAX_IMAGE:
            if target < 0:
                raise Fault("a negative offset", "", 0, len(parts[0]))
            raise self._too_big()
        self._tail(Tail("org", target=target, fill=fill), "data", statement)

    def _switch(self, name: str) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            if text and text != "0":
                raise Fault("subsections are not supported", "use .section", 0, len(text))
            self._change(self._section(name, name[1:]))

        return handler

    def _named_section(self, text: str) -> Section:
        parts = [part for _, part in split_operands(text)]
        name = parts[0].strip('"')
        if not name or " " in name:
            raise Fault("a section name is expected", '.section .rodata, "a"', 0, max(1, len(text)))
        flags = parts[1].strip('"') if len(parts) > 1 and parts[1].startswith('"') else None
        nobits = any("nobits" in part for part in parts[1:])
        stem = "." + name.lstrip(".").split(".")[0]
        known = stem in (".text", ".data", ".rodata", ".bss")
        if stem in (".note", ".comment", ".debug", ".eh_frame") or stem.startswith(".debug_"):
            role = "none"
        elif stem == ".text" or (flags and "x" in flags and not known):
            role = "text"
        elif stem == ".bss" or (nobits and not known):
            role = "bss"
        elif "a" not in (flags or "") and not known and stem not in _LOADED:
            role = "none"
        else:
            role = "data"
        return self._section(name, role)

    def _section_directive(self, text: str, statement: Statement) -> None:
        self._change(self._named_section(text))

    def _pushsection(self, text: str, statement: Statement) -> None:
        section = self._named_section(text)
        self.section_stack.append((self.section, self.previous))
        if len(self.section_stack) > MAX_DEPTH:
            raise Fault("too many .pushsection", "write .popsection")
        self._change(section)

    def _popsection(self, text: str, statement: Statement) -> None:
        if not self.section_stack:
            raise Fault(".popsection without .pushsection")
        section, previous = self.section_stack.pop()
        self._change(section)
        self.previous = previous

    def _previous(self, text: str, statement: Statement) -> None:
        self._change(self.previous)

    def _lcomm(self, text: str, statement: Statement) -> None:
        self._most(text, 2)
        self._comm(text, statement)

    def _comm(self, text: str, statement: Statement) -> None:
        parts = self._most(text, 3)
        if len(parts) < 2 or not _NAME.match(parts[0]):
            raise Fault("a name and a size are expected", ".comm NAME, 8, 8", 0, max(1, len(text)))
        parts[0] = parts[0].strip('"')
        self._may_define(parts[0])
        size = self._number(parts[1], "the size")
        alignment = self._number(parts[2], "the alignment") if len(parts) > 2 else min(size, 16)
        if not 0 <= size <= self.room:
            raise self._too_big()
        alignment = max(1, alignment)
        if alignment > MAX_IMAGE or alignment & (alignment - 1):
            alignment = 1 << min(alignment.bit_length() - 1, 12)
        symbol = self._symbol(parts[0])
        if symbol.value is not None:
            if symbol not in self.common:
                file, line = symbol.place
                msg = f"'{symbol.name}' is already defined"
                raise Fault(msg, f"first at {file}:{line}", 0, len(symbol.name))
            return
        self.common.add(symbol)
        back, previous = self.section, self.previous
        self._change(self._section(".bss.common", "bss"))
        self.section.alignment = max(self.section.alignment, alignment)
        self._tail(Tail("align", alignment=alignment), "data", statement)
        symbol.value, symbol.label = self.here(), True
        symbol.place = (statement.file, statement.line)
        self._emit(bytes(size), "data", statement)
        self._change(back)
        self.previous = previous

    def _intel_syntax(self, text: str, statement: Statement) -> None:
        if text.strip() != "noprefix":
            raise Fault("only '.intel_syntax noprefix' is read", "", 0, max(1, len(text)))

    def _refused(self, name: str) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            if name == ".att_syntax":
                raise Fault("AT&T syntax is not read", "write .intel_syntax noprefix")
            raise Fault(f"{name}: this machine has 64-bit mode only", "")

        return handler

    def _stray(self, name: str) -> Callable[[str, Statement], None]:
        def handler(text: str, statement: Statement) -> None:
            raise DirectiveFault(f"{name} without its beginning")

        return handler

    def _error(self, text: str, statement: Statement) -> None:
        message = string_bytes(text).decode("utf-8", "replace") if text[:1] == '"' else text
        raise Fault(message or ".err was reached")

    def _end(self, text: str, statement: Statement) -> None:
        self.frames.clear()
        self.conditions.clear()
