"""Every option stands at every door, says what it is, and has an effect in a mode or is refused there."""

from __future__ import annotations

import json

import attrs
import pytest
from click.testing import CliRunner

import vpmu_emu
from tests.conftest import ROOT
from tests.tools import options_page
from vpmu_emu.asm import assemble
from vpmu_emu.cli import main
from vpmu_emu.errors import ConfigError
from vpmu_emu.linux.kvm.eventfilter import make_filter
from vpmu_emu.linux.state import KVM_PMU_EVENT_DENY, QUIRKS, WATCHDOG_NAMES
from vpmu_emu.options import COST_LEVELS, HOST_KEYS, KVM_KEYS, OPTIONS, Options, parse
from vpmu_emu.system import System, run
from vpmu_emu.tables.cpus import COST_NAMES, CPU_NAMES, LATENCIES
from vpmu_emu.tables.modes import MODES
from vpmu_emu.tables.patches import PATCHES

FILTER = str(ROOT / "guests/lessons/04_filter.toml")
MSR_FILTER = str(ROOT / "guests/conformance/x_msr_filter.toml")
NEIGHBOUR = str(ROOT / "guests/host/noisy_neighbour.s")
# For each option: a value that is not the usual one, as text for the command line, and as plain data.
VALUES: dict[str, tuple[str, object]] = {
    "vpmu": ("none", "none"), "other_vpmu": ("none", "none"),
    "cpu": ("icx", "icx"), "ram": ("0x8", 8), "cores": ("2", 2),
    "entry": ("other", "other"), "defsym": ("HZ=0x64", {"HZ": 100}),
    "max_insns": ("50", 50), "max_cycles": ("900", 900),
    "filter": (FILTER, FILTER), "msr_filter": (MSR_FILTER, MSR_FILTER),
    "host_events": ("instructions:D", ["instructions:D"]),
    "host": (NEIGHBOUR, [NEIGHBOUR]),
    "save": ("x.vm", "x.vm"), "at": ("50", "50"), "restore": ("x.vm", "x.vm"),
    "watchdog": ("hpet", "hpet"), "watchdog_thresh": ("0.0001", 0.0001),
    "all_passthrough": ("", True), "switch": ("lazy", "lazy"),
    "settings": ("pmu.gp=4", {"pmu.gp": 4}), "guest": ("gp=1", {"gp": 1}),
    "kvm": ("force_emulation_prefix=0", {"force_emulation_prefix": 0}), "apicv": ("", False),
    "hz": ("0x64", 100), "nohz": ("idle", "idle"),
    "costs": ("high", "high"), "quirks": ("v1-no-global-check", ["v1-no-global-check"]),
    "without": ("039", [39]), "pmi_vector": ("nmi", "nmi"), "pmi_skid": ("30:0x2", "30:2"),
    "inject": ("instructions-2-percent-more", ["instructions-2-percent-more"]), "trace": ("-", "-"),
    "engine": ("translator", "translator"), "hot": ("7", 7), "horizon": ("1", 1), "horizon_seed": ("1", 1),
}  # fmt: skip


def words(key):
    option, (text, value) = OPTIONS[key], VALUES[key]
    if text:
        return [f"--{option.name}", text]
    return [f"--{option.name}" if value else f"--no-{option.name}"]


def test_every_field_is_an_option():
    assert list(OPTIONS) == [field.name for field in attrs.fields(Options)] == list(VALUES)
    for key, option in OPTIONS.items():
        assert option.help.endswith((".", "repeatable."))
        assert getattr(Options(), key) == option.usual


@pytest.mark.parametrize("command", ["run", "debug"])
def test_every_option_is_in_the_help(command):
    text = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
    for option in OPTIONS.values():
        assert (f"--{option.name} " in text) == (not option.not_of_a_user), option.name
    for name in (*COST_LEVELS, *WATCHDOG_NAMES, *KVM_KEYS, *HOST_KEYS, *MODES, *CPU_NAMES):
        assert name in text, name


