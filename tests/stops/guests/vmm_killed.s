# The VMM is killed: nothing that is left can go on.
#~ modes none
#~ args --host kill_vmm.s --host ends.s
        .intel_syntax noprefix
_start: jmp _start
#= halted at rip 0x100000
#= why: vmm.s (pid 1) was killed by SIGKILL at 0x1002ab (vmm.s:48)
#= why: kill_vmm.s (pid 2) sleeps, and nothing that is left will wake it up
#= why: ends.s (pid 3) has ended with exit code 4
