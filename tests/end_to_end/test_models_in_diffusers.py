"""Whole models that are written open in diffusers without network, and draw there what they draw here."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from transformers import CLIPTextModelWithProjection, T5EncoderModel

from library.families.sd3.family import Sd3Family
from library.tensorfile import read_header

CPU = torch.device("cpu")
ENCODERS = ("clip_l", "clip_g", "t5xxl")
FOLDERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
PROMPT, NEGATIVE = "a red circle on a blue background", "a dog"
STEPS, GUIDANCE = 6, 4.5
LATENTS = (1, 16, 8, 12)
TOLERANCE = 1e-3


class Written:
    """A tiny model in float32: `whole` has everything inside, `bare` no encoder, `folder` is for diffusers."""

    def __init__(self, tiny, place: Path):
        self.family = Sd3Family(pretrained=tiny.model, dropout_rates={}, flow={})
        self.files = self.family.inspect()
        denoiser = self.family.load_denoiser(self.files, torch.float32, CPU)
        with torch.no_grad():
            for parameter in denoiser.parameters():  # as training would
                parameter.mul_(1.05)
        self.denoiser = denoiser
        self.encoders = self.family.load_text_encoders(self.files, torch.float32, CPU, ("clip_l",))
        with torch.no_grad():
            self.encoders["clip_l"].text_model.embeddings.token_embedding.weight.mul_(1.2)
        self.whole = self.write(place / "whole.safetensors", "safetensors", ENCODERS)
        self.bare = self.write(place / "bare.safetensors", "safetensors", ())
        self.folder = self.write(place / "folder", "diffusers", ())

    def write(self, path, layout, bundled):
        encoders = {name: encoder.state_dict() for name, encoder in self.encoders.items()}
        what = {"files": self.files, "denoiser": self.denoiser.state_dict(), "encoders": encoders}
        return self.family.write_model(path, **what, layout=layout, bundled=bundled, dtype=None, metadata=None)[0]

    @torch.no_grad()
    def conditioning(self, encoder_dtype=torch.float32):
        """Of the prompt and of the negative prompt, in float32."""
        others = [name for name in ENCODERS if name not in self.encoders]
        encoders = self.family.load_text_encoders(self.files, encoder_dtype, CPU, others)
        encoders = {"clip_l": self.encoders["clip_l"], **encoders}
        if encoder_dtype != torch.float32:
            encoders["clip_l"] = CLIPTextModelWithProjection.from_pretrained(
                self.folder / "text_encoder", torch_dtype=encoder_dtype
            )
        tokens = self.family.tokenize(self.family.load_tokenizers(self.files, ENCODERS), [PROMPT, NEGATIVE])
        states = self.family.encode_text(encoders, tokens)
        return self.family.join_text({name: state.float() for name, state in states.items()}, self.denoiser)

    def draw(self, noise, conditioning):
        """Latents as our sampler draws them."""

        def predict(latents, timesteps):
            return self.family.predict(self.denoiser, latents, timesteps, conditioning)

        return self.family.sample(predict, noise, num_steps=STEPS, guidance_scale=GUIDANCE)


@pytest.fixture(scope="module")
def written(tiny_sd3_factory, tmp_path_factory):
    return Written(tiny_sd3_factory(variant="5-medium", dtype="fp32"), tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="module")
def noise():
    return torch.randn(LATENTS, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def ours(written, noise):
    return written.draw(noise, written.conditioning())


def draw(pipeline, noise, **prompt):
    """Latents as diffusers draws them, after a look at all its parts: what a file lacks stays without numbers there."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module):
            part.eval()  # from_single_file leaves T5 training
            tensors = [*part.named_parameters(), *part.named_buffers()]
            assert [f"{name}.{key}" for key, tensor in tensors if tensor.is_meta] == []
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": LATENTS[2] * 8, "width": LATENTS[3] * 8}
    how = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
    return pipeline(latents=noise.clone(), **prompt, **size, **how).images


