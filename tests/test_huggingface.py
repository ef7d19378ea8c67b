"""Hugging Face's Trainer: efficiency and aIQ of its evaluations, as those of samples alone."""

import copy
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from own_warnings import ours
from rank_processes import run
from torch import nn

hf = pytest.importorskip("transformers", reason="transformers isn't installed")
pytest.importorskip("accelerate", reason="accelerate isn't installed")

from huggingface_runs import (  # noqa: E402
    QUIET,
    EfficiencySeq2SeqTrainer,
    EfficiencyTrainer,
    Samples,
    classifier,
    evaluations,
    figures,
    gpt2,
    images,
    language,
    t5,
    texts,
    trainer,
    vision,
)

from tensorstate_callbacks import NoLayerMatchedError, ProbeError, TensorStateWarning  # noqa: E402
from tensorstate_callbacks.huggingface import (  # noqa: E402
    EfficiencyTrainerMixin,
    EvaluationRecording,
)
from tensorstate_callbacks.torch import record  # noqa: E402


def alone(model: nn.Module, samples: Samples, **settings: Any) -> Any:
    """Return the report of samples that the model is given one by one, without padding."""
    with record(model.eval(), **settings) as recording, torch.no_grad():
        for sample in samples.samples:
            inputs = {k: v[None] for k, v in sample.items() if k in ("input_ids", "pixel_values")}
            model(**inputs)
    return recording.report()


def untouched(trainer: Any) -> bool:
    model = trainer.model
    hooks = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    return not (hooks or {"prediction_step"} & vars(trainer).keys() or "generate" in vars(model))


@pytest.mark.parametrize("size", [1, 4, 11])
@pytest.mark.parametrize("efficiency", [{}, {"group_size": 4, "positions": 2}])
def test_texts_count_as_their_tokens_alone(size: int, efficiency: dict[str, Any]) -> None:
    options = {"per_device_eval_batch_size": size}
    its = trainer(classifier(), texts(), efficiency=efficiency, options=options)
    metrics = its.evaluate()
    expected = alone(its.model, texts(), **efficiency)
    assert metrics["eval_efficiency"] == expected.efficiency
    for name, layer in expected.layers.items():
        assert metrics[f"eval_efficiency/{name}"] == layer.efficiency
    accuracy = metrics["eval_accuracy"]
    assert metrics["eval_aiq"] == pytest.approx((expected.efficiency * accuracy**2) ** (1 / 3))
    assert 0 < accuracy < 1
    assert its.efficiency.last.stage == "eval"
    assert untouched(its)


def test_images_and_language_models_are_watched() -> None:
    its = trainer(vision(), images())
    assert its.evaluate()["eval_efficiency"] == alone(its.model, images()).efficiency
    its = trainer(gpt2(), texts(), data_collator=language, metrics=None, efficiency=QUIET)
    metrics = its.evaluate()
    assert metrics["eval_efficiency"] == alone(its.model, texts()).efficiency
    assert "eval_aiq" not in metrics


def test_missing_accuracy_is_told_of_once() -> None:
    its = trainer(classifier(), texts(), metrics=None)
    with pytest.warns(TensorStateWarning, match="aIQ can't be computed") as caught:
        metrics = its.evaluate()
    assert len(ours(caught)) == 1
    assert {"eval_aiq", "eval_accuracy"} & metrics.keys() == set()


def test_prediction_and_named_datasets_have_their_own_keys() -> None:
    its = trainer(classifier(), texts(), eval_dataset={"a": texts(), "b": texts(6, seed=9)})
    metrics = its.evaluate()
    for name, data in (("a", texts()), ("b", texts(6, seed=9))):
        assert metrics[f"eval_{name}_efficiency"] == alone(its.model, data).efficiency
        assert metrics[f"eval_{name}_aiq"] > 0
    predicted = its.predict(texts(5, seed=4)).metrics
    assert predicted["test_efficiency"] == alone(its.model, texts(5, seed=4)).efficiency
    assert [report.stage for report in its.efficiency.history] == ["eval_a", "eval_b", "test"]