@pytest.mark.parametrize("key", OPTIONS)
def test_every_option_is_read_at_every_door(key):
    text, value = VALUES[key]
    option = OPTIONS[key]
    asked = Options.of({key: value})
    assert asked != Options()
    data = asked.to_dict()
    assert data == json.loads(json.dumps(data))
    assert data[key] == value
    assert Options.from_dict(data) == Options.from_dict({key: value}) == asked
    if option.takes not in (OPTIONS["all_passthrough"].takes, OPTIONS["trace"].takes):
        assert Options.of({key: text}) == asked  # text does in Python, too
    if option.not_of_a_user:
        with pytest.raises(ConfigError, match="No such option"):
            parse(words(key))
    elif option.not_of_a_guest:
        with pytest.raises(ConfigError, match="not a guest's to say"):
            parse(words(key))
    else:
        assert parse(words(key)) == asked


def test_the_page_and_the_class_say_the_same():
    assert options_page.PAGE.read_text(encoding="utf-8") == options_page.text(), (
        "run `python -m tests.tools.options_page`"
    )
    for option in OPTIONS.values():
        assert option.help in (System.__doc__ or "").replace("\n            ", " ")


# --- refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "said"), [
    ({"cpus": "spr"}, "cpus: no such option; did you mean cpu?"),
    ({"quirk": "x"}, "did you mean quirks?"),
    ({"set": {}}, "did you mean settings?"),
    ({"host_event": "cycles"}, "did you mean host_events?"),
    ({"nonsense": 1}, "allowed: vpmu other_vpmu cpu ram"),
    ({"vpmu": "emulate"}, "vpmu: no mode is named 'emulate'; did you mean emulated?"),
    ({"vpmu": 3}, "vpmu: 3 is not a word"),
    ({"cpu": "sprr"}, "did you mean spr"),
    ({"ram": "8 MiB"}, "ram: '8 MiB' is not a valid integer (allowed: 2 to 4096)"),
    ({"ram": 2.5}, "ram: 2.5 is not a valid integer"),
    ({"ram": True}, "ram: True is not a valid integer"),
    ({"ram": None}, "ram: None is not a valid integer"),
    ({"ram": 1}, "ram: 1 is not in the range (allowed: 2 to 4096)"),
    ({"cores": 1000}, "cores: 1000 is not in the range"),
    ({"cores": 0}, "cores: 0 is not in the range"),
    ({"max_insns": 0}, "max-insns: 0 is not in the range (allowed: 1 to 2**63 - 1)"),
    ({"max_insns": 1 << 63}, "max-insns: 9223372036854775808 is not in the range"),
    ({"max_cycles": -1}, "max-cycles: -1 is not in the range"),
    ({"max_cycles": "9" * 5000}, "is not in the range"),
    ({"filter": 5, "vpmu": "emulated"}, "filter: 5 is not a file or an EventFilter"),
    ({"msr_filter": 5, "vpmu": "none"}, "msr-filter: 5 is not a file or an MsrFilter"),
    ({"host": [5], "vpmu": "none"}, "host: 5 is not a file or a Program"),
    ({"host_events": ["cycles", 5], "vpmu": "none"}, "5 is not an event in words or a HostEvent"),
    ({"kvm": 5, "vpmu": "none"}, "kvm: 5 is not NAME=NUMBER"),
    ({"settings": {3: 4}}, "set: 3 is not NAME=NUMBER"),
    ({"engine": "translater"}, "engine: no engine is named 'translater'; did you mean translator?"),
    ({"hot": 0}, "hot: 0 is not in the range (allowed: 1 to 1000000000)"),
    ({"hot": "often"}, "hot: 'often' is not a valid integer"),
    ({"horizon": -1}, "horizon: -1 is not in the range"),
    ({"entry": 1.5}, "entry: 1.5 is not a symbol or an address"),
    ({"all_passthrough": "yes"}, "all-passthrough: 'yes' is neither true nor false"),
    ({"inject": "filter-ignore"}, "inject: no bug is named 'filter-ignore'; did you mean filter-ignored?"),
    ({"settings": {"pmu.gpp": 4}}, "set pmu.gpp: unknown key; did you mean pmu.gp?"),
    ({"settings": {"cost.vm_exitt": 4}, "vpmu": "none"},
     "set cost.vm_exitt: unknown key; did you mean cost.vm_exit?"),
    ({"settings": {"vm_exit": 4}, "vpmu": "none"}, "set vm_exit: unknown key; did you mean cost.vm_exit?"),
    ({"settings": {"llc_mis": 4}}, "did you mean model.llc_miss?"),
    ({"settings": {"modl.wrmsr": 4}}, "did you mean model.wrmsr?"),
    ({"settings": {"zzz": 4}}, "set zzz: unknown key (allowed: pmu.version"),
    ({"settings": {"cost.vm_exit": 4}}, "set: there is no hypervisor in mode bare (allowed: none emulated"),
    ({"settings": {"cost.vm_exit": 10**9 + 1}, "vpmu": "none"},
     "is out of range (allowed: 0 to 1000000000)"),
    ({"settings": {"cost.vm_exit": -1}, "vpmu": "none"}, "set cost.vm_exit: -1 is out of range"),
    ({"settings": {"cost.lkdtm_HARDLOCKUP": 0}, "vpmu": "none"}, "(allowed: 1 to 1000000000)"),
    ({"settings": {"cost.vm_exit": 1.5}, "vpmu": "none"}, "is not NAME=NUMBER"),
    ({"settings": {"model.l2_lines": 3000}},
     "set model.l2_lines: 3000 is out of range (allowed: 2048 4096)"),
    ({"settings": {"model.llc_lines": 1 << 20}}, "is out of range (allowed: 8192 16384)"),
    ({"settings": {"model.predictor": 2048}}, "set model.predictor: 2048 is out of range (allowed: 1024)"),
    ({"settings": {"model.slot": 3}}, "set model.slot: 3 is out of range (allowed: 1 2 4 8 16)"),
    ({"settings": {"model.alu": 3}}, "3 is less than an issue slot, model.slot=4 (allowed: 4 to 1600000)"),
    ({"settings": {"model.slot": 8}}, "set model.nop: 4 is less than an issue slot, model.slot=8"),
    ({"settings": {"model.wrmsr": 900}}, "WRMSR takes 900, less than RDMSR with model.msr=1136"),
    ({"settings": {"model.llc_miss": 1000}},
     "set model.llc_miss: 1000 is not more than nearer memory takes"),
    ({"settings": {"model.prefetch_l2": 30}},
     "30 lines in L2, and 20 in the LLC behind it (allowed: 0 to 20)"),
    ({"settings": "pmu.gp=-1"}, "set: 'pmu.gp=-1' is not NAME=NUMBER"),
    ({"settings": {"gp": -1}}, "set gp: -1 is out of range (allowed: 0 to 8)"),
    ({"settings": {"pmu.width": 31}}, "set pmu.width: 31 is out of range (allowed: 32 to 48)"),
    ({"settings": {"pmu.gp": "many"}}, "is not NAME=NUMBER"),
    ({"watchdog": "hpett", "vpmu": "none"}, "no detector is named 'hpett'; did you mean hpet?"),
    ({"watchdog_thresh": "soon", "vpmu": "none"}, "watchdog-thresh: 'soon' is not a number of seconds"),
    ({"watchdog_thresh": 1, "vpmu": "none"}, "there is no watchdog without --watchdog"),
    ({"watchdog_thresh": -1, "watchdog": "hpet", "vpmu": "none"}, "watchdog-thresh: -1 seconds"),
    ({"pmi_skid": 5}, "pmi-skid: 5 is not OVERFLOW:RECOGNITION (allowed: such as 100:0)"),
    ({"pmi_skid": "5"}, "pmi-skid: '5' is not OVERFLOW:RECOGNITION"),
    ({"pmi_skid": "1:2:3"}, "is not OVERFLOW:RECOGNITION"),
    ({"pmi_skid": "1:x"}, "is not OVERFLOW:RECOGNITION"),
    ({"pmi_skid": "-1:0"}, "pmi-skid: -1 cycles (allowed: 0 to 1000000)"),
    ({"pmi_skid": (0, 1 << 70)}, "cycles (allowed: 0 to 1000000)"),
    ({"pmi_skid": "1:0", "settings": {"pmu.version": 0}}, "pmi-skid: there is no PMU, and so no PMI"),
    ({"pmi_vector": "nni", "vpmu": "mediated"}, "no vector is named 'nni'; did you mean nmi?"),
    ({"pmi_vector": "nmi", "vpmu": "emulated"}, "pmi-vector: no guest owns the PMU in mode emulated"),
    ({"pmi_vector": "nmi", "vpmu": "passthrough", "without": [6]},
     "without: patch 6 is of the vector that --pmi-vector nmi does without"),
    ({"hz": 200, "vpmu": "none"}, "hz: no kernel has 200 ticks a second (allowed: 100 250 300 1000)"),
    ({"hz": "often", "vpmu": "none"}, "hz: 'often' is not a valid integer"),
    ({"hz": 1000}, "hz: there is no hypervisor in mode bare"),
    ({"costs": "hi", "vpmu": "none"}, "costs: no level is named 'hi'; did you mean high?"),
    ({"kvm": {"fixed_cup": 4}, "vpmu": "none"}, "kvm fixed_cup: unknown key; did you mean fixed_cap?"),
    ({"kvm": {"fixed_cap": 5}, "vpmu": "none"}, "kvm fixed_cap: 5 is out of range (allowed: 3 4)"),
    ({"guest": {"perf_cap": 0}, "vpmu": "emulated"}, "guest perf_cap: unknown key; did you mean"),
    ({"guest": {"gp": 9}, "vpmu": "emulated"}, "guest gp: 9 is out of range (allowed: 0 to 8)"),
    ({"quirks": "v1-no-globl-check", "vpmu": "passthrough"}, "did you mean v1-no-global-check?"),
    ({"without": ["lvtpc"], "vpmu": "passthrough"}, "without: 'lvtpc' is not the number of a patch"),
    ({"without": 42, "vpmu": "passthrough"}, "without: the series has no patch 42 (allowed: 1 to 40)"),
    ({"without": "0", "vpmu": "passthrough"}, "without: the series has no patch 0"),
    ({"without": -1, "vpmu": "passthrough"}, "without: the series has no patch -1"),
    ({"without": "41", "vpmu": "passthrough"}, "is not emulated: guests have no VMX of their own"),
    ({"without": "7"}, "without: there is no hypervisor in mode bare (allowed: passthrough)"),
    ({"without": 7, "vpmu": "emulated"}, "is without the passthrough series in mode emulated"),
    ({"filter": FILTER, "all_passthrough": True, "vpmu": "passthrough"}, "needs the selectors intercepted"),
])  # fmt: skip
def test_refused_at_every_door_of_python_before_a_file_is_read(asked, said):
    for door in (run, vpmu_emu.run, vpmu_emu.Session):
        with pytest.raises(ConfigError) as refused:
            door("/no/such/file.s", **asked)
        assert said in str(refused.value)
    with pytest.raises(ConfigError):
        Options.from_dict(asked).check()


