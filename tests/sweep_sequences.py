"""Networks for text, sound and images of the sweep, from transformers, in tiny configurations."""

from collections.abc import Callable
from typing import Any

import torch
from sweep_images import images
from sweep_oracle import Inputs, Network
from torch import nn

# Numbers of tokens, and of samples of sound.
TOKENS, SOUND = (11, 17), (1200, 2000)
SMALL = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
}
VISION = {key: value for key, value in SMALL.items() if key != "vocab_size"}
LLAMA = {**SMALL, "num_key_value_heads": 1}
SPEECH = {
    **SMALL,
    "conv_dim": (10, 14),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
}


def ids(n: int, size: int) -> Inputs:
    generator = torch.Generator().manual_seed(n)
    return {"input_ids": torch.randint(3, 50, (n, size), generator=generator)}


def both_ids(n: int, size: int) -> Inputs:
    return {**ids(n, size), "decoder_input_ids": ids(n, size - 2)["input_ids"]}


def sound(n: int, size: int) -> Inputs:
    return (torch.randn(n, size, generator=torch.Generator().manual_seed(n)),)


def channel(n: int, size: int) -> Inputs:
    return (sound(n, size)[0][:, None],)


def spectrogram(n: int, size: int) -> Inputs:
    features = torch.randn(n, 16, 2 * size, generator=torch.Generator().manual_seed(n))
    return {"input_features": features, "decoder_input_ids": ids(n, 7)["input_ids"]}


def clip_inputs(n: int, size: int) -> Inputs:
    return {**ids(n, 9), "pixel_values": images(n, size)[0]}


def trajectory(n: int, size: int) -> Inputs:
    generator = torch.Generator().manual_seed(n)

    def normal(width: int) -> torch.Tensor:
        return torch.randn(n, size, width, generator=generator)

    return {
        "states": normal(5),
        "actions": normal(3),
        "rewards": normal(1),
        "returns_to_go": normal(1),
        "timesteps": torch.arange(size).repeat(n, 1),
        "attention_mask": torch.ones(n, size, dtype=torch.long),
    }


def transformers(name: str, sized: str = "", **options: Any) -> Callable[[int], nn.Module]:
    """How to build a network: the argument `sized` of its configuration is its images' size."""

    def build(size: int) -> nn.Module:
        import transformers as library

        torch.manual_seed(0)
        config = getattr(library, f"{name}Config")
        given = {**options, sized: size} if sized else options
        return getattr(library, f"{name}Model")(config(**given))

    return build


def text(name: str, inputs: Callable[[int, int], Inputs] = ids, **options: Any) -> Network:
    return Network(transformers(name, **{**SMALL, **options}), inputs, TOKENS)


def vision(name: str, sizes: tuple[int, int] = (32, 64), **options: Any) -> Network:
    return Network(
        transformers(name, **options), images, sizes, is_sized=bool(options.get("sized"))
    )


T5 = {
    "vocab_size": 50,
    "d_model": 24,
    "d_kv": 7,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 2,
}
BART = {
    "vocab_size": 50,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 36,
    "max_position_embeddings": 64,
}
GPT2 = {"vocab_size": 50, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64}

SEQUENCE_NETWORKS: dict[str, Network] = {
    "bert": text("Bert"),
    "bert eager": text("Bert", attn_implementation="eager"),
    "roberta": text("Roberta"),
    "distilbert": Network(
        transformers("DistilBert", vocab_size=50, dim=24, n_layers=2, n_heads=2, hidden_dim=40),
        ids,
        TOKENS,
    ),
    "albert": text("Albert", embedding_size=14),
    "electra": text("Electra", embedding_size=14),
    "mpnet": text("MPNet"),
    "fnet": text("FNet"),
    "deberta-v2": text(
        "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8
    ),
    "gpt2": Network(transformers("GPT2", **GPT2), ids, TOKENS),
    "gpt-neox": text("GPTNeoX"),
    "opt": text("OPT", ffn_dim=40, word_embed_proj_dim=24, max_position_embeddings=64),
    "bloom": text("Bloom", n_layer=2, n_head=2),
    "llama": text("Llama", **LLAMA),
    "qwen2": text("Qwen2", **LLAMA),
    "qwen3": text("Qwen3", **LLAMA, head_dim=14),
    "mistral": text("Mistral", **LLAMA),
    "mixtral": text("Mixtral", **LLAMA, num_local_experts=3),
    "gemma2": text("Gemma2", **LLAMA, head_dim=14),
    "mamba": text("Mamba", state_size=5, use_mambapy=False),
    "t5": Network(transformers("T5", **T5), both_ids, TOKENS),
    "bart": Network(transformers("Bart", **BART), both_ids, TOKENS),
    "decision transformer": Network(
        transformers(
            "DecisionTransformer", state_dim=5, act_dim=3, hidden_size=24, n_layer=2, n_head=2
        ),
        trajectory,
        TOKENS,
    ),
    "wav2vec2": Network(transformers("Wav2Vec2", **SPEECH), sound, SOUND),
    "wav2vec2 layer norm": Network(
        transformers("Wav2Vec2", **SPEECH, feat_extract_norm="layer", do_stable_layer_norm=True),
        sound,
        SOUND,
    ),
    "hubert": Network(transformers("Hubert", **SPEECH), sound, SOUND),
    "wavlm": Network(transformers("WavLM", **SPEECH), sound, SOUND),
    "whisper": Network(
        transformers(
            "Whisper",
            "max_source_positions",
            **BART,
            **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 0),
            decoder_start_token_id=1,
            num_mel_bins=16,
        ),
        spectrogram,
        (13, 19),
        is_sized=True,
    ),
    "encodec": Network(
        transformers("Encodec", num_filters=4, hidden_size=12, codebook_size=16, codebook_dim=12),
        channel,
        (1920, 2880),
    ),
    "clip": Network(
        transformers(
            "CLIP",
            text_config={**SMALL, "eos_token_id": 49},
            vision_config={**VISION, "patch_size": 8, "image_size": 32},
            projection_dim=20,
        ),
        clip_inputs,
        (32, 32),
    ),
    "vit": vision("ViT", sized="image_size", **VISION, patch_size=8),
    "deit": vision("DeiT", sized="image_size", **VISION, patch_size=8),
    "dinov2": vision("Dinov2", sized="image_size", **VISION, patch_size=8),
    "swin": vision(
        "Swin", embed_dim=12, depths=[2, 1], num_heads=[2, 3], window_size=4, patch_size=2
    ),
    "segformer": vision(
        "Segformer", hidden_sizes=[8, 12, 20, 28], depths=[1, 1, 1, 1], decoder_hidden_size=16
    ),
    "convnext": vision("ConvNext", hidden_sizes=[10, 14, 18, 22], depths=[1, 1, 1, 1]),
    "resnet": vision(
        "ResNet", embedding_size=10, hidden_sizes=[16, 24, 32, 40], depths=[1, 1, 1, 1]
    ),
    "mobilevit": vision("MobileViT", (64, 96)),
}
