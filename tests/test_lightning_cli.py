"""LightningCLI configures the callback by YAML, and a saved config gives the same report again."""

import copy
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning_models import NAMESPACE, QUIET, TRAIN, VAL, Classifier, loader, pl
from torch import nn

from tensorstate_callbacks import EfficiencyReport, NoLayerMatchedError
from tensorstate_callbacks.lightning import EfficiencyCallback
from tensorstate_callbacks.recording.callback import RecordingCallback
from tensorstate_callbacks.recording.channel_axis import ChannelAxis, check_channel_axis

pytest.importorskip("jsonargparse", reason="jsonargparse isn't installed")
pytest.importorskip("docstring_parser", reason="jsonargparse[signatures] isn't installed")
cli: Any = pytest.importorskip(f"{NAMESPACE}.cli")

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in QUIET),
    # As an error it would send jsonargparse on to the next type, which may do.
    pytest.mark.filterwarnings(r"default:\s*Unable to serialize"),
]


@pytest.fixture(autouse=True)
def no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["fit.py"])
    # Of what Lightning itself calls.
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


class Data(pl.LightningDataModule):  # type: ignore[misc]
    def train_dataloader(self) -> Any:
        return loader(TRAIN)

    def val_dataloader(self) -> Any:
        return loader(VAL)


def run(config: Path) -> tuple[EfficiencyReport, EfficiencyCallback]:
    made = cli.LightningCLI(
        Classifier,
        Data,
        args=["fit", "--config", str(config)],
        save_config_kwargs={"config_filename": "saved.yaml", "overwrite": True},
        seed_everything_default=3,
    )
    (callback,) = (c for c in made.trainer.callbacks if isinstance(c, EfficiencyCallback))
    return callback.history[-1], callback


def written(folder: Path, **arguments: Any) -> Path:
    quiet = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "default_root_dir": str(folder),
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    kind = f"{EfficiencyCallback.__module__}.EfficiencyCallback"
    callbacks = [{"class_path": kind, "init_args": arguments}]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"trainer": {**quiet, "callbacks": callbacks}}))
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"attach_to": ["Linear"]},
        {"attach_to": "Linear", "exclude": "net.4"},
        {"attach_to": ["net.*", "Linear"], "exclude": ["ReLU", "Tanh"]},
        {"attach_to": "net.0", "channel_axis": -1, "method": "both", "threshold": 0.25},
        {"attach_to": "net.0", "channel_axis": {"net.0": 1}, "layer_metrics": ["dead", "entropy"]},
        {"layer_metrics": False, "beta": 1, "alpha": 2.0, "prefix": "x_", "every_n_epochs": 1},
        {"on": ["val", "train"], "every_n_train_steps": 1, "window": 3},
        {"on": "val"},
        {"accuracy": "val_acc", "missing_accuracy": "raise", "log_extras": None},
        {"attach_to": ["Linear"], "group_size": 4, "positions": 3, "max_memory": 10_000_000},
        {"attach_to": "Linear", "channel_axis": {"net.0": 1, "Linear": [-1]}, "prefix": "g4_"},
        {"layer_metrics": True, "dataloader_idx": 0},
        {"neurons": True, "layer_metrics": ["effective_states"]},
        {"attach_to": "Linear", "classes": True, "layer_metrics": ["class_information"]},
        {"attach_to": "Linear", "classes": [at % 3 for at in range(50)]},
        {"attach_to": "Linear", "mask": [[True, False]]},
    ],
    ids=str,
)
def test_saved_config_runs_again_to_the_same_report(
    tmp_path: Path, arguments: dict[str, Any]
) -> None:
    first, callback = run(written(tmp_path, **arguments))
    saved = tmp_path / "saved.yaml"
    kept = yaml.safe_load(saved.read_text())["trainer"]["callbacks"][0]["init_args"]
    assert kept.items() >= arguments.items()
    again, replayed = run(saved)
    assert again == first
    assert replayed._settings == callback._settings
    assert replayed.channel_axis == callback.channel_axis
    # And a third time, from what the second saved.
    assert yaml.safe_load(saved.read_text())["trainer"]["callbacks"][0]["init_args"] == kept


@pytest.mark.skipif(NAMESPACE != "pytorch_lightning", reason="lightning is the page's other name")
def test_config_of_the_page_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "how_to" / "integrations.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    path = written(tmp_path)
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= yaml.safe_load(text)["trainer"]
    path.write_text(yaml.safe_dump(config))
    report, callback = run(path)
    assert list(report.layers) == ["net.0", "net.2", "net.4"]
    assert callback.group_size == report.layers["net.0"].group_size == 8


def test_signature_and_help_name_every_argument() -> None:
    shared = inspect.signature(RecordingCallback.__init__).parameters
    own = inspect.signature(EfficiencyCallback.__init__).parameters
    assert list(own) == [*shared, "output_fn", "dataloader_idx"]
    assert {name: own[name] for name in shared} == dict(shared)
    parser = cli.LightningArgumentParser()
    parser.add_class_arguments(EfficiencyCallback, "callback")
    text = " ".join(parser.format_help().split())
    assert "Weight of accuracy in aIQ, above 0. (type: float, default: 2)" in text
    assert "Record every n-th epoch's validation only. (type: int, default: 1)" in text
    assert "The dataloader to record, with its accuracy, where there are several." in text


def test_each_argument_is_kept_under_its_own_name() -> None:
    given = {
        **{"attach_to": "net.0", "exclude": "net.2", "method": "both", "beta": 3, "alpha": 4},
        **{"accuracy": "top1", "threshold": 0.5, "channel_axis": 1, "every_n_epochs": 6},
        **{"mask": "attention_mask", "neurons": True, "classes": True, "probe_data": [[1.0]]},
        **{"group_size": 8, "positions": 64, "max_memory": 10**9},
        **{"on": ("val", "train"), "every_n_train_steps": 9, "window": 5},
        **{"prefix": "x_", "layer_metrics": False, "missing_accuracy": "ignore"},
        **{"log_extras": None, "output_fn": lambda name, output: output, "dataloader_idx": 7},
    }
    callback = EfficiencyCallback(**given)
    assert {name: getattr(callback, name) for name in given} == given
    assert given.keys() == inspect.signature(EfficiencyCallback).parameters.keys()


class Folded:
    def __init__(self, channel_axis: ChannelAxis = None) -> None:
        self.channel_axis = check_channel_axis(channel_axis)


@pytest.mark.parametrize("axes", [-1, [-2, -1], {"net.0": [-2, -1], "Conv2d": 1}])
def test_axes_that_are_folded_into_one_are_kept(axes: Any) -> None:
    parser = cli.LightningArgumentParser()
    parser.add_class_arguments(Folded, "folded")
    config = parser.parse_object({"folded": {"channel_axis": copy.deepcopy(axes)}})
    saved = yaml.safe_load(parser.dump(config))
    assert saved["folded"]["channel_axis"] == axes
    replayed = parser.parse_object(copy.deepcopy(saved))
    again = parser.instantiate_classes(replayed).folded.channel_axis
    assert again == parser.instantiate_classes(config).folded.channel_axis


def test_config_that_names_no_layer_says_so(tmp_path: Path) -> None:
    with pytest.raises(NoLayerMatchedError, match="'Conv2d' matched no layer"):
        run(written(tmp_path, attach_to=["Conv2d"]))


def test_patterns_of_python_still_work() -> None:
    for attach_to in (nn.Linear, lambda name, _: name == "net.0", [nn.Linear, "net.*"]):
        assert EfficiencyCallback(attach_to).attach_to == attach_to
