"""The commands that users bring along run to the end as they are printed, without a GPU too."""

import re
import shutil

import pytest
import torch

from library.tensorfile import read_header, read_tensors, write_tensors

pytestmark = pytest.mark.skipif(torch.backends.mps.is_available(), reason="blocks cannot be swapped on MPS")
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1")
DENOISER = "model.diffusion_model."
BLOCK = f"{DENOISER}joint_blocks."


@pytest.fixture
def common(training):
    """The options that both commands share; one picture, so that ten epochs are ten steps."""
    pytest.importorskip("bitsandbytes")
    dataset = training.dataset(training.pictures(["red_star.png"]))
    return [
        *(f"--dataset_config={dataset}", f"--output_dir={training.folder / 'out'}", "--output_name=my_sd3_lora"),
        *("--save_model_as=safetensors", "--network_dim=16", "--network_alpha=1", "--learning_rate=1e-4"),
        *("--optimizer_type=AdamW8bit", "--lr_scheduler=constant", "--sdpa", "--max_train_epochs=10"),
        *("--save_every_n_epochs=1", "--mixed_precision=fp16", "--gradient_checkpointing", "--apply_lg_attn_mask"),
        *("--apply_t5_attn_mask", "--weighting_scheme=sigma_sqrt", "--blocks_to_swap=32"),
    ]


def check_run(run, folder, depth):
    """Ten files, and no more warnings than the two that belong to a machine without a GPU."""
    assert run.code == 0, run.output
    lines = run.output.splitlines()
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert len(warnings) == 2, warnings
    assert sum("fp16" in line and "bf16" in line for line in warnings) == 1
    assert sum("--blocks_to_swap" in line and "nothing to swap" in line for line in warnings) == 1
    meaning = f"--blocks_to_swap 32: the model has {depth} blocks, so all of them are meant."
    first_use_of_weights = next(i for i, line in enumerate(lines) if "networks.lora" in line and "train" in line)
    assert [i < first_use_of_weights for i, line in enumerate(lines) if meaning in line] == [True]
    names = [f"my_sd3_lora-{epoch:06d}.safetensors" for epoch in range(1, 10)]
    assert sorted(path.name for path in folder.glob("*.safetensors")) == sorted([*names, "my_sd3_lora.safetensors"])


def test_command_with_networks_lora_trains_an_sd3_lora(training, launch, common):
    model = f"--pretrained_model_name_or_path={training.model}"
    run = launch([model, "--network_module=networks.lora", *common], ACCELERATE, is_watched=False)
    check_run(run, training.folder / "out", depth=2)
    saved = read_header(training.folder / "out" / "my_sd3_lora.safetensors")
    assert {name.split("_")[1] for name in saved.tensors} == {"unet", "te1", "te2"}
    assert saved.metadata["ss_base_model_version"] and saved.metadata["sshs_model_hash"]
    assert saved.metadata["ss_network_dim"] == "16"
    down = saved.shapes()["lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight"]
    assert down[0] == 16


def test_command_with_networks_lora_sd3_gives_every_layer_the_rank_asked_for(training, launch, common):
    model = write_deep_model(training)
    words = [f"--pretrained_model_name_or_path={model}", "--network_module=networks.lora_sd3", *common]
    words += ["--network_args", "context_attn_dim=2", "context_mlp_dim=3", "context_mod_dim=4", "x_attn_dim=5"]
    words += ["x_mlp_dim=6", "x_mod_dim=7", "emb_dims=[2,3,4,5,6,7]", "train_block_indices=1,2,6-8", "verbose=True"]
    run = launch(words, ACCELERATE, is_watched=False)
    check_run(run, training.folder / "out", depth=9)

    shapes = read_header(training.folder / "out" / "my_sd3_lora.safetensors").shapes()
    ranks = {name.removesuffix(".lora_down.weight"): shape[0] for name, shape in shapes.items() if "lora_down" in name}
    layers = {
        "context_block_attn": 2,
        "context_block_mlp": 3,
        "context_block_adaLN": 4,
        "x_block_attn": 5,
        "x_block_mlp": 6,
        "x_block_adaLN": 7,
    }
    blocks = {name: rank for name, rank in ranks.items() if "joint_blocks" in name}
    assert {int(re.search(r"joint_blocks_(\d+)_", name)[1]) for name in blocks} == {1, 2, 6, 7, 8}
    for name, rank in blocks.items():
        assert rank == next(asked for layer, asked in layers.items() if layer in name), name
    assert len(blocks) == 5 * 10 - 3  # the last block's context half has qkv and adaLN only
    embedders = {"context_embedder": 2, "t_embedder": 3, "x_embedder": 4, "y_embedder": 5}
    embedders |= {"final_layer_adaLN_modulation": 6, "final_layer_linear": 7}
    for layer, rank in embedders.items():
        found = {ranks[name] for name in ranks if name.startswith(f"lora_unet_{layer}")}
        assert found == {rank}, layer
    assert {rank for name, rank in ranks.items() if name.startswith("lora_te")} == {16}


