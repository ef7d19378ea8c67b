"""Give the values of a JAX array to a function on the host whenever the compiled code runs.

JAX's own callbacks (`io_callback`, `pure_callback`, `jax.debug.callback`) give their function
arrays that are copied on the thread which waits for it: with one CPU they wait forever once an
array is a few hundred kilobytes. This one hands over XLA's memory as it is.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from tensorstate_callbacks.errors import ProbeError

_sharding_of_callback: Any
try:
    from jax._src.callback import _callback_op_sharding as _sharding_of_callback
except ImportError:
    _sharding_of_callback = None

Observe: TypeAlias = Callable[[npt.NDArray[Any]], None]

_barrier: Any = jax.lax.optimization_barrier
_tap: Any = Primitive("tensorstate_tap")


def tap(tensor: jax.Array, observe: Observe) -> jax.Array:
    """Return the tensor, tied to a call of `observe` on its values; gradients pass by.

    Args:
        tensor: Of any shape. Under `vmap`, `observe` sees the batch axis before the others.
        observe: Reads the array, which is XLA's memory, and keeps nothing of it. Of its errors it
            keeps the `ProbeError`s, which compiled code passes over: Keras gives its weights away
            to a step while it runs, and has none left where the step fails.
    """
    done = _tap.bind(jax.lax.stop_gradient(tensor), observe=observe)
    # Whoever computes the tensor has to make the call.
    tied: jax.Array = _barrier((tensor, done))[0]
    return tied


def is_traced(tensor: Any) -> bool:
    """Tell whether the tensor stands for values that come when the code runs."""
    return isinstance(tensor, jax.core.Tracer)


def _run(tensor: jax.Array, *, observe: Observe) -> jax.Array:
    observe(np.asarray(tensor))
    return jnp.zeros((), bool)


def _shape_of_result(tensor: Any, *, observe: Observe) -> Any:
    return jax.core.ShapedArray((), np.dtype(bool))


def _batch(tensors: Sequence[Any], axes: Sequence[int], *, observe: Observe) -> tuple[Any, None]:
    return _tap.bind(jnp.moveaxis(tensors[0], axes[0], 0), observe=observe), None


def _lower(context: Any, tensor: Any, *, observe: Observe) -> Any:
    def run(array: Any) -> tuple[np.bool_]:
        with suppress(ProbeError):
            observe(np.asarray(array))
        return (np.False_,)

    results, _, _ = mlir.emit_python_callback(
        context,
        run,
        None,
        [tensor],
        context.avals_in,
        context.avals_out,
        has_side_effect=True,
        returns_token=False,
        sharding=_one_device(context),
    )
    return results


def _one_device(context: Any) -> Any:
    """Return the sharding under which a tensor on several devices is gathered and seen once."""
    where = context.module_context.axis_context
    if _sharding_of_callback is not None:
        return _sharding_of_callback(where, None, context.avals_out)
    if getattr(where, "num_devices", 1) not in (None, 1):
        raise ProbeError(
            f"states can't be captured by a layer on {where.num_devices} devices with JAX "
            f"{jax.__version__}: use tensorstate_callbacks.keras.EfficiencyCallback"
        )
    return None


_tap.def_impl(_run)
_tap.def_abstract_eval(_shape_of_result)
batching.primitive_batchers[_tap] = _batch
mlir.register_lowering(_tap, _lower, cacheable=False)
