"""Ray Train's reports hold what the callback measured, by plain keys."""

from pathlib import Path
from typing import Any

import pytest
from lightning_models import NAMESPACE, QUIET, Classifier, fit
from ray_local import local_ray

from tensorstate_callbacks.lightning import EfficiencyCallback

pytest.importorskip("ray", reason="ray isn't installed")

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in QUIET),
    pytest.mark.skipif(
        NAMESPACE != "pytorch_lightning", reason="where lightning is installed, Ray takes that"
    ),
]


@pytest.mark.parametrize("efficiency_first", [True, False])
def test_report_of_a_lightning_fit_has_the_last_aiq(tmp_path: Path, efficiency_first: bool) -> None:
    efficiency = EfficiencyCallback()

    def train(config: dict[str, Any]) -> None:
        from ray.train.lightning import RayTrainReportCallback

        callbacks = [efficiency, RayTrainReportCallback()]
        fit(Classifier(), *callbacks[:: 1 if efficiency_first else -1], max_epochs=2)

    with local_ray(tmp_path) as options:
        trainer = options["TorchTrainer"]
        config = {"scaling_config": options["scaling"], "run_config": options["run_config"]}
        result = trainer(train, **config).fit()
    expected = efficiency.history[1].scalars()
    assert len(expected) == 4
    assert {key: result.metrics[key] for key in expected} == pytest.approx(expected, rel=1e-6)
