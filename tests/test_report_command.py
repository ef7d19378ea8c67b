"""`python -m tensorstate_callbacks report` on runs that were really trained."""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest

from tensorstate_callbacks.__main__ import main
from tensorstate_callbacks.display.view import best_evaluation


def run_here(*words, folder):
    """Run the command in a folder, in this process, and return what it did."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(errors),
    ):
        patch.chdir(folder)
        code = main(["report", *map(str, words)])
    return subprocess.CompletedProcess(words, code, out.getvalue(), errors.getvalue())


def run_alone(*words, folder):
    """Run the command in a folder as users do, and return what it did."""
    return subprocess.run(
        [sys.executable, "-m", "tensorstate_callbacks", "report", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )


def printed(done, *, n_epochs):
    """Return the numbers of the table of epochs, one row each, and what comes after it."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("epoch  "))
    rows = [[float(cell) for cell in line.split()] for line in lines[start + 1 :][:n_epochs]]
    return np.array(rows), lines[start + 1 + n_epochs :]


def check(done, history):
    """Compare the table, the best epoch and its layers with the callback's history."""
    rows, rest = printed(done, n_epochs=len(history))
    expected = [
        [i, one.accuracy, one.efficiency, one.aiq, *(x.efficiency for x in one.layers.values())]
        for i, one in enumerate(history, start=1)
    ]
    # Event files hold 32 bits, tables four digits.
    np.testing.assert_allclose(rows, expected, atol=6e-5)
    best = best_evaluation(history)
    assert rest[0] == f"best aIQ {history[best].aiq:.4f} in epoch {best + 1}"
    headings = [line for line in rest if line.startswith("epoch ")]
    if best + 1 == len(history):
        assert headings == [f"epoch {best + 1} (best aIQ and last)"]
    else:
        assert headings == [f"epoch {best + 1} (best aIQ)", f"epoch {len(history)} (last)"]
    return rest


def keras_fit(callbacks, epochs=3):
    import keras

    import tensorstate_callbacks

    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(60, 6)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    layers = [
        keras.layers.Dense(7, "relu", name="first"),
        keras.layers.Dense(5, "relu", name="second"),
    ]
    model = keras.Sequential([keras.Input((6,)), *layers, keras.layers.Dense(2, name="out")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5), loss, metrics=["accuracy"])
    efficiency = tensorstate_callbacks.keras.EfficiencyCallback()
    model.fit(
        x,
        y,
        validation_data=(x[:37], y[:37]),
        epochs=epochs,
        verbose=0,
        callbacks=[efficiency, *callbacks],
    )
    return efficiency.history


@pytest.fixture(scope="module")
def keras_board(tmp_path_factory):
    import keras

    folder = tmp_path_factory.mktemp("keras")
    return folder, keras_fit([keras.callbacks.TensorBoard(folder / "logs" / "fit")])


def test_a_keras_run_of_tensorboard(keras_board):
    folder, history = keras_board
    done = run_alone("logs", folder=folder)
    check(done, history)
    assert done.stdout.startswith("run fit/validation of logs, keys epoch_aiq")
    # Nothing is written that wasn't asked for.
    assert "figure:" not in done.stdout
    assert [file.name for file in folder.iterdir()] == ["logs"]
    # TensorBoard loads TensorFlow, which may talk of itself.
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr.replace("round-off errors", "")


def test_figures_and_pages_go_where_they_are_sent(keras_board, tmp_path):
    folder, history = keras_board
    for name, start in (
        ("a.png", "\ufffdPNG"),
        ("a.svg", "<?xml"),
        ("a.pdf", "%PDF"),
        ("a.html", "<!DOCTYPE html>"),
    ):
        done = run_here(folder / "logs" / "fit", "--output", name, folder=tmp_path)
        check(done, history)
        assert (tmp_path / name).read_text(errors="replace").startswith(start)
        assert done.stdout.splitlines()[-1].endswith(f": {name}")


def test_the_page_of_a_finished_run_is_whole(keras_board, tmp_path):
    import html5lib

    folder, history = keras_board
    run_here(folder / "logs", "--output", "a.html", folder=tmp_path)
    parser = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False)
    page = parser.parse((tmp_path / "a.html").read_text())
    epochs = next(page.iter("table"))
    cells = [["".join(cell.itertext()).strip() for cell in row] for row in epochs.iter("tr")]
    assert cells[0] == ["epoch", "accuracy", "efficiency", "aIQ"]
    aiqs = [float(row[3]) for row in cells[1:]]
    np.testing.assert_allclose(aiqs, [one.aiq for one in history], atol=6e-5)
    assert len(list(page.iter("img"))) == 1


@pytest.mark.filterwarnings("ignore::Warning")
def test_a_lightning_run_of_tensorboard(tmp_path):
    from lightning_models import NAMESPACE, TRAIN, VAL, Classifier, Trainer, loader, pl

    import tensorstate_callbacks

    efficiency = tensorstate_callbacks.lightning.EfficiencyCallback()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        callbacks=[efficiency],
        logger=pl.loggers.TensorBoardLogger(tmp_path, name="logs", version="first"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    assert NAMESPACE
    trainer.fit(Classifier(), loader(TRAIN), loader(VAL))
    done = run_here("logs", folder=tmp_path)
    check(done, efficiency.history)
    assert "run first of logs, keys val_aiq" in done.stdout
    assert [file.name for file in tmp_path.iterdir()] == ["logs"]


@pytest.mark.filterwarnings("ignore::Warning")
def test_a_keras_run_of_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    monkeypatch.chdir(tmp_path)
    try:
        mlflow.create_experiment("tests", artifact_location=str(tmp_path / "artifacts"))
        mlflow.set_experiment("tests")
        with mlflow.start_run(run_name="my run") as run:
            history = keras_fit([mlflow.keras.MlflowCallback()])
    finally:
        mlflow.set_tracking_uri(before)
    (tmp_path / "elsewhere").mkdir()
    run_id, elsewhere = run.info.run_id, tmp_path / "elsewhere"
    words = ("--tracking-uri", uri, "--output", "run.png")
    done = run_alone(f"runs:/{run_id}", *words, folder=elsewhere)
    check(done, history)
    assert done.stdout.startswith(f"run my run ({run_id}) at {uri}, keys val_aiq")
    assert done.stdout.splitlines()[-1] == "figure: run.png"
    assert [file.name for file in elsewhere.iterdir()] == ["run.png"]
