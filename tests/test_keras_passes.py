"""Which passes the Keras callback records: a fit's, an evaluate's, a loop's of the user's own."""

import copy

import keras
import pytest
from keras_models import (
    BACKEND,
    X_VAL,
    Y_VAL,
    SeesLogs,
    Subclassed,
    X,
    Y,
    compiled,
    sequential,
    since,
    train,
)

from tensorstate_callbacks.keras import EfficiencyCallback


def test_reports_say_where_they_stand():
    ours = EfficiencyCallback("Conv2D")
    model, _ = train([ours], epochs=2)
    assert [(r.epoch, r.step, r.stage) for r in ours.history] == [(0, 6, "val"), (1, 12, "val")]
    model.evaluate(X_VAL, Y_VAL, callbacks=[ours], verbose=0)
    assert (ours.last.epoch, ours.last.step, ours.last.stage) == (None, 12, "test")
    assert len(ours.history) == 3


def test_evaluate_returns_what_it_returns_without_us_and_more_in_a_dict():
    ours, model = EfficiencyCallback("Conv2D"), train([], epochs=1)[0]
    plain = model.evaluate(X_VAL, Y_VAL, verbose=0)
    assert model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=[ours]) == plain
    more = model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=[ours], return_dict=True)
    assert [more.pop("loss"), more.pop("accuracy")] == plain
    assert more == ours.last.scalars(with_stage=False)


def test_argument_that_is_changed_counts_from_the_next_run_and_is_checked():
    class Changes(keras.callbacks.Callback):
        def on_test_begin(self, logs=None):
            ours.prefix = "x_"

    ours = EfficiencyCallback("conv_1")
    model, history = train([Changes(), ours], epochs=2)
    assert len(history["val_aiq"]) == 2
    assert "val_x_aiq" not in history
    more = model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=[ours], return_dict=True)
    assert ("x_aiq" in more, "aiq" in more) == (True, False)
    ours.beta = 0
    with pytest.raises(ValueError, match=r"beta.*above 0; got 0"):
        model.evaluate(X_VAL, Y_VAL, verbose=0, callbacks=[ours])
    assert len(ours.history) == 3


def test_every_n_epochs_records_those_only():
    ours, other = EfficiencyCallback("Conv2D", every_n_epochs=2), SeesLogs()
    train([ours, other], epochs=5)
    assert [report.epoch for report in ours.history] == [1, 3]
    assert ["val_aiq" in logs for logs in other.seen] == [False, True, False, True, False]
    assert all("val_accuracy" in logs for logs in other.seen)


def test_callbacks_that_record_in_different_epochs_each_see_their_layers():
    often = EfficiencyCallback("conv_1", prefix="often_")
    seldom = EfficiencyCallback("conv_2", prefix="seldom_", every_n_epochs=2)
    _, history = train([often, seldom], epochs=4)
    assert [list(report.layers) for report in often.history] == [["conv_1"]] * 4
    assert [list(report.layers) for report in seldom.history] == [["conv_2"]] * 2
    assert len(history["val_seldom_efficiency/conv_2"]) == 2