def test_the_command_line_refuses_before_it_reads_the_program():
    for command in ("run", "debug"):
        result = CliRunner().invoke(main, [command, "/no/such/file.s", "--inject", "nonsense"])
        assert (result.exit_code, "no bug is named" in result.output) == (2, True)


def test_what_is_no_plain_data_is_not_written_down():
    with pytest.raises(ConfigError, match=r"host: .* cannot be written down"):
        Options(host=[assemble("hlt")]).to_dict()


def test_every_name_that_can_be_chosen_is_known():
    for name in ("v1", *QUIRKS):
        vpmu = "mediated" if name.startswith("7.0-") else "passthrough"
        Options.of({"vpmu": vpmu, "quirks": name}).check()
    inside = [n for n, row in PATCHES.items() if not row.outside]
    Options.of({"vpmu": "passthrough", "without": inside}).check()
    for name in WATCHDOG_NAMES:
        Options(vpmu="none", watchdog=name).check()


# --- each option in each mode -----------------------------------------------------------------------------


def wrmsr(index, value):
    return f"mov ecx, {index:#x}\nmov eax, {value & 0xFFFF_FFFF:#x}\nmov edx, {value >> 32:#x}\nwrmsr\n"


EXIT = "xor eax, eax\nout 0xf4, al\n"
PLAIN = f"_start: mov eax, 1\ncpuid\nmov ebx, 0x280000\nmov [rbx], rax\nmov rbp, [rbx]\nother: {EXIT}"
LOOP = f"mov ebp, 200\n1: dec ebp\njnz 1b\ncpuid\n{EXIT}"
DEFINED = f".ifndef HZ\n.equ HZ, 3\n.endif\n_start: mov ebx, HZ\n{EXIT}"
COUNTS = f"_start: {wrmsr(0x38F, 0)}{wrmsr(0x186, 0x4300C0)}{wrmsr(0x38F, 1)}{LOOP}"
FIXED = f"_start: {wrmsr(0x38F, 1 << 32)}{wrmsr(0x38D, 11)}{wrmsr(0x38D, 0xBB)}{LOOP}"
STOPPED = f"_start: {wrmsr(0x38F, 0)}{wrmsr(0x186, 0x4300C0)}{LOOP}"
PREFIXED = f'_start: ud2\n.ascii "kvm"\ncpuid\n{EXIT}'
READS = f"_start: mov ecx, 0xc1\nrdmsr\n{EXIT}"
EOI = f"_start: {wrmsr(0x1B, 0xFEE0_0D00)}{wrmsr(0x80B, 0)}{EXIT}"
WAITS = "_start: sti\n1: hlt\njmp 1b\n"
OVERFLOWS = (  # by a message to LVTPC
    f"_start: sti;{wrmsr(0x1B, 0xFEE00D00)}{wrmsr(0x80F, 0x1FF)}{wrmsr(0x834, 0x40)}{wrmsr(0x38F, 0)}"
    f"{wrmsr(0xC1, 0xFFFFFFF0)}{wrmsr(0x186, 0x5300C0)}{wrmsr(0x38F, 1)}{'nop;' * 40}{EXIT}"
)
ANY = dict.fromkeys(MODES, PLAIN)
HOSTED = dict.fromkeys(("none", "emulated", "passthrough", "mediated"), PLAIN)
PMU = dict.fromkeys(("emulated", "passthrough", "mediated"), COUNTS)
# Where an option has an effect, and the guest that shows it; in every other mode it is refused.
SHOWS: dict[str, dict[str, str]] = {
    "cpu": ANY, "ram": ANY, "cores": ANY, "entry": ANY, "settings": ANY,
    "defsym": dict.fromkeys(MODES, DEFINED), "trace": dict.fromkeys(MODES, READS),
    "max_insns": dict.fromkeys(MODES, f"_start: {LOOP}"),
    "max_cycles": dict.fromkeys(MODES, f"_start: {LOOP.replace('200', '2000')}"),
    "inject": {"bare": COUNTS, "none": READS, **PMU}, "filter": PMU, "guest": PMU,
    "msr_filter": dict.fromkeys(HOSTED, f"_start: {wrmsr(0xC1, 1)}{EXIT}"),
    "host_events": HOSTED, "host": HOSTED, "other_vpmu": PMU, "watchdog": HOSTED,
    "hz": HOSTED, "nohz": dict.fromkeys(HOSTED, WAITS.replace("hlt", "nop")),
    "costs": {"bare": READS, **HOSTED},
    "watchdog_thresh": dict.fromkeys(HOSTED, WAITS), "kvm": dict.fromkeys(HOSTED, PREFIXED),
    "apicv": dict.fromkeys(HOSTED, EOI), "all_passthrough": {"passthrough": COUNTS},
    "switch": {"passthrough": COUNTS, "mediated": COUNTS},
    "quirks": {"passthrough": STOPPED, "mediated": FIXED}, "without": {"passthrough": COUNTS},
    "pmi_vector": dict.fromkeys(("passthrough", "mediated"), OVERFLOWS),
    "pmi_skid": dict.fromkeys(MODES, OVERFLOWS) | {"none": WAITS},
}  # fmt: skip
BESIDE: dict[object, dict[str, object]] = {
    ("pmi_skid", "none"): {"host_events": ["cycles/period=3000/"], "max_cycles": 100_000},
    "nohz": {"max_cycles": 14_000_000, "hz": 1000},
    "other_vpmu": {"host": [str(ROOT / "guests/host/second_vm.s")]},
    "watchdog_thresh": {"watchdog": "hpet", "max_cycles": 1_500_000},
    "quirks": {"filter": make_filter(KVM_PMU_EVENT_DENY, [], fixed_counter_bitmap=1)},
}
OTHERS = {
    ("inject", "none"): ["absent-perfctr-faults"], ("watchdog", "any"): "nmi",
    ("watchdog", "mediated"): "buddy", ("host_events", "mediated"): ["cycles:H"],
    ("quirks", "mediated"): ["7.0-fixed-filter"],
}  # fmt: skip
ELSEWHERE = "tests/test_migration.py"
NOT_SHOWN = {
    "vpmu": "is the mode", "horizon": "changes no result", "horizon_seed": "changes no result",
    "engine": "changes no result", "hot": "changes no result",
    "save": ELSEWHERE, "at": ELSEWHERE, "restore": ELSEWHERE,
}  # fmt: skip


