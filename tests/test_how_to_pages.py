"""The snippets of the pages in docs/how_to that have no test of their own run as they stand."""

import re
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import tensorstate_callbacks
from tensorstate_callbacks import aIQ
from tensorstate_callbacks.__main__ import main
from tensorstate_callbacks.torch import own_samples, record

FOLDER = Path(__file__).parent.parent / "docs" / "how_to"


def page(name: str) -> str:
    return (FOLDER / f"{name}.md").read_text(encoding="utf-8")


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)


def block(name: str, words: str) -> str:
    (found,) = [code for code in blocks(name) if words in code]
    return found


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(code, names)  # noqa: S102
    return names


def data(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(7).normal(size=(n, 8, 8, 1)).astype(np.float32)
    return x, (x.mean((1, 2, 3)) > 0).astype(np.int64)


def numpy_efficiency(activations: np.ndarray) -> float:
    rows = np.packbits(activations > 0, axis=1)
    shares = np.unique(rows, axis=0, return_counts=True)[1] / len(rows)
    return float(-(shares * np.log2(shares)).sum() / activations.shape[1])


class TestLayers:
    """The page on the choice of layers."""

    def model(self) -> Any:
        torch.manual_seed(0)
        names = {"nn": nn, "OrderedDict": OrderedDict}
        return run(block("layers", "OrderedDict"), names)["model"].eval()

    def test_each_line_probes_what_stands_beside_it(self) -> None:
        model, images = self.model(), torch.randn(9, 1, 8, 8)
        lines = block("layers", '"Conv2d"').splitlines()
        assert len(lines) == 8
        for line in lines:
            code, names = line.split("  # ")
            recording = eval(code, {"record": record, "model": model, "nn": nn})  # noqa: S307
            with recording, torch.no_grad():
                model(images)
            assert list(recording.report().layers) == names.split(", "), line

    def test_a_sigmoid_is_read_before_it_or_above_a_half(self) -> None:
        names = {"record": record, "model": self.model(), "images": torch.randn(9, 1, 8, 8)}
        run(block("layers", "threshold=0.5"), names)
        always, inputs, half = (names[name].report() for name in ("always", "inputs", "half"))
        assert always.efficiency == 0
        with torch.no_grad():
            expected = numpy_efficiency(names["model"][:6](names["images"]).numpy())
        assert expected > 0
        assert inputs.layers["gate.input"].efficiency == pytest.approx(expected)
        assert half.layers["gate"].efficiency == pytest.approx(expected)

    @pytest.mark.filterwarnings(
        "ignore:which axis holds the neurons is not known of (heads|tokens)"
    )
    def test_axes_of_neurons(self) -> None:
        class Tokens(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.reshape(4, 3, 5)

        class Heads(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x.reshape(4, 3, 2, 5)[:, :, :, :4]

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.tokens, self.heads, self.fc = Tokens(), Heads(), nn.Linear(30, 6)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                self.heads(x)
                self.tokens(x[:, :15])
                out: torch.Tensor = self.fc(x)
                return out

        model, x = Net(), torch.randn(4, 30)
        found = []
        for line in block("layers", "channel_axis=-1").splitlines():
            recording = eval(line, {"record": record, "model": model})  # noqa: S307
            with recording, torch.no_grad():
                model(x)
            layers = recording.report().layers
            found.append({name: layer.n_neurons for name, layer in layers.items()})
        assert found[0] == {"tokens": 5}
        assert (found[1]["tokens"], found[1]["fc"]) == (3, 6)
        assert (found[2]["heads"], found[2]["fc"]) == (3, 6)
        assert found[3] == {"heads": 8}

    def test_another_output(self) -> None:
        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.lstm = nn.LSTM(3, 4, batch_first=True)

            def forward(self, x: torch.Tensor) -> Any:
                return self.lstm(x)

        torch.manual_seed(0)
        model, x = Net(), torch.randn(20, 6, 3)
        with eval(block("layers", "output_fn="), {"record": record, "model": model}) as recording:  # noqa: S307
            hidden = model(x)[1][0]
        layer = recording.report().layers["lstm"]
        assert (layer.n_neurons, layer.n_states) == (4, 20)
        assert layer.efficiency == pytest.approx(numpy_efficiency(hidden[0].detach().numpy()))


class TestProcesses:
    """The page on several processes; what they merge is tested where they are."""

    @pytest.mark.filterwarnings("ignore::Warning")
    def test_lightning(self) -> None:
        from lightning_models import TRAIN, VAL, Classifier, Trainer, loader
        from torchmetrics.classification import MulticlassAccuracy

        from tensorstate_callbacks.lightning import EfficiencyCallback

        names = {"Trainer": Trainer, "EfficiencyCallback": EfficiencyCallback}
        made = run(block("processes", 'strategy="ddp"'), names)["trainer"]
        assert made.num_devices == 2
        assert any(isinstance(each, EfficiencyCallback) for each in made.callbacks)

        step = run(block("processes", "own_samples"), {"own_samples": own_samples})

        class Watched(Classifier):
            def __init__(self) -> None:
                super().__init__("never")
                self.accuracy = MulticlassAccuracy(3, average="micro")

            validation_step = step["validation_step"]

        model, callback = Watched(), EfficiencyCallback("Linear")
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        fit = Trainer(max_epochs=1, accelerator="cpu", callbacks=[callback], **quiet)
        fit.fit(model, loader(TRAIN), loader(VAL))
        x, y = VAL.tensors
        with torch.no_grad():
            right = (model(x).argmax(1) == y).float().mean()
        assert callback.last.accuracy == pytest.approx(float(right))

    def test_the_samples_that_count_are_a_process_own(self) -> None:
        # Of 0, 1, 2, 3, 4 the second of two processes has 1, 3, and 0 once more.
        sampler = torch.utils.data.DistributedSampler(range(5), 2, 1, shuffle=False)
        dealt = torch.utils.data.DataLoader(range(5), 3, sampler=sampler)
        updates: list[tuple[list[int], list[int]]] = []

        class Module:
            trainer = SimpleNamespace(val_dataloaders=dealt)
            accuracy = SimpleNamespace(update=lambda s, y: updates.append((s.tolist(), y.tolist())))
            log = staticmethod(lambda *both: None)

            def __call__(self, x: torch.Tensor) -> torch.Tensor:
                return 10 * x

        step = run(block("processes", "own_samples"), {"own_samples": own_samples})
        for index, batch in enumerate(dealt):
            step["validation_step"](Module(), (batch, batch), index)
        assert updates == [([10, 30], [1, 3])]

    def test_keras(self) -> None:
        keras = pytest.importorskip("keras", reason="keras isn't installed")
        if keras.backend.backend() != "tensorflow":
            pytest.skip("MirroredStrategy is TensorFlow's")
        from tensorstate_callbacks.keras import EfficiencyCallback

        callback, (x, y) = EfficiencyCallback(), data()
        names = {"tf": import_module("tensorflow"), "build_model": keras_model}
        names |= {"x": x, "y": y, "x_val": x, "y_val": y, "EfficiencyCallback": lambda: callback}
        run(block("processes", "MirroredStrategy"), names)
        layer = callback.last.layers["dense"]
        model = names["model"]
        inner = model.layers[1](model.layers[0](x))
        expected = numpy_efficiency(np.asarray(model.layers[2](inner)))
        assert layer.efficiency == pytest.approx(expected)

    def test_a_loop(self) -> None:
        from torchmetrics.aggregation import MeanMetric

        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        x, y = torch.randn(37, 6), torch.arange(37) % 2
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 8)
        names = {"model": model, "loader": loader, "accuracy": MeanMetric(), "torch": torch}
        with torch.no_grad():
            found = run(block("processes", "recording.batches"), names | {"record": record})
            right = (model(x).argmax(1) == y).float().mean()
            expected = numpy_efficiency(model[0](x).numpy())
        report = found["report"]
        assert report.layers["0"].efficiency == pytest.approx(expected)
        assert report.accuracy == pytest.approx(float(right))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the snippet that writes for TensorBoard, and keep what it leaves."""
    keras = pytest.importorskip("keras", reason="keras isn't installed")
    from tensorstate_callbacks.keras import EfficiencyCallback

    folder = tmp_path_factory.mktemp("fitted")
    x, y = data()
    names = {"keras": keras, "EfficiencyCallback": EfficiencyCallback, "model": keras_model()}
    names |= {"x": x, "y": y, "x_val": x, "y_val": y, "folder": folder}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run(block("trackers", "keras.callbacks.TensorBoard("), names)


def keras_model() -> Any:
    import keras
    from keras import layers

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(6, 3, name="conv"),
            layers.Flatten(),
            layers.Dense(5, name="dense"),
            layers.Dense(2, activation="softmax", name="out"),
        ]
    )
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


class TestTrackers:
    """The page on TensorBoard and MLflow."""

    def test_tensorboard(self, fitted: dict[str, Any]) -> None:
        from board_folder import LAYERS, NETWORK, BoardFolder

        board = BoardFolder(fitted["folder"] / "runs" / "keras")
        history = fitted["efficiency"].history
        network = board.curves("Efficiency", NETWORK)
        assert network["validation", "epoch_aiq"] == pytest.approx([r.aiq for r in history])
        assert {tag for _, tag in network} == {"epoch_aiq", "epoch_efficiency", "epoch_accuracy"}
        layers = {tag for _, tag in board.curves("Efficiency", LAYERS)}
        assert layers == {"epoch_efficiency/conv", "epoch_efficiency/dense"}

    # What MLflow makes of the newest SQLAlchemy.
    @pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
    def test_mlflow(self, fitted: dict[str, Any], tmp_path: Path) -> None:
        mlflow = pytest.importorskip("mlflow", reason="mlflow isn't installed")
        from mlflow_store import curve, files, sqlite_store

        names = {**fitted, "mlflow": mlflow, "model": keras_model()}
        with sqlite_store(tmp_path) as client:
            run(block("trackers", "mlflow.start_run()"), names)
            run_id = names["run"].info.run_id
            stored = client.get_run(run_id)
            assert [step for step, _ in curve(client, run_id, "val_aiq")] == [0, 1, 2]
            assert len(curve(client, run_id, "val_accuracy")) == 3
            assert stored.data.params["efficiency.beta"] == "2"
            assert stored.data.params["efficiency.layers"] == "conv, dense"
            assert "efficiency.group_size" in stored.data.params
            assert {*files(client, run_id)} == {
                "efficiency/layers.json",
                "efficiency/history.png",
            }


class TestReports:
    """The page on reports."""

    def test_the_code_runs(
        self, fitted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.chdir(tmp_path)
        ours = {
            name: getattr(tensorstate_callbacks, name) for name in tensorstate_callbacks.__all__
        }
        names = {**ours, **fitted}
        for code in blocks("reports"):
            run(code, names)
        printed = capsys.readouterr().out
        report, history = names["report"], names["history"]
        for text in (report.table(), report.table(full=True), history.table(), *report.notes()):
            assert text in printed
        assert names["again"] == history
        assert names["best"].aiq == max(each.aiq for each in history)
        assert len(names["rows"]) == 6
        assert list(names["frame"]["name"]) == ["conv", "dense"] * 3
        pictures = {"history.png", "heat_map.png", "layers.png", "states.png"}
        assert {path.name for path in tmp_path.iterdir()} == {*pictures, "run.html", "run.json"}

    def test_the_command_line(
        self, fitted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        monkeypatch.chdir(fitted["folder"])
        (line,) = re.findall(
            r"^tensorstate-callbacks (report runs/keras .*)$", page("reports"), re.M
        )
        arguments = line.replace("run.html", str(tmp_path / "run.html")).split()
        assert main(arguments) == 0
        assert "val_aiq" not in capsys.readouterr().err
        assert (tmp_path / "run.html").stat().st_size > 10_000
        assert main(arguments[:2]) == 0
        shown = _shape(capsys.readouterr().out)
        (example,) = re.findall(r"```text\n(.*?)```", page("reports"), re.DOTALL)
        # This network has other layers, and one epoch that is both.
        shown.add("epoch N (best aIQ)")
        assert {row for row in _shape(example) if "conv" not in row} <= shown
        assert main([*arguments[:2], "--keys", "val_g8_"]) == 1


def _shape(text: str) -> set[str]:
    """Return lines without their numbers, and with as many columns as two layers have."""
    lines = (re.sub(r"[\d.]+", "N", line) for line in text.splitlines())
    return {" ".join(line.split()) for line in lines if not line.strip().startswith("N")}


class TestTensorState:
    """The pages for those who come from TensorState."""

    def test_a_script_for_0_4_and_the_callback(self, capsys: Any) -> None:
        pytest.importorskip("keras", reason="keras isn't installed")
        x, y = data()
        model = keras_model()
        names = {"model": model, "x": x, "y": y}
        run(block("from_tensorstate", "build_efficiency_model"), names)
        (layer,) = names["efficiency_model"].efficiency_layers
        assert (layer.name, layer.state_count) == ("conv_post_states", 40 * 36)
        activations = np.asarray(model.layers[0](x)).reshape(-1, 6)
        expected = numpy_efficiency(activations)
        assert names["network_efficiency"] == pytest.approx(expected)
        accuracy = float((model.predict(x, verbose=0).argmax(1) == y).mean())
        assert names["aiq"] == pytest.approx(aIQ(expected, accuracy, 2), rel=1e-6)
        assert "conv_post_states 1440" in capsys.readouterr().out
        efficiency = run(block("from_tensorstate", "EfficiencyCallback("), names)["efficiency"]
        assert list(efficiency.last.layers) == ["conv"]
        assert len(efficiency.history) == 2

    def test_a_script_for_0_6(self, capsys: Any) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 2))
        images = torch.randn(30, 1, 8, 8)

        def validate(model: nn.Module) -> float:
            with torch.no_grad():
                model(images)
            return 0.75

        names = {"model": model, "nn": nn, "validate": validate}
        report = run(block("from_tensorstate_06", "recording.report"), names)["report"]
        with torch.no_grad():
            activations = model[0](images).movedim(1, -1).reshape(-1, 6)
        expected = numpy_efficiency(activations.numpy())
        assert report.efficiency == pytest.approx(expected)
        assert report.aiq == pytest.approx(aIQ(expected, 0.75, 2))
        assert f"0 {report.efficiency}" in capsys.readouterr().out

    def test_numbers_by_batches(self) -> None:
        names = run(block("from_tensorstate_06", "def by_batch"), {})
        text = page("from_tensorstate_06")
        rows = dict(re.findall(r"^\| (?:TensorState 0.6, |)(.*?) \| ([\d.]+) \|$", text, re.M))
        expected = {
            "one batch of 8": names["by_batch"](8),
            "batches of 4": names["by_batch"](4),
            "batches of 1": names["by_batch"](1),
            "here, and in the paper: any batch size": names["ours"],
        }
        assert {name: rows[name] for name in expected} == {
            name: f"{value:.3f}" for name, value in expected.items()
        }
        assert names["ours"] == pytest.approx(1.75 / 3)
        # What 0.6 adds up of two batches of four, by hand: 101 and 010 twice, 110 and 000 once.
        assert expected["batches of 4"] == pytest.approx((np.log2(3) * 2 / 3 + np.log2(6) / 3) / 3)
