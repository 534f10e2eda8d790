"""Pipelines of diffusers of toy size, with random weights and no softcft in them: one of each kind that is adopted."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.small_models import perturb

LETTERS = "abcdefghijklmnopqrstuvwxyz"
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BLOCKS = {"layers_per_block": 1, "norm_num_groups": 4, "block_out_channels": (8, 16)}
"""Of networks and VAEs: images of 16 x 16 pixels have latents of 8 x 8."""


def make_vae(channels: int = 1, latent_channels: int = 4, **settings: Any) -> AutoencoderKL:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    sizes = {"in_channels": channels, "out_channels": channels, "latent_channels": latent_channels}
    return AutoencoderKL(**BLOCKS, **blocks, **sizes, **settings)


def make_clip(width: int, projected: bool = False) -> tuple[Any, CLIPTokenizer]:
    """A text encoder of CLIP and its tokenizer, which knows the letters."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *special]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=width,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval(), tokenizer


def make_t5(width: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    """A text encoder of T5 and its tokenizer, which knows the letters."""
    words = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = T5Tokenizer(vocab=[(word, -1.0) for word in words], extra_ids=0)
    config = T5Config(vocab_size=len(words), d_model=width, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval(), tokenizer


def make_ddpm(classes: int | None = None, channels: int = 1) -> DDPMPipeline:
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    sizes = {"sample_size": 16, "in_channels": channels, "out_channels": channels}
    return DDPMPipeline(UNet2DModel(**BLOCKS, **blocks, **sizes, num_class_embeds=classes), DDPMScheduler())


def make_dit() -> DiTPipeline:
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,  # the noise, and its variance
        num_layers=2,
        norm_num_groups=4,
        sample_size=8,
        num_embeds_ada_norm=3,
    )
    return DiTPipeline(transformer, make_vae(), DDIMScheduler(clip_sample=False))


def make_unet(**settings: Any) -> UNet2DConditionModel:
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
    }
    return UNet2DConditionModel(
        **{**BLOCKS, **blocks, "sample_size": 8, "in_channels": 4, "out_channels": 4, **settings}
    )


def make_sd(**settings: Any) -> StableDiffusionPipeline:
    encoder, tokenizer = make_clip(16)
    return StableDiffusionPipeline(
        vae=make_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=make_unet(**{"cross_attention_dim": 16, **settings}),
        scheduler=PNDMScheduler(**SD_BETAS, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_sdxl() -> StableDiffusionXLPipeline:
    (first, first_tokenizer), (second, second_tokenizer) = make_clip(16), make_clip(16, projected=True)
    unet = make_unet(
        cross_attention_dim=32,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 16,
    )
    return StableDiffusionXLPipeline(
        vae=make_vae(channels=3, scaling_factor=0.13025),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=first_tokenizer,
        tokenizer_2=second_tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**SD_BETAS, timestep_spacing="leading", steps_offset=1),
    )


def make_sd3() -> StableDiffusion3Pipeline:
    clips = make_clip(16, projected=True), make_clip(16, projected=True)
    t5, t5_tokenizer = make_t5(32)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=make_vae(channels=3, scaling_factor=1.5305, shift_factor=0.0609),
        text_encoder=clips[0][0],
        tokenizer=clips[0][1],
        text_encoder_2=clips[1][0],
        tokenizer_2=clips[1][1],
        text_encoder_3=t5,
        tokenizer_3=t5_tokenizer,
    )


def make_flux(guidance: bool = False) -> FluxPipeline:
    (clip, clip_tokenizer), (t5, t5_tokenizer) = make_clip(16), make_t5(32)
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=make_vae(channels=3, scaling_factor=0.3611, shift_factor=0.1159),
        text_encoder=clip,
        tokenizer=clip_tokenizer,
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer,
        transformer=transformer,
    )


def make_pixart() -> PixArtAlphaPipeline:
    t5, t5_tokenizer = make_t5(24)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=24,
        norm_num_groups=4,
    )
    return PixArtAlphaPipeline(t5_tokenizer, t5, make_vae(channels=3), transformer, DPMSolverMultistepScheduler())


STOCK: dict[str, Callable[[], DiffusionPipeline]] = {
    "ddpm": make_ddpm,
    "classes": lambda: make_ddpm(classes=3),
    "dit": make_dit,
    "sd": make_sd,
    "sdxl": make_sdxl,
    "sd3": make_sd3,
    "flux": make_flux,
    "pixart": make_pixart,
}
"""By kind."""


def make_stock(kind: str) -> DiffusionPipeline:
    """A pipeline whose weights are all random, also those that start at zero; the same each time."""
    torch.manual_seed(0)
    pipeline = STOCK[kind]()
    network = getattr(pipeline, "transformer", None) or pipeline.unet
    perturb(network, 0.05)
    network.eval()
    return pipeline
