"""A host kernel without any VM, whose programs are mini-asm: booted, run, and asked what came of them."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from vpmu_emu.asm import assemble
from vpmu_emu.linux.run import run_host
from vpmu_emu.linux.state import INSIDE_KERNEL, TASK_DEAD
from vpmu_emu.linux.syscalls import FUNCTIONS, Errno, Host, handle
from vpmu_emu.linux.syscalls.host import IN_USE
from vpmu_emu.linux.syscalls.tasks import spawn
from vpmu_emu.machine import engine
from vpmu_emu.machine.state import END_OF_TIME, ENGINE, RUN_SYSCALL
from vpmu_emu.options import Options
from vpmu_emu.setup.vm import init_config, init_host, new_record
from vpmu_emu.system import fill_core, host_model
from vpmu_emu.tables.linux import SYSCALLS
from vpmu_emu.tables.modes import MODES

MIB = 1 << 20
MEMORY, POOL = 8 * MIB, 2 * MIB
TICK = 20_000
IDLE = "    .text\n_start: jmp _start\n"
PROLOGUE = """
.intel_syntax noprefix
.include "linux.inc"
.macro CALL_LINUX name
    mov eax, SYS_\\name
    syscall
.endm
.macro EXIT code
    mov edi, \\code
    mov eax, SYS_exit_group
    syscall
.endm
"""


@cache
def program(body: str, name: str = "host.s") -> Any:
    """A host program; `body` has its own sections and `_start`."""
    return assemble(PROLOGUE + body, name)


class Kernel:
    """A booted host.

    Args:
        bodies: host programs to start, in mini-asm.
        cores: how many the host uses.
        mode: KVM's mode, for the record only.
        cpu: model of the cores.
    """

    def __init__(
        self,
        *bodies: str,
        cores: int = 1,
        mode: str = "emulated",
        guest: bytes = b"",
        cpu: str = "spr",
    ) -> None:
        self.array, self.engine = new_record(), np.zeros(1, dtype=ENGINE).view(np.recarray)
        self.S, self.E = self.array[0], self.engine[0]
        self.M = np.zeros(MEMORY, dtype=np.uint8)
        if "memory" in self.E.dtype.names:
            self.E.memory, self.E.memory_size = self.M.ctypes.data, len(self.M)
        self.model = host_model(cpu)
        self.E.n_uops = 1
        self.E.insn_limit = self.E.task_limit = (1 << 64) - 1
        self.E.t_limit = self.E.stop_t = END_OF_TIME
        for k, core in enumerate(self.S.cores):
            fill_core(core, self.model)
            core.cores, core.number, core.space = cores, k, k
            engine.reset_core(core, np.uint64(k))
        init_config(self.S, self.model, MODES[mode], Options(cores=cores))
        # Ticks and slices that a test can wait for.
        self.S.config.tick_interval = self.S.config.sched_slice = TICK * 16
        init_host(self.S, self.model)
        self.S.config.memory = len(self.M)
        self.S.free_page = POOL
        for core in self.S.cores:
            core.kernel, core.activity = 1, 0
        programs = [program(body) for body in bodies or (IDLE,)]
        self.host = Host(self.S, self.M, self.E, self.model, programs, {"/guest": guest} if guest else {})
        for k in range(len(programs)):
            spawn(self.host, k, [f"program{k}"], [])

    def run(self, cycles: int = 1_000_000) -> Kernel:
        """Run until all tasks are dead, or so many cycles from now."""
        end = max(int(core.t) for core in self.S.cores) + cycles * 16
        with np.errstate(over="ignore"):
            while any(task.used and int(task.state) != TASK_DEAD for task in self.S.tasks):
                self.E.t_slice = end
                code = int(run_host(self.S, self.M, self.E))
                if code != RUN_SYSCALL:
                    break
                handle(self.host)
        return self

    def start(self) -> Kernel:
        """Bring the first program to its first instruction, for `call`."""
        self.run(1)
        assert int(self.S.percpu[0].curr) >= 0
        self.S.this_cpu = 0
        return self

    def call(self, name: str, *args: int) -> int:
        """A system call by the current task, done here and now: its result."""
        self.S.percpu[int(self.S.this_cpu)].inside = INSIDE_KERNEL
        number = next(row.number for row in SYSCALLS.values() if row.name == name)
        function, n = FUNCTIONS[number]
        given = [a & ((1 << 64) - 1) for a in (*args, *[0] * n)][:n]
        try:
            return int(function(self.host, self.host.task, *given))
        except Errno as error:
            return -error.number

    def pages_in_use(self) -> int:
        """Pages of physical memory that somebody has."""
        return int((self.host.mem_map == IN_USE).sum())

    def handle(self) -> None:
        """What the run loop does when a program has come into its kernel."""
        handle(self.host)

    def page(self, data: bytes = b"", size: int = 4096) -> int:
        """Address of a new mapping of the current task with these bytes in it."""
        at = self.call("mmap", 0, max(size, len(data)), 3, 0x22, -1, 0)
        assert at > 0
        self.host.copy_to_user(at, data)
        return at

    def exit_codes(self) -> list[int | None]:
        """Of every task that there has been: its exit code, None while it lives."""
        return [
            int(task.exit_code) if int(task.state) == TASK_DEAD else None
            for task in self.S.tasks
            if task.used
        ]

    @property
    def text(self) -> str:
        """What programs wrote."""
        return bytes(self.E.serial[: int(self.S.cores[0].serial_len)]).decode()
