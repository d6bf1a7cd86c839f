"""Arrays without reference counts for compiled loops whose caller owns the arrays anyway."""

from __future__ import annotations

from typing import Any

from numba.core import types
from numba.extending import intrinsic


def _unowned(_context: Any, value: Any) -> Any:
    """The same array, or (nested) tuple of arrays, that numba does not count references to.

    numba counts a reference, atomically, whenever an array is taken out of a tuple or viewed; over a state of some
    sixty arrays that was a third of the pipeline's time. Only for arguments of a function called from Python,
    which hold their arrays until it returns; never return or store the result.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _forget_owner(context, builder, signature.args[0], arguments[0])

    return value(value), generate


def _forget_owner(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, builder, value)
        array.meminfo = array.meminfo.type(None)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        kinds: list[Any] = list(kind)  # type: ignore[call-overload]
        members = [_forget_owner(context, builder, kinds[i], builder.extract_value(value, i))
                   for i in range(len(kinds))]  # fmt: skip
        return context.make_tuple(builder, kind, members)
    return value


unowned: Any = intrinsic(_unowned)
