"""Lightning and Hugging Face count the states of evaluations by class, as `torch.record` does."""

from typing import Any

import numpy as np
import pytest
import torch
from lightning_models import NAMESPACE, QUIET, TRAIN, VAL, Classifier, loader, trainer
from own_warnings import ours

from tensorstate_callbacks import LayerReport, ProbeError
from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.torch import record

pytestmark = [pytest.mark.filterwarnings(text) for text in QUIET]

X, Y = VAL.tensors


def expected(model: Classifier, labels: Any = Y, **options: Any) -> LayerReport:
    with record(model, "net.0", classes=True, **options) as recording, torch.no_grad():
        for batch, _ in recording.batches([(X, labels)]):
            model.net(batch)
    return recording.report().layers["net.0"]


@pytest.mark.parametrize(
    "classes", [True, lambda batch: batch[1], Y, Y.numpy()[:, None]], ids=lambda c: type(c).__name__
)
@pytest.mark.parametrize("size", [1, 16, 50])
def test_validation_is_counted_by_class(classes: Any, size: int) -> None:
    callback = EfficiencyCallback(
        "net.0",
        classes=classes,
        on=("val", "train"),
        every_n_train_steps=2,
        layer_metrics=["class_information", "efficiency"],
    )
    model = Classifier()
    fit = trainer(callback, max_epochs=2, num_sanity_val_steps=1)
    fit.fit(model, loader(TRAIN), loader(VAL, size))
    layer = callback.last.layers["net.0"]
    assert layer == expected(model)
    assert layer.classes is not None
    logged = fit.callback_metrics["val_class_information/net.0"]
    assert logged.item() == pytest.approx(layer.classes.information)
    # Training batches are not.
    assert callback.train_history[-1].layers["net.0"].classes is None
    assert "train_class_information/net.0" not in fit.callback_metrics
    assert len([report for report in callback.history if report.layers["net.0"].classes]) == 2


@pytest.mark.parametrize(("n_classes", "held"), [(20, 3), (25, 1)])
def test_history_holds_the_pairs_of_many_classes_once(n_classes: int, held: int) -> None:
    labels = np.arange(50) % n_classes
    callback = EfficiencyCallback("net.0", classes=labels, group_size=4)
    trainer(callback, max_epochs=3).fit(Classifier(), loader(TRAIN), loader(VAL))
    for reports in (callback.history, callback._trackers._history):
        found = [report.layers["net.0"].classes for report in reports]
        assert all(classes is not None and len(classes.entropy) == n_classes for classes in found)
        pairs = [classes.divergence for classes in found if classes is not None]
        assert len([each for each in pairs if each is not None]) == (held if reports else 0)
        if reports:
            assert pairs[-1] is not None
            assert pairs[-1].shape == (n_classes, n_classes)


def test_an_array_of_other_samples_is_told_of() -> None:
    callback = EfficiencyCallback("net.0", classes=np.arange(60) % 3)
    with pytest.warns(UserWarning, match="classes has 60 labels, and 50 samples came") as caught:
        trainer(callback).validate(Classifier(), loader(VAL), verbose=False)
    assert len([text for text in ours(caught) if "classes has" in text]) == 1


def test_a_mistake_shows_in_the_sanity_check() -> None:
    callback = EfficiencyCallback("net.0", classes="digit")
    fit = trainer(callback, num_sanity_val_steps=1)
    with pytest.raises(ProbeError, match="classes='digit': the batch has no such key"):
        fit.fit(Classifier(), loader(TRAIN), loader(VAL))
    assert callback.history == []


def test_arrays_are_refused_where_processes_share_the_samples() -> None:
    from tensorstate_callbacks.lightning.callback import _check_arrays

    _check_arrays(None, Y, 1)
    _check_arrays(None, True, 2)
    with pytest.raises(ValueError, match="classes is an array of all samples, of which each of"):
        _check_arrays(None, Y, 2)


@pytest.mark.skipif(NAMESPACE != "pytorch_lightning", reason="no part of Lightning")
class TestHuggingFace:
    """The Trainer's evaluations."""

    @pytest.fixture(autouse=True)
    def runs(self) -> None:
        pytest.importorskip("transformers", reason="transformers isn't installed")
        pytest.importorskip("accelerate", reason="accelerate isn't installed")

    @pytest.mark.parametrize("size", [1, 4, 11])
    @pytest.mark.parametrize("classes", [True, "labels"])
    def test_padded_texts_are_counted_by_class(self, size: int, classes: Any) -> None:
        from huggingface_runs import classifier, texts, trainer

        samples = texts().samples
        its = trainer(
            classifier(),
            texts(),
            efficiency={"classes": classes, "group_size": 4},
            options={"per_device_eval_batch_size": size},
        )
        its.evaluate()
        with (
            record(its.model.eval(), classes=True, group_size=4) as recording,
            torch.no_grad(),
        ):
            for sample in recording.batches(
                [{**s, "labels": torch.tensor([s["labels"]])} for s in samples]
            ):
                its.model(input_ids=sample["input_ids"][None])
        alone = recording.report().layers
        assert its.efficiency.last.layers == alone
        classes_found = [layer.classes for layer in alone.values()]
        assert all(found is not None and found.n_classes == 2 for found in classes_found)

    def test_labels_of_tokens_are_refused_by_name(self) -> None:
        from huggingface_runs import gpt2, language, texts, trainer

        efficiency = {"classes": True, "missing_accuracy": "ignore"}
        its = trainer(gpt2(), texts(), data_collator=language, metrics=None, efficiency=efficiency)
        with pytest.raises(ProbeError, match=r"labels of shape \(4, 7\).*of its tokens"):
            its.evaluate()
