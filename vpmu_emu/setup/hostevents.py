"""A host event as the perf tool writes it becomes the attributes that the kernel gets; nothing is guessed.

    instructions:D            pinned; cycles, branches, … are perf's generic names
    instructions:uH*12        modifiers u k (rings), G H (guest, host only), D (pinned); twelve of them
    cpu/event=0xc4,umask=0x20,period=10000/   r20c4   INST_RETIRED.ANY_P
    {instructions,cycles}:D   a group: on the counters together or not at all
    cycles@task               of the thread that runs the vCPU, as `perf stat -p`; else of the CPU (`-a`)

Without G or H an event counts in the guest and in the host, as a zeroed perf_event_attr does. (The perf
tool itself sets exclude_guest then; write `:H` for that.)
"""

from __future__ import annotations

import difflib
import re

import attrs

from vpmu_emu.errors import ConfigError
from vpmu_emu.numerals import shown, whole
from vpmu_emu.tables.events import LISTS, event_codes

KEY = "host-event"
MAX_REPEAT = 32
_TERMS = {
    # term of cpu/…/: (lowest bit, number of bits) of the selector
    "event": (0, 8),
    "umask": (8, 8),
    "edge": (18, 1),
    "inv": (23, 1),
    "cmask": (24, 8),
}
_MODIFIERS = "u k h G H D"


@attrs.frozen(kw_only=True)
class HostEvent:
    """One event that the host makes before the guest runs.

    Attributes:
        name: as the user wrote it, for the report.
        config: selector bits EVENT UMASK EDGE INV CMASK.
        period: attr.sample_period, 0 to count only.
        pinned, exclude_user, exclude_kernel, exclude_host, exclude_guest: as in perf_event_attr.
        task: of the vCPU's thread instead of the CPU.
        leader: index in the list of events of its group's leader, -1 if it leads or is alone.
    """

    name: str
    config: int
    period: int = 0
    pinned: bool = False
    exclude_user: bool = False
    exclude_kernel: bool = False
    exclude_host: bool = False
    exclude_guest: bool = False
    task: bool = False
    leader: int = -1


def _number(text: str, spec: str, what: str) -> int:
    value = whole(text)
    if value is None:
        raise ConfigError(KEY, f"{shown(spec)}: {what} is not a number: {shown(text)}", "1000, 0x3e8")
    return value


def _terms(text: str, spec: str, config: int, own: bool) -> tuple[int, int]:
    period = 0
    for term in filter(None, (t.strip() for t in text.split(","))):
        key, _, value = term.partition("=")
        if key == "period":
            period = _number(value, spec, "period")
            if not 2 <= period < 1 << 63:
                raise ConfigError(KEY, f"{shown(spec)}: period {period}", "2 to 2**63 - 1")
        elif own and key in _TERMS:
            low, size = _TERMS[key]
            number = _number(value, spec, key) if value else 1
            if not 0 <= number < 1 << size:
                raise ConfigError(KEY, f"{shown(spec)}: {key}={value}", f"0 to {(1 << size) - 1:#x}")
            config |= number << low
        else:
            allowed = " ".join((*_TERMS, "period")) if own else "period"
            raise ConfigError(KEY, f"{shown(spec)}: unknown term {key!r}", allowed)
    return config, period


def _one(text: str, spec: str, events: str) -> tuple[str, int, int]:
    """(name, config, period) of one event without modifiers."""
    name, slash, terms = text.partition("/")
    if slash:
        if not terms.endswith("/"):
            raise ConfigError(KEY, f"{shown(spec)}: no closing '/'", "cpu/event=0xc4,umask=0x20/")
        terms = terms[:-1]
    if slash and name == "cpu":
        config, period = _terms(terms, spec, 0, own=True)
        return text, config, period
    codes = event_codes(events)
    raw = re.fullmatch(r"r([0-9a-fA-F]{1,8})", name)
    if raw:
        config = int(raw[1], 16)
        if config & ~0xFF84FFFF:
            allowed = "EVENT, UMASK, edge, inv and cmask: mask 0xff84ffff"
            raise ConfigError(KEY, f"{shown(spec)}: bits outside the raw event mask", allowed)
    elif name.lower() in codes:
        config = codes[name.lower()]
    else:
        near = difflib.get_close_matches(name.lower(), codes, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        allowed = "cycles instructions branches … rNNNN cpu/event=…,umask=…/"
        raise ConfigError(KEY, f"{shown(spec)}: no event is named {name!r}{hint}", allowed)
    config, period = _terms(terms, spec, config, own=False) if slash else (config, 0)
    return name, config, period


def _split(text: str) -> list[str]:
    """Split at commas outside slashes."""
    parts, inside = [""], False
    for c in text:
        inside ^= c == "/"
        if c == "," and not inside:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def parse_host_event(spec: str, events: str = LISTS[0]) -> list[HostEvent]:
    """The events of one SPEC, their names from list `events`; `leader` counts from its first event.

    Raises:
        ConfigError: with the spec, what is wrong in it, and what is allowed.
    """
    text = spec.strip()
    repeat = 1
    body, star, times = text.rpartition("*")
    if star:
        repeat = _number(times, spec, "the repeat count")
        if not 1 <= repeat <= MAX_REPEAT:
            raise ConfigError(KEY, f"{shown(spec)}: repeat {repeat}", f"1 to {MAX_REPEAT}")
        text = body
    context = ""
    body, at, where = text.rpartition("@")
    if at:
        if where not in ("cpu", "task"):
            raise ConfigError(KEY, f"{shown(spec)}: unknown context {where!r}", "@cpu @task")
        context, text = where, body
    match = re.fullmatch(r"(.*?)(?::([A-Za-z]*))?", text, re.DOTALL)
    assert match is not None
    body, modifiers = match[1], match[2] or ""
    if not body:
        raise ConfigError(KEY, f"{shown(spec)}: no event", "instructions:D, cpu/event=0xc4/, r00c4")
    unknown = set(modifiers) - set("ukhGHD")
    if unknown:
        raise ConfigError(KEY, f"{shown(spec)}: unknown modifier {''.join(sorted(unknown))!r}", _MODIFIERS)
    group = body.startswith("{")
    if group and not body.endswith("}"):
        raise ConfigError(KEY, f"{shown(spec)}: no closing '}}'", "{instructions,cycles}:D")
    members = [m.strip() for m in (_split(body[1:-1]) if group else [body])]
    rings = bool(set(modifiers) & set("ukh"))
    sides = bool(set(modifiers) & set("GH"))
    found: list[HostEvent] = []
    for _ in range(repeat):
        first = len(found)
        for member in members:
            name, config, period = _one(member, spec, events)
            label = name + (f":{modifiers}" if modifiers else "") + (f"@{context}" if context else "")
            found.append(
                HostEvent(
                    name=label,
                    config=config,
                    period=period,
                    pinned="D" in modifiers,
                    exclude_user=rings and "u" not in modifiers,
                    exclude_kernel=rings and "k" not in modifiers,
                    exclude_host=sides and "H" not in modifiers,
                    exclude_guest=sides and "G" not in modifiers,
                    task=context == "task",
                    leader=-1 if len(found) == first else first,
                )
            )
    return found


def parse_host_events(
    specs: list[str] | tuple[str, ...], events: str = LISTS[0]
) -> list[HostEvent]:
    """The events of all SPECs, in order; `leader` is an index of the list."""
    found: list[HostEvent] = []
    for spec in specs:
        base = len(found)
        for event in parse_host_event(spec, events):
            leader = event.leader + base if event.leader >= 0 else -1
            found.append(attrs.evolve(event, leader=leader))
    return found