class Stopping(hf.TrainerCallback):
    """Sees the metrics as every other callback does."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_evaluate(self, *args: Any, metrics: Any, **kwargs: Any) -> None:
        self.seen.append(metrics["eval_aiq"])


def fit(kind: Any, folder: Path, **options: Any) -> Any:
    its = trainer(
        classifier(),
        texts(),
        kind=kind,
        folder=str(folder),
        options={
            "num_train_epochs": 4,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "learning_rate": 0.01,
            "seed": 5,
            **options,
        },
    )
    its.train()
    return its


def test_training_is_as_without_and_every_evaluation_is_logged(tmp_path: Path) -> None:
    plain = fit(hf.Trainer, tmp_path / "plain")
    options = {"metric_for_best_model": "eval_aiq", "greater_is_better": True}
    watched = fit(
        EfficiencyTrainer,
        tmp_path / "watched",
        report_to=["tensorboard"],
        load_best_model_at_end=True,
        **options,
    )
    logged = [entry for entry in watched.state.log_history if "eval_aiq" in entry]
    assert [entry["epoch"] for entry in logged] == [1, 2, 3, 4]
    assert watched.state.best_metric == max(entry["eval_aiq"] for entry in logged)
    losses = [[e["eval_loss"] for e in t.state.log_history if "eval_loss" in e]
              for t in (plain, watched)]  # fmt: skip
    assert losses[0] == losses[1]
    assert [report.epoch for report in watched.efficiency.history] == [0, 1, 2, 3]
    assert [report.step for report in watched.efficiency.history] == [3, 6, 9, 12]
    assert [report.aiq for report in watched.efficiency.history] == [e["eval_aiq"] for e in logged]
    # The best weights are loaded again: the report of their epoch is theirs.
    best = watched.efficiency.history[[e["eval_aiq"] for e in logged].index(
        watched.state.best_metric)]  # fmt: skip
    assert best.efficiency == alone(watched.model, texts()).efficiency
    saved = json.loads(next((tmp_path / "watched").glob("*/trainer_state.json")).read_text())
    assert any("eval_efficiency" in entry for entry in saved["log_history"])
    assert written(tmp_path / "watched") >= {"eval/aiq", "eval/efficiency"}


def written(folder: Path) -> set[str]:
    """Return the tags of the TensorBoard runs in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags: set[str] = set()
    for events in folder.rglob("events.out.*"):
        read = EventAccumulator(str(events.parent))
        read.Reload()
        tags |= {*read.Tags()["scalars"]}
    return tags


def test_early_stopping_stops_on_aiq(tmp_path: Path) -> None:
    seen = Stopping()
    its = trainer(
        classifier(),
        texts(),
        folder=str(tmp_path),
        options={
            **{"num_train_epochs": 20, "eval_strategy": "epoch", "save_strategy": "epoch"},
            **{"metric_for_best_model": "eval_aiq", "load_best_model_at_end": True},
            # Nothing is learned, so nothing gets better.
            **{"learning_rate": 0.0, "greater_is_better": True, "save_only_model": True},
        },
        callbacks=[seen, hf.EarlyStoppingCallback(early_stopping_patience=2)],
    )
    its.train()
    assert its.state.epoch == 3
    assert seen.seen == [report.aiq for report in its.efficiency.history]
    assert len(set(seen.seen)) == 1


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray)


def test_what_is_generated_is_not_counted(tmp_path: Path) -> None:
    samples = [
        {"input_ids": each["input_ids"], "labels": each["input_ids"].flip(0)}
        for each in texts().samples
    ]
    found = []
    for generates in (False, True):
        its = trainer(
            t5(),
            Samples(samples),
            kind=EfficiencySeq2SeqTrainer,
            metrics=lambda made: {
                "accuracy": 0.5,
                "texts": isinstance(made.predictions, np.ndarray),
            },
            folder=str(tmp_path),
            options={
                **{"kind": hf.Seq2SeqTrainingArguments, "predict_with_generate": generates},
                **{"generation_max_length": 5, "eval_do_concat_batches": True},
            },
        )
        metrics = its.evaluate()
        assert metrics["eval_texts"] == generates
        found.append(figures(metrics))
        assert untouched(its)
    assert found[0] == found[1]
    # Tokens of the source, and of the target, which is as long.
    assert {layer.n_states for layer in its.efficiency.last.layers.values()} == {49}


class Failing(hf.BertForSequenceClassification):
    fails = False

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        if self.fails:
            raise ZeroDivisionError("in the model")
        return super().forward(input_ids, attention_mask, labels=labels)


