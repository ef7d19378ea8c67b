"""The package's own exceptions and its one warning category."""


class TensorStateError(Exception):
    """Base of the errors that only this package raises."""


class NoLayerMatchedError(TensorStateError, ValueError):
    """`attach_to` and `exclude` leave no layer of the model to probe."""


class ProbeError(TensorStateError, RuntimeError):
    """A layer's activations could not be counted; the message names the layer."""


class RankError(TensorStateError, RuntimeError):
    """Another process failed or did not come to merge its counts; the message names its rank."""


class MissingExtraError(TensorStateError, ImportError):
    """An optional dependency is not installed; the message names the extra that brings it."""


class TensorStateWarning(UserWarning):
    """Something the user asked for could not be measured, or only slowly; said once."""


class StatesNotAvailableError(TensorStateError, RuntimeError):
    """What was asked for has not been captured, or was not kept; the message names the layer."""


class RunError(TensorStateError, ValueError):
    """A finished run can't be read back; the message names what was found instead."""
