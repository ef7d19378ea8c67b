"""Tell what could be left on a Keras model."""

from keras_models import X_VAL, Y_VAL, X, Y


def traces(model):
    """What could be left on a model: its own entries, and its layers'."""
    entries = {layer.name: sorted(vars(layer)) for layer in model._flatten_layers()}
    # What Keras itself leaves after fit and evaluate.
    keras_own = {"history", "stop_evaluating", "_eval_epoch_iterator", "stop_predicting"}
    entries[model.name] = sorted(set(vars(model)) - keras_own)
    return entries


def is_keras_own(function):
    return function is None or function.__module__.startswith("keras.")


def fit(model, *callbacks, epochs=3, **options):
    options = {"validation_data": (X_VAL, Y_VAL), **options}
    return model.fit(
        X, Y, epochs=epochs, batch_size=50, verbose=0, callbacks=list(callbacks), **options
    )
