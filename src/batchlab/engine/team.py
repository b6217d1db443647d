"""A few threads that take the same compiled steps together, and wait for each other within them.

A step of the compiled loop has some three places where one thread needs what the others made, a
few microseconds apart: too near for locks of the operating system. So each member counts the gates
it has passed in a cache line of its own, and waits until all others have passed as many. It waits
by looking, and now and then lets another thread of the machine have its core.
"""

import os
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from batchlab.engine.loop import LINE, OPEN

_OFFER = "sched_yield" if os.name == "posix" else "SwitchToThread"
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
_LOOKS = 2000  # at a gate before the core is offered to others, some microseconds


@intrinsic
def _load(typingctx, array, index):  # noqa: ARG001
    """An element of an int64 array, read so that what its writer wrote before is there too."""

    def build(context, builder, signature, args):
        array_type = signature.args[0]
        data = context.make_array(array_type)(context, builder, args[0]).data
        return builder.load_atomic(builder.gep(data, [args[1]]), "acquire", 8)

    return types.int64(array, types.intp), build


@intrinsic
def _store(typingctx, array, index, value):  # noqa: ARG001
    """The counterpart of `_load`."""

    def build(context, builder, signature, args):
        array_type = signature.args[0]
        data = context.make_array(array_type)(context, builder, args[0]).data
        builder.store_atomic(args[2], builder.gep(data, [args[1]]), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), build


@intrinsic
def _offer_core(typingctx):  # noqa: ARG001
    """What the operating system has for it."""

    def build(context, builder, signature, args):  # noqa: ARG001
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.IntType(32), []), _OFFER
        )
        builder.call(function, [])
        return context.get_dummy_value()

    return types.void(), build


@njit(**_OPTIONS)
def pass_gate(gates, member):
    """Wait until every member is at this gate; `gates` (members * LINE): int64, zeros at first."""
    members = gates.size // LINE
    if members == 1:
        return
    count = _load(gates, member * LINE) + 1
    if count > OPEN:
        return
    _store(gates, member * LINE, count)
    for other in range(members):
        looks = 0
        while _load(gates, other * LINE) < count:
            looks += 1
            if looks > _LOOKS:
                _offer_core()
