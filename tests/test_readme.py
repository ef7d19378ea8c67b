"""The README's code runs as it stands there."""

import re
from pathlib import Path

import numpy as np
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def block(word):
    (found,) = [text for text in BLOCKS if word in text]
    return found.replace("epochs=50", "epochs=2")


def test_keras_code(tmp_path, monkeypatch, capsys, rng):
    import keras

    monkeypatch.chdir(tmp_path)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(4, name="dense"),
            keras.layers.Dense(2, activation="softmax", name="output"),
        ]
    )
    x, y = rng.normal(size=(40, 6)), np.arange(40) % 2
    names = {"model": model, "x": x, "y": y, "x_val": x, "y_val": y}
    exec(block("model.fit"), names)  # noqa: S102
    assert names["efficiency"].last.layers["dense"].n_states == 40
    assert names["efficiency"].last.table() in capsys.readouterr().out
    exec(block("history.table()"), names)  # noqa: S102
    history = names["efficiency"].history
    printed = capsys.readouterr().out
    assert history.table() in printed
    assert history[-1].table(full=True) in printed
    assert {"history.png", "states.png", "run.html", "run.json"} <= {
        x.name for x in tmp_path.iterdir()
    }


@pytest.mark.filterwarnings("ignore::Warning")
def test_lightning_and_torch_code(tmp_path, monkeypatch, capsys, rng):
    import torch
    from pytorch_lightning import LightningModule

    class Model(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(64, 2)
            )

        def training_step(self, batch, index):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, index):
            self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    monkeypatch.chdir(tmp_path)
    images = torch.from_numpy(rng.normal(size=(40, 1, 6, 6)).astype(np.float32))
    dataset = torch.utils.data.TensorDataset(images, torch.arange(40) % 2)
    loader = torch.utils.data.DataLoader(dataset, 20)
    names = {"model": Model(), "train_loader": loader, "val_loader": loader}
    exec(block("trainer.fit"), names)  # noqa: S102
    assert names["efficiency"].last.layers["net.0"].n_states == 40 * 16
    import tensorstate_callbacks

    names = {
        "model": names["model"],
        "tensorstate_callbacks": tensorstate_callbacks,
        "validate": lambda model: float(model.net(images).argmax(1).float().mean()),
    }
    exec(block("validate(model)"), names)  # noqa: S102
    assert names["recording"].report().layers["net.0"].n_states == 40 * 16
    assert names["recording"].report(accuracy=names["accuracy"]).table() in capsys.readouterr().out
    names |= {"torch": torch, "loader": loader}
    exec(block("recording.batches").replace("...", "model.net(x)"), names)  # noqa: S102
    assert names["report"].layers["net.0"].n_states == 40 * 16
    assert names["report"].accuracy == names["accuracy"]