def test_a_test_function_that_the_user_makes_anew_is_followed():
    class Model(Subclassed):
        fires = True

        def call(self, inputs):
            return super().call(inputs if self.fires else inputs * 0)

    class Switches(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                self.model.fires = False
                self.model.make_test_function(force=True)

    ours, model = EfficiencyCallback("conv_1"), compiled(Model())
    model.fit(
        X, Y, validation_data=(X_VAL, Y_VAL), epochs=4, verbose=0, callbacks=[ours, Switches()]
    )
    # Without an input all positions of a convolution are alike.
    assert [r.layers["conv_1"].n_distinct == 1 for r in ours.history] == [False, False, True, True]


def test_validation_freq_and_split_work():
    ours = EfficiencyCallback("Conv2D")
    train([ours], validation_freq=2)
    assert [report.epoch for report in ours.history] == [1, 3]
    ours = EfficiencyCallback("conv_1")
    train([ours], epochs=1, validation_data=None, validation_split=0.2)
    assert ours.last.layers["conv_1"].n_states == 60 * 64


def test_two_fits_with_one_callback_go_on_in_one_history():
    ours = EfficiencyCallback("Conv2D")
    train([ours], epochs=2)
    model, _ = train([ours], epochs=2)
    model.fit(X, Y, validation_data=(X_VAL, Y_VAL), verbose=0, callbacks=[ours])
    assert [report.epoch for report in ours.history] == [0, 1, 0, 1, 0]
    assert len({r.layers["conv_1"].n_states for r in ours.history}) == 1


def test_results_are_those_that_the_model_gives_in_the_end_not_those_of_the_last_step():
    class Model(Subclassed):
        def test_step(self, *args):
            if BACKEND == "jax":
                logs, state = super().test_step(*args)
                return {name: value * 0 for name, value in logs.items()}, state
            return {name: value * 0 for name, value in super().test_step(*args).items()}

    ours, model = EfficiencyCallback("Conv2D"), compiled(Model())
    results = model.evaluate(X, Y, verbose=0, callbacks=[ours], return_dict=True)
    hits = (model.predict(X, verbose=0).argmax(1) == Y).mean()
    assert results["accuracy"] == pytest.approx(hits)
    assert ours.last.accuracy == results["accuracy"] > 0


def test_an_evaluation_of_its_own_within_a_fit_is_told_from_the_fits():
    ours = EfficiencyCallback("conv_1")

    class EvaluatesToo(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.evaluate(X, Y, verbose=0, callbacks=[ours])

    _, history = train([ours, EvaluatesToo()], epochs=2)
    assert [(r.stage, r.epoch) for r in ours.history] == [
        ("val", 0),
        ("test", None),
        ("val", 1),
        ("test", None),
    ]
    assert [r.layers["conv_1"].n_states // 64 for r in ours.history] == [101, 300, 101, 300]
    assert history["val_aiq"] == [r.aiq for r in ours.history if r.stage == "val"]


@since((3, 8), before="its own test_on_batch raises StopIteration")
@pytest.mark.parametrize("return_dict", [True, False])
def test_a_loop_of_the_users_own_is_recorded(return_dict):
    ours, other, model = EfficiencyCallback("Conv2D"), SeesLogs(), compiled(sequential())
    callbacks = keras.callbacks.CallbackList([ours, other], model=model)
    callbacks.on_test_begin()
    for start in range(0, 300, 100):
        part = slice(start, start + 100)
        results = model.test_on_batch(X[part], Y[part], return_dict=return_dict)
    logs = dict(results) if return_dict else dict(zip(("loss", "accuracy"), results, strict=True))
    callbacks.on_test_end(logs)
    assert ours.last.layers["conv_1"].n_states == 300 * 64
    assert ours.last.accuracy == logs["accuracy"]
    assert other.ended[0]["aiq"] == ours.last.aiq
    assert set(vars(model)) & {"_get_metrics_result_or_logs", "_flatten_metrics_in_order"} == set()


def test_evaluations_go_on_with_one_test_function_while_it_fits():
    ours, model = EfficiencyCallback("Conv2D"), train([], epochs=1)[0]

    def evaluate(n=None):
        model.evaluate(X_VAL[:n], Y_VAL[:n], callbacks=[ours], verbose=0)
        fresh = EfficiencyCallback(ours.attach_to, threshold=ours.threshold)
        model.evaluate(X_VAL[:n], Y_VAL[:n], callbacks=[fresh], verbose=0)
        assert ours.last.layers == fresh.last.layers
        return ours.built

    built = evaluate()
    assert evaluate() is built
    assert evaluate(n=20) is built
    ours.threshold = 0.1
    assert evaluate() is built
    assert copy.deepcopy(ours).built is None
    ours.attach_to = "conv_1"
    other = evaluate()
    assert other is not built
    compiled(model)
    assert evaluate() is not other


def test_an_evaluation_after_one_that_was_broken_off_begins_anew():
    class Stops(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    ours, model = EfficiencyCallback("Conv2D"), train([], epochs=1)[0]
    model.evaluate(X_VAL, Y_VAL, callbacks=[ours], verbose=0)
    with pytest.raises(KeyboardInterrupt):
        model.evaluate(X_VAL[:20], Y_VAL[:20], callbacks=[ours, Stops()], verbose=0)
    before = ours.built
    model.evaluate(X_VAL, Y_VAL, callbacks=[ours], verbose=0)
    assert ours.built is not before
    assert ours.last.layers == ours.history[0].layers
