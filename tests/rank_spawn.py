"""`ddp_spawn` on two processes: what the callback has in each of them into files of a folder."""

import json
import sys
from pathlib import Path
from typing import Any

from lightning_models import loader, pl, trainer
from rank_models import ODD, ExactClassifier

from tensorstate_callbacks.lightning import EfficiencyCallback


class SpawnedClassifier(ExactClassifier):
    """Knows that it is one of two; its processes have no environment that says so."""

    shared = True


class Keep(pl.Callback):
    def __init__(self, watch: EfficiencyCallback, folder: str) -> None:
        self.watch, self.folder = watch, folder

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        report = self.watch.history[-1].to_dict()
        Path(self.folder, f"{trainer.global_rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    watch = EfficiencyCallback()
    keep = Keep(watch, sys.argv[1])
    spawning = trainer(watch, keep, strategy="ddp_spawn", devices=2)
    spawning.validate(SpawnedClassifier(), loader(ODD, 8), verbose=False)
    logged = {key: value.item() for key, value in spawning.callback_metrics.items()}
    Path(sys.argv[1], "logged.json").write_text(json.dumps(logged))
