"""The README's and the home page's code runs as it stands there, and links lead somewhere."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
INDEX = (ROOT / "docs/index.md").read_text(encoding="utf-8")
HOME = [
    textwrap.dedent(text) for text in re.findall(r"    ```python\n(.*?)    ```", INDEX, re.DOTALL)
]


def block(word):
    (found,) = [text for text in BLOCKS if word in text]
    return found.replace("epochs=50", "epochs=2")


def test_keras_code(capsys, rng):
    import keras

    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(4, name="dense"),
            keras.layers.Dense(2, activation="softmax", name="output"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = rng.normal(size=(40, 6)), np.arange(40) % 2
    names = {"model": model, "x": x, "y": y, "x_val": x, "y_val": y}
    exec(block("model.fit"), names)  # noqa: S102
    assert names["efficiency"].last.layers["dense"].n_states == 40
    assert names["efficiency"].last.table() in capsys.readouterr().out
    assert names["stop"].monitor == "val_aiq"
    assert names["stop"].best == max(report.aiq for report in names["efficiency"].history)


@pytest.mark.filterwarnings("ignore::Warning")
def test_lightning_code(tmp_path, monkeypatch, capsys, rng):
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
    efficiency = names["trainer"].callbacks[0]
    assert efficiency.last.layers["net.0"].n_states == 40 * 16
    assert efficiency.last.aiq == pytest.approx(float(names["trainer"].callback_metrics["val_aiq"]))
    assert f"{efficiency.last.aiq:.3f}" in capsys.readouterr().out


def test_each_framework_takes_six_lines():
    for text in BLOCKS:
        assert len([line for line in text.splitlines() if line]) == 6


def test_the_home_page_shows_the_same_code_and_two_more_frameworks():
    assert HOME[:2] == BLOCKS
    assert len(HOME) == 4


def test_pytorch_code_of_the_home_page(capsys):
    import torch

    model, x = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 2)), torch.randn(40, 6)
    names = {"model": model, "validate": lambda model: float(model(x).detach().mean() ** 2)}
    exec(HOME[2], names)  # noqa: S102
    report = names["recording"].report(accuracy=names["accuracy"])
    assert report.table() in capsys.readouterr().out
    assert report.layers["0"].n_states == 40


def test_hugging_face_code_of_the_home_page(tmp_path, capsys):
    from huggingface_runs import arguments, images, share_right, vision

    names = {"model": vision(), "accuracy": share_right, "test": images()}
    exec(HOME[3], names | {"arguments": arguments(tmp_path)})  # noqa: S102
    printed = capsys.readouterr().out.split()
    assert 0 < float(printed[-1]) < 1


@pytest.mark.parametrize(
    ("row", "part", "case"),
    [
        ("LeNet-5, whole layers, PyTorch", "validation-torch", "LeNet-5, torch.record"),
        ("LeNet-5, whole layers, Lightning", "validation-torch", "LeNet-5, Lightning"),
        ("LeNet-5, whole layers, Keras", "validation-keras", "LeNet-5, processor time"),
        (
            "ResNet-50, `group_size=8",
            "scale",
            "ResNet-50, groups of 8 at 64 positions, 1 thread, pr",
        ),
        ("ResNet-50, whole layers", "scale", "ResNet-50, layers at all positions, 1 thread, proc"),
    ],
)
def test_costs_are_those_that_were_measured(row, part, case):
    results = (ROOT / "benchmarks/RESULTS.md").read_text(encoding="utf-8").splitlines()
    measured = [[cell.strip() for cell in line.split("|")] for line in results if "|" in line]
    (found,) = [cells for cells in measured if cells[1] == part and cells[2].startswith(case)]
    (told,) = [line.split("|") for line in README.splitlines() if line.startswith(f"| {row}")]
    assert told[2].strip()[:4] == f"{float(found[6]):.2f}"
    target, verdict = found[7].removeprefix("≤ "), found[8].partition(";")[0]
    assert told[3].strip() == (f"{target}, {verdict}" if target else "")


def test_links_are_absolute_and_lead_to_files_and_pages():
    tomllib = pytest.importorskip("tomllib", reason="tomllib comes with Python 3.11")
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    site, repository = urls["Documentation"], urls["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com") + "/main/"
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 20
    for link in links:
        assert link.startswith("https://"), link
        path = link.removeprefix(site).rstrip("/")
        if link == site:
            assert (ROOT / "docs/index.md").is_file()
        elif link.startswith(site):
            pages = [ROOT / f"docs/{path}.md", ROOT / f"docs/{path}/index.md"]
            assert any(page.is_file() for page in pages), link
        elif link.startswith(raw):
            assert (ROOT / link.removeprefix(raw)).is_file(), link
        elif link.startswith(repository):
            path = link.removeprefix(repository).removeprefix("/blob/main/")
            path = path.replace("/actions/workflows/", ".github/workflows/")
            assert (ROOT / path.removesuffix("/badge.svg")).is_file(), link
