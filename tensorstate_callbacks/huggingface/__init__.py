"""Hugging Face: a mixin for the Trainer that follows efficiency and aIQ over its evaluations."""

from tensorstate_callbacks.errors import require

require("torch", extra="huggingface", purpose="tensorstate_callbacks.huggingface")

from tensorstate_callbacks.huggingface.recording import EvaluationRecording  # noqa: E402
from tensorstate_callbacks.huggingface.trainer_mixin import EfficiencyTrainerMixin  # noqa: E402

__all__ = ["EfficiencyTrainerMixin", "EvaluationRecording"]
