"""Optuna prunes a trial of Keras by the callback's keys, at the epoch that its pruner says."""

import pytest
from keras_models import train

from tensorstate_callbacks.keras import EfficiencyCallback

optuna = pytest.importorskip("optuna", reason="optuna isn't installed")
integration = pytest.importorskip("optuna_integration", reason="optuna-integration isn't installed")


@pytest.mark.parametrize("efficiency_first", [True, False])
def test_trial_is_pruned_on_aiq(efficiency_first):
    histories = []

    def objective(trial):
        efficiency = EfficiencyCallback("conv_1")
        pruning = integration.KerasPruningCallback(trial, "val_aiq")
        histories.append(efficiency.history)
        train([efficiency, pruning][:: 1 if efficiency_first else -1])
        return efficiency.last.aiq

    # No aIQ reaches 2: the trial ends with the first epoch that is looked at.
    pruner = optuna.pruners.ThresholdPruner(lower=2, n_warmup_steps=1)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    study.optimize(objective, n_trials=1)
    ((trial,), (history,)) = study.trials, histories
    assert trial.state is optuna.trial.TrialState.PRUNED
    assert trial.intermediate_values == {n: history[n].aiq for n in (0, 1)}
    assert len(history) == 2


def test_trial_that_is_not_pruned_is_judged_by_its_aiq():
    efficiency = EfficiencyCallback("conv_1")

    def objective(trial):
        train([efficiency, integration.KerasPruningCallback(trial, "val_aiq")], epochs=2)
        return efficiency.last.aiq

    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.NopPruner())
    study.optimize(objective, n_trials=1)
    assert study.best_value == efficiency.history[-1].aiq
    assert len(study.best_trial.intermediate_values) == 2
