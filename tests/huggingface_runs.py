"""Hugging Face's Trainer with the mixin on tiny models of random weights, and what it evaluates."""

import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import transformers as hf
from sweep_sequences import GPT2, SMALL, T5, VISION
from torch.utils.data import Dataset

from tensorstate_callbacks.huggingface import EfficiencyTrainerMixin

N_SAMPLES = 11
# Of each sample: how many tokens it has.
LENGTHS = [7, 2, 5, 1, 7, 3, 6, 4, 2, 7, 5]


class EfficiencyTrainer(EfficiencyTrainerMixin, hf.Trainer):
    pass


class EfficiencySeq2SeqTrainer(EfficiencyTrainerMixin, hf.Seq2SeqTrainer):
    pass


class Samples(Dataset[dict[str, Any]]):
    def __init__(self, samples: list[dict[str, Any]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return self.samples[at]


def texts(n: int = N_SAMPLES, seed: int = 7) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 50, (n, 7), generator=generator)
    lengths = LENGTHS * -(-n // len(LENGTHS))
    return Samples(
        [
            {"input_ids": row[:length], "labels": int(row[0] % 2)}
            for row, length in zip(ids, lengths, strict=False)
        ]
    )


def images(n: int = N_SAMPLES) -> Samples:
    pixels = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(3)).double()
    return Samples([{"pixel_values": each, "labels": at % 2} for at, each in enumerate(pixels)])


def padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pad to the longest of the batch, as Hugging Face's collators do."""
    if "pixel_values" in samples[0]:
        pixels = torch.stack([sample["pixel_values"] for sample in samples])
        return {"pixel_values": pixels, "labels": torch.tensor([s["labels"] for s in samples])}
    ids = [sample["input_ids"] for sample in samples]
    batch = {
        "input_ids": padded(ids, 0),
        "attention_mask": padded([torch.ones_like(row) for row in ids], 0),
    }
    if isinstance(samples[0]["labels"], torch.Tensor):
        batch["labels"] = padded([sample["labels"] for sample in samples], -100)
    else:
        batch["labels"] = torch.tensor([sample["labels"] for sample in samples])
    return batch


def language(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Texts that are their own labels."""
    return collate([{**sample, "labels": sample["input_ids"]} for sample in samples])


def classifier(name: str = "Bert", **options: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(hf, f"{name}Config")(**{**SMALL, **options})
    return getattr(hf, f"{name}ForSequenceClassification")(config).double()


def vision() -> Any:
    torch.manual_seed(0)
    config = hf.ViTConfig(**VISION, image_size=32, patch_size=8)
    return hf.ViTForImageClassification(config).double()


def gpt2() -> Any:
    torch.manual_seed(0)
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(**GPT2, bos_token_id=1, eos_token_id=1, pad_token_id=0)
    ).double()


def t5() -> Any:
    torch.manual_seed(0)
    options = {**T5, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}
    return hf.T5ForConditionalGeneration(hf.T5Config(**options)).double()


def share_right(prediction: Any) -> dict[str, float]:
    logits = prediction.predictions
    logits = logits[0] if isinstance(logits, tuple) else logits
    return {"accuracy": float(np.mean(np.argmax(logits, -1) == prediction.label_ids))}


def arguments(folder: str, kind: Any = hf.TrainingArguments, **options: Any) -> Any:
    given = {"per_device_eval_batch_size": 4, "per_device_train_batch_size": 4, "report_to": []}
    return kind(folder, use_cpu=True, disable_tqdm=True, **{**given, **options})


def trainer(
    model: Any,
    data: Samples,
    *,
    kind: Any = EfficiencyTrainer,
    metrics: Callable[[Any], dict[str, float]] | None = share_right,
    folder: str | None = None,
    options: Mapping[str, Any] | None = None,
    **given: Any,
) -> Any:
    args = arguments(folder or tempfile.mkdtemp(), **(options or {}))
    return kind(
        model=model,
        args=args,
        train_dataset=given.pop("train_dataset", data),
        eval_dataset=given.pop("eval_dataset", data),
        data_collator=given.pop("data_collator", collate),
        compute_metrics=metrics,
        **given,
    )


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Our part of an evaluation's metrics, and its accuracy."""
    return {k: v for k, v in metrics.items() if "aiq" in k or "effic" in k or "accuracy" in k}


def evaluations() -> dict[str, Any]:
    """Evaluate several models, in this process or in one of several."""
    found = {
        "bert": trainer(classifier(), texts()).evaluate(),
        "vit": trainer(vision(), images()).evaluate(),
        "gpt2": trainer(gpt2(), texts(), data_collator=language, metrics=None, efficiency=QUIET)
        .evaluate(),
        "groups": trainer(classifier(), texts(), efficiency={"group_size": 4, "positions": 2})
        .predict(texts()).metrics,
    }  # fmt: skip
    return {name: figures(metrics) for name, metrics in found.items()}


QUIET = {"missing_accuracy": "ignore"}
