"""KVM_RUN in compiled code and as a system call in Python: the same record, the same memory."""

from __future__ import annotations

import pytest

from tests.linux.guests import system
from vpmu_emu.linux import host, syscalls

pytestmark = pytest.mark.inner

BODY = """
    mov ecx, 6
1:  in al, 0x71
    out 0x80, al
    loop 1b
    EXIT 0
"""


@pytest.mark.parametrize(("mode", "cores"), [("emulated", 1), ("passthrough", 2)])
def test_an_exit_to_the_vmm_needs_no_python(mode, cores, monkeypatch):
    calls = []
    handle = syscalls.handle
    monkeypatch.setattr(syscalls, "handle", lambda kernel: (calls.append(1), handle(kernel)))

    def ran():
        machine = system(BODY, mode, cores=cores)
        calls.clear()  # those of its boot
        assert machine.run().reason == "debug-exit"
        return machine.record(), machine.M.tobytes(), len(calls)

    record, memory, few = ran()
    monkeypatch.setattr(host, "kvm_run_begins", lambda *_: False)
    monkeypatch.setattr(host, "kvm_run_ends", lambda *_: False)
    same, also, many = ran()
    assert few == 0
    assert many >= 2 * 13  # twelve ports and the exit; each a call that begins and one that ends
    assert record == same
    assert memory == also