def single_file(path, folder, **parts):
    return StableDiffusion3Pipeline.from_single_file(str(path), config=str(folder), local_files_only=True, **parts)


def assert_same_picture(found, expected):
    assert expected.std() > 0.1
    assert (found - expected).abs().max() <= TOLERANCE


def test_a_single_file_with_encoders_draws_the_same_picture(written, noise, ours):
    pipeline = single_file(written.whole, written.folder)
    assert_same_picture(draw(pipeline, noise, prompt=PROMPT, negative_prompt=NEGATIVE), ours)


def test_the_folder_draws_the_same_picture(written, noise, ours):
    pipeline = StableDiffusion3Pipeline.from_pretrained(written.folder, local_files_only=True)
    assert len(pipeline.tokenizer_3) == read_header(written.whole).shapes()[
        "text_encoders.t5xxl.transformer.shared.weight"
    ][0]  # fmt: skip
    assert_same_picture(draw(pipeline, noise, prompt=PROMPT, negative_prompt=NEGATIVE), ours)


def test_a_single_file_with_encoders_handed_in_as_fp16_objects_draws_the_same_picture(written, noise):
    classes = (CLIPTextModelWithProjection, CLIPTextModelWithProjection, T5EncoderModel)
    objects = {
        folder: kind.from_pretrained(written.folder / folder, torch_dtype=torch.float16)
        for folder, kind in zip(FOLDERS, classes, strict=True)
    }
    pipeline = single_file(written.bare, written.folder, **objects)
    assert pipeline.text_encoder_2.dtype == torch.float16
    keys = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad():
        encoded = pipeline.encode_prompt(PROMPT, None, None, negative_prompt=NEGATIVE)
    prompt = {key: tensor.float() for key, tensor in zip(keys, encoded, strict=True)}
    expected = written.draw(noise, written.conditioning(torch.float16))
    assert_same_picture(draw(pipeline, noise, **prompt), expected)


def test_the_vae_of_both_decodes_as_ours(written, ours):
    vae = written.family.load_vae(written.files, torch.float32, CPU)
    with torch.no_grad():
        expected = written.family.decode_latents(vae, ours)
    parts = dict.fromkeys((*FOLDERS, "tokenizer", "tokenizer_2", "tokenizer_3"))
    for pipeline in (
        StableDiffusion3Pipeline.from_pretrained(written.folder, local_files_only=True, **parts),
        single_file(written.bare, written.folder, **parts),
    ):
        with torch.no_grad():
            latents = ours / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
            assert (pipeline.vae.decode(latents).sample.clamp(-1, 1) - expected).abs().max() <= TOLERANCE


def test_comfyui_recognises_the_parts_by_their_names(written):
    # the rules of its model detection: the prefix with most tensors, then names and shapes
    shapes = read_header(written.whole).shapes()
    prefixes = {
        prefix: sum(name.startswith(prefix) for name in shapes) for prefix in ("model.diffusion_model.", "net.")
    }
    assert max(prefixes, key=prefixes.__getitem__) == "model.diffusion_model." and max(prefixes.values()) > 5
    unet = {name.removeprefix("model.diffusion_model."): shape for name, shape in shapes.items()}
    assert "joint_blocks.0.context_block.attn.qkv.weight" in unet and "pos_embed" in unet
    hidden = unet["x_embedder.proj.weight"][0]
    depth = 1 + max(int(match[1]) for name in unet if (match := re.match(r"joint_blocks\.(\d+)\.", name)))
    assert hidden // 64 == depth
    assert "joint_blocks.0.x_block.attn2.ln_q.weight" in unet and "first_stage_model.decoder.conv_in.weight" in shapes
    last = {"clip_l": "text_model.final_layer_norm.weight", "clip_g": "text_projection.weight"}
    last |= {"t5xxl": "encoder.final_layer_norm.weight"}
    assert all(f"text_encoders.{name}.transformer.{key}" in shapes for name, key in last.items())
    assert "text_encoders.clip_l.transformer.text_projection.weight" not in shapes
