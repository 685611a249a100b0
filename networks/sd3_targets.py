"""Which layers of SD3's models get an adapter, and of what rank: the tables behind networks.lora_sd3.

Without torch: what leaves nothing to train is known before any weights are read.
"""

from __future__ import annotations

from networks.arg_parsing import default_rank
from networks.sd3_args import Sd3NetworkArgs
from networks.targets import CLIP_LAYERS, TargetRule, plan_modules

# layers of a joint block by the argument that sets their rank
_BLOCK_LAYERS = {
    "context_attn_dim": r"context_block\.attn\.(qkv|proj)",
    "context_mlp_dim": r"context_block\.mlp\.fc[12]",
    "context_mod_dim": r"context_block\.adaLN_modulation\.1",
    "x_attn_dim": r"x_block\.attn2?\.(qkv|proj)",
    "x_mlp_dim": r"x_block\.mlp\.fc[12]",
    "x_mod_dim": r"x_block\.adaLN_modulation\.1",
}
# in the order of emb_dims
_EMBEDDERS = (
    r"context_embedder",
    r"t_embedder\.mlp\.[02]",
    r"x_embedder\.proj",
    r"y_embedder\.mlp\.[02]",
    r"final_layer\.adaLN_modulation\.1",
    r"final_layer\.linear",
)
_T5_LAYERS = r"encoder\.block\.\d+\.layer\.(0\.SelfAttention\.[qkvo]|1\.DenseReluDense\.(wi_0|wi_1|wo))"


def denoiser_rules(args: Sd3NetworkArgs, rank: int, alpha: float | None) -> tuple[TargetRule, ...]:
    """The table for the MMDiT. Names are those of the published checkpoints."""
    blocks = r"\d+" if args.train_block_indices is None else "|".join(map(str, sorted(args.train_block_indices)))
    rules = []
    if blocks:
        for argument, layers in _BLOCK_LAYERS.items():
            given = getattr(args, argument)
            layer_rank = rank if given is None else given
            if args.split_qkv and "qkv" in layers:
                rules.append(
                    TargetRule(rf"joint_blocks\.({blocks})\.{layers.replace('qkv|proj', 'qkv')}", layer_rank, alpha, 3)
                )
            rules.append(TargetRule(rf"joint_blocks\.({blocks})\.{layers}", layer_rank, alpha))
    if args.emb_dims is not None:
        if args.conv_dim is not None:
            rules.append(TargetRule(_EMBEDDERS[2], args.conv_dim, args.conv_alpha or 1.0))
        rules += [TargetRule(layers, dim, alpha) for layers, dim in zip(_EMBEDDERS, args.emb_dims, strict=True)]
    return tuple(rules)


def encoder_rules(title: str, rank: int, alpha: float | None) -> tuple[TargetRule, ...]:
    """The table for "CLIP-L", "CLIP-G" or "T5", for names as files have them."""
    return (TargetRule(_T5_LAYERS if title == "T5" else CLIP_LAYERS, rank, alpha),)


def trains_blocks(args: Sd3NetworkArgs, network_dim: int | None, depth: int) -> bool:
    """Whether the arguments give an MMDiT of this depth any adapter."""
    return bool(plan_modules(layers_of_mmdit(depth), denoiser_rules(args, default_rank(network_dim), None)))


def nothing_to_train(depth: int | None) -> str:
    """The message for arguments without any effect."""
    valid = f"0 to {depth - 1}" if depth else "those of the model"
    return (
        "--network_args leave 0 modules to train: train_block_indices selects no block, or every rank is 0, and no "
        f"text encoder is trained. Valid block indices are {valid}; ranks above 0 make adapters."
    )


def layers_of_mmdit(depth: int) -> list[str]:
    """Layers that every MMDiT of this depth has."""
    last = depth - 1
    halves = [(i, half) for i in range(depth) for half in ("context_block", "x_block")]
    names = [f"joint_blocks.{i}.{half}.{layer}" for i, half in halves for layer in ("attn.qkv", "adaLN_modulation.1")]
    names += [
        f"joint_blocks.{i}.{half}.{layer}"
        for i, half in halves
        for layer in ("attn.proj", "mlp.fc1", "mlp.fc2")
        if (i, half) != (last, "context_block")
    ]
    embedders = ["context_embedder", "x_embedder.proj", "final_layer.adaLN_modulation.1", "final_layer.linear"]
    return names + embedders + [f"{embedder}.mlp.{i}" for embedder in ("t_embedder", "y_embedder") for i in (0, 2)]
