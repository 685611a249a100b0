"""Checks of a LoRA file by its header: what a network has saved fits the same network, and no other."""

import pytest
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from library.errors import CheckpointError
from networks import lora, lora_sd3

DEPTH = 3  # of the fixture `mmdit`
ARGUMENTS = {
    "plain": {},
    "ranks": {"context_attn_dim": "2", "x_mlp_dim": "0", "x_mod_dim": "6"},
    "embedders": {"emb_dims": "[1,2,3,4,5,6]", "conv_dim": "7"},
    "blocks": {"train_block_indices": "1"},
    "last_block": {"train_block_indices": "2"},
    "split": {"split_qkv": "True", "x_attn_dim": "2"},
    "t5": {"train_t5xxl": "True"},
}


@pytest.fixture(scope="module")
def encoders():
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    clips = [CLIPTextModelWithProjection(CLIPTextConfig(**sizes, vocab_size=50)) for _ in range(2)]
    return [*clips, T5EncoderModel(T5Config(vocab_size=50, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2))]


@pytest.fixture
def saved(mmdit, encoders):
    """Shapes in the file of a network with these arguments."""

    def build(arguments, encoders=encoders, rank=4):
        network = lora_sd3.create_network(1.0, rank, 1.0, None, encoders, mmdit, **arguments)
        return {name: tuple(tensor.shape) for name, tensor in network.saved_state().items()}

    return build


def check(shapes, arguments, **options):
    args = lora.check_network_args(arguments, DEPTH)
    lora.check_network_file(shapes, "--network_weights a.safetensors", depth=DEPTH, args=args, **options)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_file_fits_the_network_that_saved_it(name, saved):
    check(saved(ARGUMENTS[name]), ARGUMENTS[name], network_dim=4)
    lora.check_network_file(saved(ARGUMENTS[name]), "--base_weights a.safetensors", depth=DEPTH)


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"t5"}))
def test_a_file_without_encoders_fits_the_network_that_saved_it(name, saved):
    check(saved(ARGUMENTS[name], encoders=[]), ARGUMENTS[name], network_dim=4, trains_text_encoders=False)


def test_a_file_of_encoders_fits_the_network_that_saved_it(saved):
    shapes = {key: shape for key, shape in saved({}).items() if key.startswith("lora_te")}
    check(shapes, {}, network_dim=4, trains_denoiser=False)


@pytest.mark.parametrize("name", sorted(set(ARGUMENTS) - {"plain", "split"}))
def test_a_file_of_other_arguments_is_refused(name, saved):
    with pytest.raises(CheckpointError, match="a.safetensors.*dim_from_weights"):
        check(saved(ARGUMENTS[name]), {}, network_dim=4)


def test_a_file_of_another_rank_is_refused(saved):
    with pytest.raises(CheckpointError, match="has rank 4 in the file and 8 here"):
        check(saved({}), {}, network_dim=8)


def test_a_file_of_a_deeper_model_is_refused(saved):
    with pytest.raises(CheckpointError, match="the model is SD3 with 2 blocks: 10 of its .* Give a LoRA"):
        lora.check_network_file(saved({}), "--base_weights a.safetensors", depth=2)


def test_a_file_that_is_no_lora_is_refused():
    shapes = {"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (24, 8)}
    with pytest.raises(CheckpointError, match="a.safetensors is a whole checkpoint.*Give a LoRA"):
        lora.check_network_file(shapes, "--network_weights a.safetensors", depth=DEPTH)
