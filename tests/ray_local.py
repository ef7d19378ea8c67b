"""Ray Train in this process: one local worker, no cluster to wait for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def local_ray(folder: Path) -> Iterator[dict[str, Any]]:
    """Give a trainer, and what makes it train here, under names of docs/how_to/integrations.md."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray = pytest.importorskip("ray", reason="ray isn't installed")
        train = pytest.importorskip("ray.train", reason="ray[train] isn't installed")
        from ray.train.torch import TorchTrainer

        ray.init(num_cpus=1, include_dashboard=False, object_store_memory=10**8)
        try:
            yield {
                "TorchTrainer": TorchTrainer,
                "scaling": train.ScalingConfig(num_workers=0),
                "run_config": train.RunConfig(storage_path=str(folder), name="run"),
            }
        finally:
            ray.shutdown()
