"""The snippets of docs/how_to/integrations.md run as they stand there, and give what they say."""

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_models import NAMESPACE, QUIET, TRAIN, VAL, Classifier, loader, pl, trainer
from ray_local import local_ray
from torch import nn

import tensorstate_callbacks
from tensorstate_callbacks.huggingface import EfficiencyTrainerMixin
from tensorstate_callbacks.torch import record

PAGE = (Path(__file__).parent.parent / "docs" / "how_to" / "integrations.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in QUIET),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(currentThread|getName).*deprecated:DeprecationWarning"),
]


def run(section: str, **names: Any) -> dict[str, Any]:
    """Run the section's snippet with what it takes for granted; return all its names."""
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[section], re.DOTALL)
    names |= {"tensorstate_callbacks": tensorstate_callbacks}
    exec(code, names)  # noqa: S102
    return names


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))


def accuracy_of(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model(VAL.tensors[0]).argmax(1) == VAL.tensors[1]).float().mean())


def aiq_by_numpy(model: nn.Module, names: tuple[str, ...] = ("0", "2")) -> float:
    """aIQ of the layers on the validation data, from the states that NumPy counts."""
    x, efficiencies = VAL.tensors[0], []
    with torch.no_grad():
        for name, layer in model.named_children():
            x = layer(x)
            if name in names:
                # By hand, of what the layer gives before anything rewrites it.
                rows = np.packbits(x.numpy() > 0, axis=1)
                shares = np.unique(rows, axis=0, return_counts=True)[1] / len(rows)
                efficiencies.append(-(shares * np.log2(shares)).sum() / x.shape[1])
    efficiency = float(np.exp(np.log(efficiencies).mean()))
    return float((efficiency * accuracy_of(model) ** 2) ** (1 / 3))


def lightning_names() -> dict[str, Any]:
    def quiet(**options: Any) -> Any:
        callbacks = options.pop("callbacks")
        return trainer(*callbacks, **options)

    loaders = {"train_loader": loader(TRAIN), "val_loader": loader(VAL)}
    return {"model": Classifier(), "Trainer": quiet, **loaders}


def keras_names() -> dict[str, Any]:
    keras = pytest.importorskip("keras", reason="keras isn't installed")
    from keras_models import X_VAL, Y_VAL, X, Y, compiled, sequential

    keras.utils.set_random_seed(5)
    names = {"x": X[:64], "y": Y[:64], "x_val": X_VAL, "y_val": Y_VAL}
    return {"keras": keras, "model": compiled(sequential()), **names}


def build(hp: Any) -> Any:
    from keras_models import compiled, sequential

    hp.Choice("any", [1, 2])
    return compiled(sequential())


def test_every_section_is_in_the_table_or_tested() -> None:
    tested = set(re.findall(r'run\(\s*"(.*?)"', Path(__file__).read_text()))
    assert set(SECTIONS) - tested == {
        "Optuna with Lightning",  # tests/test_optuna.py
        "LightningCLI",  # tests/test_lightning_cli.py
        "TensorBoard and MLflow",
    }


def test_keras() -> None:
    names = run("Keras", **keras_names())
    assert names["best"] == max(report.aiq for report in names["efficiency"].history)


def test_keras_tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = pytest.importorskip("keras_tuner", reason="keras-tuner isn't installed")
    monkeypatch.chdir(tmp_path)
    names = run("KerasTuner", keras_tuner=tuner, build=build, **keras_names())
    assert 0 < names["best"] < 1


def test_optuna_with_keras() -> None:
    optuna = pytest.importorskip("optuna", reason="optuna isn't installed")
    why = "optuna-integration isn't installed"
    integration = pytest.importorskip("optuna_integration", reason=why)
    names = run("Optuna with Keras", optuna=optuna, optuna_integration=integration, **keras_names())
    (trial,) = names["study"].trials
    assert list(trial.intermediate_values) == [0, 1, 2]
    assert trial.value == trial.intermediate_values[2]


def test_ray_train(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="ray isn't installed")
    given = keras_names()
    with local_ray(tmp_path) as options:
        names = run("Ray Train", ray=ray, **given, **options)
    logs = given["model"].evaluate(given["x_val"], given["y_val"], verbose=0, return_dict=True)
    assert names["result"].metrics["val_accuracy"] == pytest.approx(logs["accuracy"])
    assert 0 < names["aiq"] < 1