SEEN: dict[str, object] = {}  # what all options are compared with is run once


def seen(text, **options):
    key = f"{text} {options}"
    if key not in SEEN:
        result = run(assemble(text, "options.s"), **options)
        values = {k: v for k, v in result.to_json().items() if k not in ("jit_s", "wall_s", "cpu")}
        SEEN[key] = values, len(result.events())
    return SEEN[key]


def test_the_table_is_whole():
    assert set(SHOWS) | set(NOT_SHOWN) == set(OPTIONS)
    for key, guests in SHOWS.items():
        need = OPTIONS[key].need
        assert set(guests) == {m.name for m in MODES.values() if need is None or need.fits(m)}, key


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("key", SHOWS)
def test_every_option_has_an_effect_or_is_refused(key, mode):
    value = OTHERS.get((key, mode), OTHERS.get((key, "any"), VALUES[key][1]))
    base = {"vpmu": mode, "ram": 2}
    if mode in SHOWS[key]:
        text, base = SHOWS[key][mode], base | BESIDE.get((key, mode), BESIDE.get(key, {}))
        assert seen(text, **base) != seen(text, **{**base, key: value})
        return
    with pytest.raises(ConfigError, match=f"in mode {mode}") as refused:
        System(assemble("hlt"), **{**base, key: value})
    assert refused.value.key == OPTIONS[key].name