def write_deep_model(training):
    """Nine joint blocks from the two of the tiny model, and half as wide: fp16 is slow on a CPU."""
    tensors = {}
    for name, tensor in read_tensors(read_header(training.model)).items():
        if name.startswith(DENOISER):
            tensor = half_as_wide(name, tensor)
        if name.startswith(f"{BLOCK}0."):
            tensors |= {name.replace(f"{BLOCK}0.", f"{BLOCK}{index}."): tensor.clone() for index in range(8)}
        else:
            tensors[name.replace(f"{BLOCK}1.", f"{BLOCK}8.")] = tensor
    path = training.folder / "deep" / "sd3.safetensors"
    path.parent.mkdir()
    write_tensors(path, tensors)
    for tokenizer in training.model.parent.glob("tokenizer*"):
        shutil.copytree(tokenizer, path.parent / tokenizer.name)
    return path


def half_as_wide(name, tensor):
    """Cut every side that is the width of 128 or a multiple; the 256 frequencies of the timestep stay."""
    kept = 1 if name.endswith("t_embedder.mlp.0.weight") else None
    sides = [side if index == kept or side % 128 else side // 2 for index, side in enumerate(tensor.shape)]
    return tensor[tuple(slice(side) for side in sides)].contiguous()


def test_command_of_the_whole_model_trains_on_a_folder_of_folders(full_training, launch):
    """As printed, but for paths and the resolution, which the small model's table of positions limits."""
    pytest.importorskip("bitsandbytes")
    model, folder = full_training.model, full_training.folder
    separate = folder / "separate"
    separate.mkdir()
    parts = write_parts(model, separate)
    pictures = full_training.pictures(["red_star.png", "blue_triangle.png"], to="20_sks toy")
    data = folder / "data"
    data.mkdir()
    pictures.rename(data / pictures.name)
    command = [
        *(f"--pretrained_model_name_or_path={parts['model']}", "--optimizer_type=AdamW8bit"),
        *("--cache_text_encoder_outputs", "--cache_text_encoder_outputs_to_disk", "--vae_batch_size=1"),
        *("--cache_latents", "--cache_latents_to_disk", "--caption_extension=.txt", "--learning_rate=1e-4"),
        *("--lr_scheduler=cosine_with_restarts", "--output_name=last", "--save_model_as=safetensors"),
        *("--save_precision=fp16", "--train_batch_size=1", "--resolution=64,64", "--save_every_n_epochs=1"),
        *("--lr_scheduler_num_cycles=1", f"--clip_g={parts['clip_g']}", f"--clip_l={parts['clip_l']}"),
        *(f"--t5xxl={parts['t5xxl']}", "--max_train_epochs=2", "--mixed_precision=bf16", "--debiased_estimation_loss"),
        *("--lr_warmup_steps=0", "--keep_tokens=1", f"--output_dir={folder / 'out'}", f"--train_data_dir={data}"),
        "--full_bf16",
    ]
    run = launch(command, ACCELERATE, script="sd3_train", is_watched=False)
    assert run.code == 0, run.output
    assert "2 images x 20 repeats = 40 samples" in run.output
    warnings = [line for line in run.output.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 2, warnings
    assert "--debiased_estimation_loss" in warnings[0] and "keep_tokens has no effect" in warnings[1]
    saved = sorted(path.name for path in (folder / "out").glob("*.safetensors"))
    assert saved == ["last-000001.safetensors", "last.safetensors"]
    last, base = read_header(folder / "out" / "last.safetensors"), read_header(model)
    prefixes = ("model.diffusion_model.", "first_stage_model.")
    assert last.tensors.keys() == {name for name in base.tensors if name.startswith(prefixes)}
    assert {info.dtype for info in last.tensors.values()} == {"F16"}
    assert last.metadata["modelspec.architecture"] == "stable-diffusion-3-medium"


def write_parts(model, folder):
    """The model as it is published: one file without encoders, and a file for each of them; tokenizers beside it."""
    for tokenizer in model.parent.glob("tokenizer*"):
        shutil.copytree(tokenizer, folder / tokenizer.name)
    tensors = read_tensors(read_header(model))
    paths = {"model": folder / "sd3_medium.safetensors"}
    write_tensors(paths["model"], {name: t for name, t in tensors.items() if not name.startswith("text_encoders.")})
    for name in ("clip_l", "clip_g", "t5xxl"):
        prefix = f"text_encoders.{name}.transformer."
        paths[name] = folder / f"{name}.safetensors"
        own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        write_tensors(paths[name], own)
    return paths
