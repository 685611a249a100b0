"""Adapters attached to tiny models, and what the models give then: what a merged file has to give too."""

import torch

from library.families.sd3 import checkpoint as sd3
from library.families.unet import checkpoint as unets
from library.models.text_encoders import load_clip, load_t5
from networks import lora, lora_sd3
from tests import tiny_unets


def read_model(kind, path):
    """The denoiser and the text encoders of a file."""
    if kind != "sd3":
        files = unets.inspect_files(path, kinds=(kind,))
        encoders = [unets.load_encoder(files, name, torch.float32, "cpu") for name in files.encoders]
        return unets.load_unet(files, torch.float32, "cpu"), encoders
    files = sd3.inspect_files(path)
    tensors = {
        part.kind: sd3.read_part(part, dtype=torch.float32) for part in (files.clip_l, files.clip_g, files.t5xxl)
    }
    encoders = [load_clip(tensors[name], kind=name) for name in ("clip_l", "clip_g")]
    mmdit = sd3.load_mmdit(files, torch.float32, "cpu")
    return mmdit, [encoder.requires_grad_(False) for encoder in (*encoders, load_t5(tensors["t5xxl"]))]


@torch.no_grad()
def outputs(denoiser, encoders):
    """A prediction and the states of the encoders, for fixed inputs."""
    draw = torch.Generator().manual_seed(3)
    if hasattr(denoiser, "joint_blocks"):
        sizes = denoiser.config
        latents = torch.randn(1, sizes.in_channels, 8, 8, generator=draw)
        context, pooled = torch.randn(1, 5, sizes.context_dim, generator=draw), torch.randn(1, sizes.pooled_dim)
        prediction = denoiser(latents, torch.tensor([400.0]), context, pooled * 0 + 0.5)
    else:
        width, told = denoiser.config.cross_attention_dim, None
        latents, context = torch.randn(1, 4, 16, 16, generator=draw), torch.randn(1, 5, width, generator=draw)
        if denoiser.config.addition_embed_type:
            pooled = torch.randn(1, tiny_unets.CLIP_G_WIDTH, generator=draw)
            told = {"text_embeds": pooled, "time_ids": torch.full((1, 6), 64.0)}
        prediction = denoiser(latents, torch.tensor([400.0]), context, added_cond_kwargs=told, return_dict=False)[0]
    ids = torch.arange(6)[None]
    states = [encoder(ids, output_hidden_states=True).hidden_states[-1] for encoder in encoders]
    return [prediction, *states]


def create(kind, model, multiplier, rank):
    denoiser, encoders = model
    if kind == "sd3":
        args = {"emb_dims": "[3,3,3,3,3,3]", "train_t5xxl": "True", "split_qkv": str(rank == 4)}
        return lora_sd3.create_network(multiplier, rank, 2.0, None, encoders, denoiser, **args)
    return lora.create_network(multiplier, rank, 2.0, None, encoders, denoiser, conv_dim="3", conv_alpha="2")


def make_network(kind, model, rank, seed, multiplier=1.0):
    network = create(kind, model, multiplier, rank).eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.05)
    return network


def live_outputs(model, networks):
    for network in networks:
        network.apply_to(model[1], model[0])
    found = outputs(*model)
    for network in reversed(networks):
        network.detach_all()
    return found


def change(modules, name):
    """What a module of a kohya file adds to its weight, as a matrix."""
    down, up = modules[f"{name}.lora_down.weight"].double(), modules[f"{name}.lora_up.weight"].double()
    return float(modules[f"{name}.alpha"]) / len(down) * up.flatten(1) @ down.flatten(1)


def names_of(modules):
    return {key.split(".")[0] for key in modules}