# --- costs and latencies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_latency_and_a_cost_are_numbers_of_the_record(mode, tmp_path):
    values = {"model.msr": 2000, "model.l2_lines": 2048}
    if MODES[mode].hypervisor:
        values |= {"cost.vm_exit": 5000}
    machine = System(assemble(READS), vpmu=mode, settings=values, costs="high")
    for core in machine.cores:
        assert int(core.latency[LATENCIES.index("msr")]) == 2000
        pmc = LATENCIES.index("pmc")
        assert int(core.latency[pmc]) == machine.model.latencies[pmc][2]
        assert int(core.l2_bits) == 11
    if MODES[mode].hypervisor:
        costs = {name: int(machine.S.config.costs[k][0]) for k, name in enumerate(COST_NAMES)}
        assert costs["vm_exit"] == 5000  # whatever the level says
        assert costs["vm_entry"] == machine.model.cost("vm_entry").cycles[2]


def test_costs_are_set_at_every_door(tmp_path):
    usual, values = (
        run(assemble(PLAIN), vpmu="none", settings=s).to_json()["work"]["vm_exit"]
        for s in ({}, {"cost.vm_exit": 5000})
    )
    assert values == {"count": usual["count"], "cycles": 5000 * usual["count"]}
    path = tmp_path / "g.s"
    path.write_text(PLAIN + "\n#: modes none emulated\n#: args --set cost.vm_exit=5000\n"
                    "#: expect all: exit_code == 0\n")  # fmt: skip
    asked = ["--vpmu", "none", "--set", "cost.vm_exit=5000"]
    runner = CliRunner()
    done = runner.invoke(main, ["run", str(path), *asked, "--json"])
    assert json.loads(done.stdout)["work"]["vm_exit"] == values
    assert runner.invoke(main, ["check", str(path)]).exit_code == 0
    assert runner.invoke(main, ["debug", str(path), *asked], input="cont\n").exit_code == 0
    done = runner.invoke(main, ["explain", "switch", "--set", "cost.wrmsr=7777", "--vpmu", "passthrough"])
    assert (done.exit_code, "7,777" in done.output or "7777" in done.output) == (0, True), done.output
    path.write_text(PLAIN + "\n#: modes none\n#: args --set cost.vm_exitt=5000\n#: expect all: rax == 0\n")
    done = runner.invoke(main, ["check", str(path)])
    assert (done.exit_code, "did you mean cost.vm_exit?" in done.output) == (2, True)
    session = vpmu_emu.Session(assemble(PLAIN), vpmu="none", settings={"cost.vm_exit": 5000})
    assert int(session.system.S.config.costs[COST_NAMES.index("vm_exit")][0]) == 5000
