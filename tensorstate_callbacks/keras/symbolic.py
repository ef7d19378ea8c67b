"""Tell whether Keras is only working out shapes."""

import keras
from keras.src.backend.common.stateless_scope import get_stateless_scope

__all__ = ["in_symbolic_scope"]

try:
    from keras.src.backend.common.symbolic_scope import in_symbolic_scope
except ImportError:  # Keras before 3.4

    def in_symbolic_scope() -> bool:
        """Tell whether shapes are being worked out: on PyTorch there is no other such scope."""
        return keras.backend.backend() == "torch" and get_stateless_scope() is not None
