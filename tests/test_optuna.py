"""Optuna prunes a fit of Lightning by the callback's keys, under both of Lightning's names."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="optuna isn't installed")
pytest.importorskip("optuna_integration", reason="optuna-integration isn't installed")

# Where the Makefile puts `lightning`, which Optuna's callback needs under either name.
APART = Path(sys.prefix, "apart")
needs_lightning = pytest.mark.skipif(
    not (find_spec("lightning") or (APART / "lightning").is_dir()),
    reason="the package lightning isn't installed",
)

# In a process of its own: where both names are imported, they are for all that follows.
SCRIPT = """
import json, sys
from importlib import import_module

namespace, module, *bounds = sys.argv[1:]
import_module(namespace)
import optuna
import test_integrations_page as page
from optuna_integration.pytorch_lightning import PyTorchLightningPruningCallback

made = []

def callback():
    made.append(import_module(module).EfficiencyCallback())
    return made[-1]

create_study, found = optuna.create_study, []
for bound in map(float, bounds):
    pruner = optuna.pruners.ThresholdPruner(lower=bound)
    optuna.create_study = lambda **options: create_study(pruner=pruner, **options)
    names = page.run(
        "Optuna with Lightning",
        EfficiencyCallback=callback,
        PyTorchLightningPruningCallback=PyTorchLightningPruningCallback,
        optuna=optuna,
        **page.lightning_names(),
    )
    (trial,) = names["study"].trials
    history = [report.aiq for report in made[-1].history]
    told = list(trial.intermediate_values.values())
    found.append({"state": trial.state.name, "told": told, "history": history})
print(json.dumps(found))
"""


@needs_lightning
@pytest.mark.parametrize(
    ("namespace", "module"),
    [
        ("pytorch_lightning", "pytorch_lightning_callback"),
        ("lightning.pytorch", "lightning_callback"),
    ],
)
def test_trial_ends_where_the_pruner_says(namespace: str, module: str) -> None:
    if not find_spec(namespace.partition(".")[0]) and namespace == "pytorch_lightning":
        pytest.skip("pytorch_lightning isn't installed")
    paths = [os.environ.get("PYTHONPATH", ""), str(Path(__file__).parent), str(APART)]
    module = f"tensorstate_callbacks.lightning.{module}"
    # No aIQ reaches 2, and every one is above 0.
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, namespace, module, "2", "0"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "TENSORSTATE_TEST_LIGHTNING": namespace,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [each["state"] for each in found] == ["PRUNED", "COMPLETE"]
    assert [len(each["history"]) for each in found] == [1, 2]
    for each in found:
        assert each["told"] == pytest.approx(each["history"], rel=1e-6)
