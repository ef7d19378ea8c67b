"""Watch the evaluations of Hugging Face's Trainer."""

from collections.abc import Mapping
from typing import Any

from tensorstate_callbacks.huggingface.recording import EvaluationRecording

_LOOP = "evaluation_loop"


class EfficiencyTrainerMixin:
    """Adds the network's efficiency and aIQ to the metrics of each evaluation and prediction.

    Put it before the Trainer among the base classes. `eval_aiq`, `eval_efficiency` and
    `eval_efficiency/<layer>` (`test_...` in `predict`) then stand beside the metrics of
    `compute_metrics`, for `metric_for_best_model`, `EarlyStoppingCallback` and every reporter. The
    accuracy is the one that `compute_metrics` returns.

    Padding is left out: the masks that the model is given apply by themselves, so the metrics don't
    depend on how batches are padded. States are counted of what the model runs in
    `prediction_step`, but not of what it generates. Several processes merge their states, and all
    get the metrics that one process would have of the data: samples that are repeated to fill up
    the last batch are left out.

    Args:
        *args: Arguments of the Trainer.
        efficiency: Arguments of `EvaluationRecording` as a mapping, such as `{"group_size": 8}`, or
            an `EvaluationRecording`. None takes the defaults.
        **kwargs: Arguments of the Trainer.

    Attributes:
        efficiency: The `EvaluationRecording`, with the arguments, `history` and `last`.

    Raises:
        TypeError: There is no Trainer behind the mixin, or an argument of `efficiency` is of the
            wrong kind.
        ValueError: An argument of `efficiency` is out of its range.

    Examples:
        ```python
        class EfficiencyTrainer(EfficiencyTrainerMixin, Trainer):
            pass


        trainer = EfficiencyTrainer(
            model,
            TrainingArguments("runs", eval_strategy="epoch", metric_for_best_model="eval_aiq"),
            train_dataset=train,
            eval_dataset=validation,
            compute_metrics=accuracy,
            efficiency={"group_size": 8},
        )
        trainer.train()
        print(trainer.efficiency.last.table())
        ```
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Check the order of the base classes."""
        super().__init_subclass__(**kwargs)
        behind = cls.__mro__[cls.__mro__.index(EfficiencyTrainerMixin) + 1 :]
        before = cls.__mro__[: cls.__mro__.index(EfficiencyTrainerMixin)]
        if any(_is_trainer(base) for base in before) and not any(map(_is_trainer, behind)):
            raise TypeError(
                f"{cls.__name__}: put EfficiencyTrainerMixin before the Trainer among the bases, "
                "class MyTrainer(EfficiencyTrainerMixin, Trainer), or nothing is watched"
            )

    def __init__(
        self,
        *args: Any,
        efficiency: "Mapping[str, Any] | EvaluationRecording | None" = None,
        **kwargs: Any,
    ) -> None:
        if not any(_is_trainer(base) for base in type(self).__mro__):
            raise TypeError(
                f"{type(self).__name__} has no evaluation_loop to watch: make a class of the mixin "
                "and a Trainer, class MyTrainer(EfficiencyTrainerMixin, Trainer)"
            )
        # First: with a mistake in it, no model is moved to a device.
        if not isinstance(efficiency, EvaluationRecording):
            efficiency = EvaluationRecording(**(efficiency or {}))
        self.efficiency = efficiency
        super().__init__(*args, **kwargs)
        if efficiency.probe_data is not None:
            _follow_from_the_beginning(self)

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **kwargs: Any,
    ) -> Any:
        """Run the Trainer's evaluation, and add efficiency and aIQ to its metrics.

        Args:
            dataloader: The Trainer's, as all the others.
            description: The Trainer's.
            prediction_loss_only: The Trainer's.
            ignore_keys: The Trainer's.
            metric_key_prefix: First part of the keys: `"eval"`, `"test"`.
            kwargs: The Trainer's.
        """
        return self.efficiency.watch(
            self,
            metric_key_prefix,
            lambda: super(EfficiencyTrainerMixin, self).evaluation_loop(  # type: ignore[misc]
                dataloader,
                description,
                prediction_loss_only,
                ignore_keys,
                metric_key_prefix,
                **kwargs,
            ),
        )


def _is_trainer(kind: type) -> bool:
    return kind is not EfficiencyTrainerMixin and _LOOP in vars(kind)


def _follow_from_the_beginning(trainer: Any) -> None:
    """Have probe data followed from the weights that a training begins with."""
    from transformers import TrainerCallback

    class BeginProbe(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            trainer.efficiency.begin_training(trainer)

    trainer.add_callback(BeginProbe())
