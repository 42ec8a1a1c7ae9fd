"""Carries are worked out where they are read: native code keeps an addition's operands until then.

Most carry vectors are overwritten before they are read. LLVM sees that within a block; from block to block
it does not, since every way out of a region must give all flags. So a region keeps the operands of the last
addition or subtraction, and what INC or DEC made of fz behind it, and works out `cv` where it is read.
"""

from __future__ import annotations

from vpmu_emu._jit import jit
from vpmu_emu.machine.semantics import SH8, SH32, SH64, add, dec, inc, sub
from vpmu_emu.machine.u64 import LOW32, ONE, U32

# What gave the carries: a function of semantics.py and the width of its operands.
LATE_ADD64, LATE_ADD32, LATE_SUB64, LATE_SUB32, LATE_SUB8 = range(1, 6)
# INC and DEC keep CF: of those only the result is needed, which is in fz.
BY_ONE_INC64, BY_ONE_INC32, BY_ONE_DEC64, BY_ONE_DEC32 = range(1, 5)


@jit(inline=True)
def carry_vector(cv, late, x, y, by_one, fz):
    """`cv` after what is late: LATE_* of x and y, then BY_ONE_* with the result fz."""
    if late == LATE_ADD64:
        _z, cv = add(x, y, cv, SH64)
    elif late == LATE_ADD32:
        _z, cv = add(x, y, cv, SH32)
    elif late == LATE_SUB64:
        _z, cv = sub(x, y, cv, SH64)
    elif late == LATE_SUB32:
        _z, cv = sub(x, y, cv, SH32)
    elif late == LATE_SUB8:
        _z, cv = sub(x, y, cv, SH8)
    if by_one == BY_ONE_INC64:
        _z, cv = inc(fz - ONE, ONE, cv, SH64)
    elif by_one == BY_ONE_INC32:
        _z, cv = inc(((fz >> U32) - ONE) & LOW32, ONE, cv, SH32)
    elif by_one == BY_ONE_DEC64:
        _z, cv = dec(fz + ONE, ONE, cv, SH64)
    elif by_one == BY_ONE_DEC32:
        _z, cv = dec(((fz >> U32) + ONE) & LOW32, ONE, cv, SH32)
    return cv