def test_errors_leave_nothing_behind() -> None:
    torch.manual_seed(0)
    model = Failing(classifier().config).double()
    its = trainer(model, texts())
    model.fails = True
    with pytest.raises(ZeroDivisionError):
        its.evaluate()
    assert untouched(its)
    model.fails = False
    assert its.evaluate()["eval_efficiency"] == alone(model, texts()).efficiency
    its.efficiency.attach_to = "Conv2d"
    with pytest.raises(NoLayerMatchedError, match="Linear"):
        its.evaluate()
    its.efficiency.attach_to, its.efficiency.mask = None, "padding"
    with pytest.raises(ProbeError, match=r"the batch has no such key \(input_ids, attention_mask"):
        its.evaluate()
    assert untouched(its)
    its.efficiency.mask, its.efficiency.accuracy = "attention_mask", "eval_accuracy"
    assert its.evaluate()["eval_aiq"] == its.efficiency.last.aiq


def test_a_step_of_ones_own_and_a_callable_are_taken() -> None:
    class Own(EfficiencyTrainer):
        def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad():
                output = model(**inputs)
            return output.loss, output.logits, inputs["labels"]

    efficiency = {"accuracy": lambda metrics: 1 - metrics["eval_accuracy"], "prefix": "x_"}
    its = trainer(classifier(), texts(), kind=Own, efficiency=efficiency)
    metrics = its.evaluate()
    expected = alone(its.model, texts()).efficiency
    assert metrics["eval_x_efficiency"] == expected
    wrong = 1 - metrics["eval_accuracy"]
    assert metrics["eval_x_aiq"] == pytest.approx((expected * wrong**2) ** (1 / 3))


def test_mistakes_are_told_of_as_the_trainer_is_made() -> None:
    with pytest.raises(TypeError, match="put EfficiencyTrainerMixin before the Trainer"):
        type("Wrong", (hf.Trainer, EfficiencyTrainerMixin), {})
    with pytest.raises(TypeError, match="has no evaluation_loop to watch"):
        EfficiencyTrainerMixin()
    with pytest.raises(ValueError, match="group_size must be a whole number"):
        trainer(classifier(), texts(), efficiency={"group_size": 0})
    with pytest.raises(TypeError, match="every_n_epochs"):
        trainer(classifier(), texts(), efficiency={"every_n_epochs": 2})


def test_recording_is_copied_with_its_history() -> None:
    its = trainer(classifier(), texts(), efficiency=EvaluationRecording(group_size=3))
    its.evaluate()
    for clone in (copy.deepcopy(its.efficiency), pickle.loads(pickle.dumps(its.efficiency))):  # noqa: S301
        assert clone.group_size == 3
        assert clone.last.efficiency == its.efficiency.last.efficiency


def test_two_processes_give_what_one_gives() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        expected = evaluations()
    assert ours(caught) == []
    assert expected["bert"]["eval_aiq"] > 0
    for found in run("hugging_face", 2):
        assert found["told"] == []
        assert found["figures"] == expected


def test_probe_data_is_followed_from_the_beginning_and_changes_nothing() -> None:
    keep = torch.ones(5, 6, dtype=torch.long)
    keep[1, 3:] = 0
    probe = {"input_ids": torch.arange(5, 35).reshape(5, 6), "attention_mask": keep}
    weights, lasts = [], []
    for probe_data in (None, probe):
        training = trainer(
            classifier(hidden_dropout_prob=0.3),
            texts(),
            options={"num_train_epochs": 2, "eval_strategy": "epoch", "learning_rate": 0.01},
            efficiency={"probe_data": probe_data, "layer_metrics": bool(probe_data) and METRICS},
        )
        training.train()
        weights.append([each.clone() for each in training.model.state_dict().values()])
        lasts.append({name: layer.probe for name, layer in training.efficiency.last.layers.items()})
    assert all(map(torch.equal, *weights))
    assert {*lasts[0].values()} == {None}
    first, second = training.efficiency.history
    # From the beginning to the first evaluation, and from there to the second.
    name = next(iter(lasts[1]))
    assert first.layers[name].probe.since_previous == first.layers[name].probe.since_first > 0
    assert 0 < second.layers[name].probe.since_first != second.layers[name].probe.since_previous
    metrics = training.evaluate()
    assert {v for k, v in metrics.items() if k.startswith("eval_turnover/")} == {0.0}
    # Padding doesn't count: of 5 x 6 tokens 27 do.
    states = training.efficiency._probe.series._layers[name].first
    assert len(states.rows) == 27
    assert untouched(training)


METRICS = ["turnover"]