def test_lightning() -> None:
    stop = pl.callbacks.EarlyStopping
    names = run("Lightning", EarlyStopping=stop, **lightning_names())
    assert float(names["aiq"]) == pytest.approx(names["efficiency"].last.aiq, rel=1e-6)
    assert names["efficiency"].last.aiq == pytest.approx(aiq_by_numpy(names["model"].net))


def test_fabric() -> None:
    name = {"pytorch_lightning": "lightning_fabric"}.get(NAMESPACE, "lightning.fabric")
    fabric = pytest.importorskip(name).Fabric(accelerator="cpu", devices=1)
    model = net()
    names = run("Lightning Fabric", fabric=fabric, model=model, validate=accuracy_of)
    assert list(names["report"].layers) == ["0", "2", "4"]


def test_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate isn't installed")
    from torchmetrics.classification import MulticlassAccuracy

    model = net()
    names = run(
        "Accelerate",
        accelerator=accelerate.Accelerator(cpu=True),
        **{"model": model, "torch": torch, "val_loader": loader(VAL)},
        accuracy=MulticlassAccuracy(3, average="micro"),
    )
    # Of the process, for whoever makes an Accelerator next.
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    assert names["report"].aiq == pytest.approx(aiq_by_numpy(model))


def test_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = pytest.importorskip("transformers", reason="transformers isn't installed")
    monkeypatch.chdir(tmp_path)
    import huggingface_runs as runs

    def arguments(folder: str, **options: Any) -> Any:
        return runs.arguments(folder, **options)

    names = run(
        "Hugging Face Trainer",
        **{"EfficiencyTrainerMixin": EfficiencyTrainerMixin, "Trainer": hf.Trainer},
        **{"TrainingArguments": arguments, "EarlyStoppingCallback": hf.EarlyStoppingCallback},
        **{"model": runs.classifier(), "data_collator": runs.collate},
        **{"train_dataset": runs.texts(), "eval_dataset": runs.texts()},
        compute_accuracy=runs.share_right,
    )
    history = names["trainer"].efficiency.history
    assert names["best"] == max(report.aiq for report in history)
    assert {layer.group_size for layer in history[-1].layers.values()} == {8}


def test_ignite() -> None:
    engine = pytest.importorskip("ignite.engine", reason="pytorch-ignite isn't installed")
    from ignite.handlers import EarlyStopping
    from ignite.metrics import Accuracy

    model, loss = net(), nn.functional.cross_entropy
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    names = run(
        "PyTorch-Ignite",
        **{"model": model, "Events": engine.Events, "EarlyStopping": EarlyStopping},
        trainer=engine.create_supervised_trainer(model, optimizer, loss),
        evaluator=engine.create_supervised_evaluator(model, {"accuracy": Accuracy()}),
        **{"train_loader": loader(TRAIN), "val_loader": loader(VAL)},
    )
    found = names["evaluator"].state.metrics
    assert found["val_aiq"] == pytest.approx(aiq_by_numpy(model))
    assert names["stop"].best_score >= found["val_aiq"]
    assert not any(module._forward_hooks for module in model.modules())


def test_fastai() -> None:
    basics = pytest.importorskip("fastai.basics", reason="fastai isn't installed")
    tracker = pytest.importorskip("fastai.callback.tracker")
    data = [basics.DataLoader(each, bs=16, num_workers=0) for each in (TRAIN, VAL)]
    taken = ("Callback", "ValueMetric", "Learner", "CrossEntropyLossFlat", "accuracy")
    model = net()
    names = run(
        "fastai",
        **{name: getattr(basics, name) for name in taken},
        EarlyStoppingCallback=tracker.EarlyStoppingCallback,
        **{"contextlib": contextlib, "np": np, "record": record, "model": model},
        dls=basics.DataLoaders(*data),
    )
    columns = list(names["learn"].recorder.metric_names)
    value = names["learn"].recorder.values[-1][columns.index("val_aiq") - 1]
    assert value == pytest.approx(aiq_by_numpy(model))
    assert not any(module._forward_hooks for module in model.modules())


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb isn't installed")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    given = keras_names()
    from wandb.integration.keras import WandbMetricsLogger

    try:
        names = run("Weights & Biases", wandb=wandb, WandbMetricsLogger=WandbMetricsLogger, **given)
    finally:
        wandb.finish()
    assert names["aiq"] == names["callbacks"][0].last.aiq


def test_plain_loop() -> None:
    model = net()
    names = run("A PyTorch loop", model=model, validate=accuracy_of)
    assert names["report"].accuracy == accuracy_of(model)
    assert list(names["report"].layers) == ["0", "2", "4"]
