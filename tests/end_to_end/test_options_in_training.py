"""Options of the network, the optimizer, precision and saving, each in a short training."""

import pytest
import toml
import torch
from safetensors import safe_open

from library.errors import UserError

STEPS = "--max_train_steps=3"
PARTS = {"unet", "te1", "te2", "te3"}


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


def furthest(weights):
    """The furthest that a weight of `up` has gone from zero."""
    return max(tensor.abs().max().item() for name, tensor in weights.items() if "lora_up" in name)


def parts(weights):
    return {name.split("_")[1] for name in weights} & PARTS


def ranks(weights):
    return {tensor.shape[0] for name, tensor in weights.items() if "lora_down" in name}


def assert_same(weights, expected, atol=1e-5):
    torch.testing.assert_close(weights, expected, rtol=0, atol=atol)


# What begins with other networks


def test_network_weights_continue_where_the_file_ended(training, dataset):
    first = training.run(dataset, STEPS)
    still = training.run(dataset, "--max_train_steps=1", f"--network_weights={first.file}", "--learning_rate=1e-12")
    assert furthest(first.weights) > 1e-3
    assert_same(still.weights, first.weights, atol=1e-8)
    onward = training.run(dataset, STEPS, f"--network_weights={first.file}")
    assert furthest({name: onward.weights[name] - first.weights[name] for name in first.weights}) > 1e-3


def test_dim_from_weights_takes_the_ranks_of_the_file(training, dataset):
    args = ("--network_args", "x_attn_dim=3", "context_attn_dim=0", "emb_dims=[0,0,5,0,0,0]")
    first = training.unet_only(dataset, STEPS, *args)
    assert ranks(first.weights) == {3, 4, 5}
    with pytest.raises(UserError, match="dim_from_weights"):
        training.unet_only(dataset, STEPS, f"--network_weights={first.file}")
    onward = training.unet_only(dataset, STEPS, f"--network_weights={first.file}", "--dim_from_weights")
    shapes = {name: tensor.shape for name, tensor in first.weights.items()}
    assert {name: tensor.shape for name, tensor in onward.weights.items()} == shapes
    assert furthest({name: onward.weights[name] - first.weights[name] for name in shapes}) > 1e-3


@pytest.mark.parametrize("flags", [(), ("--network_train_unet_only",)], ids=["with encoders", "denoiser"])
def test_base_weights_are_merged_into_what_is_trained(training, dataset, flags):
    strong = ("--max_train_steps=6", "--learning_rate=1e-2", *flags)
    base = training.run(dataset, *strong)
    one_step = ("--max_train_steps=1", *flags)
    plain = training.run(dataset, *one_step)
    beside = training.run(dataset, *one_step, f"--network_weights={base.file}")
    merged = training.run(dataset, *one_step, f"--base_weights={base.file}")
    at_zero = training.run(dataset, *one_step, f"--base_weights={base.file}", "--base_weights_multiplier=0")
    assert merged.losses == pytest.approx(beside.losses, rel=1e-4)
    assert merged.losses != pytest.approx(plain.losses, rel=1e-3)
    assert at_zero.losses == pytest.approx(plain.losses, rel=1e-5)


# Which parts train


def test_each_part_trains_when_it_is_asked_for(training, dataset):
    assert parts(training.run(dataset, STEPS).weights) == {"unet", "te1", "te2"}
    assert parts(training.unet_only(dataset, STEPS).weights) == {"unet"}
    assert parts(training.run(dataset, STEPS, "--network_train_text_encoder_only").weights) == {"te1", "te2"}
    with_t5 = training.run(dataset, STEPS, "--network_args", "train_t5xxl=True").weights
    assert parts(with_t5) == {"unet", "te1", "te2", "te3"}
    for part in parts(with_t5):
        assert furthest({name: with_t5[name] for name in with_t5 if f"_{part}_" in name}) > 1e-3, part


def test_part_with_learning_rate_0_stays_as_it_is(training, dataset):
    weights = training.run(dataset, STEPS, "--text_encoder_lr=0").weights
    assert furthest({name: weights[name] for name in weights if "_unet_" in name}) > 1e-3
    assert furthest({name: weights[name] for name in weights if "_te" in name}) == 0


def test_scale_weight_norms_keeps_every_adapter_below_the_limit(training, dataset):
    flags = ("--max_train_steps=6", "--learning_rate=1e-2")
    free = [adapter.norm().item() for adapter in training.unet_only(dataset, *flags).trainer.network.adapters()]
    run = training.unet_only(dataset, *flags, "--scale_weight_norms=0.05")
    kept = [adapter.norm().item() for adapter in run.trainer.network.adapters()]
    assert max(free) > 0.1
    assert max(kept) == pytest.approx(0.05, rel=1e-3)


def test_lycoris_trains_a_lokr(training, dataset):
    pytest.importorskip("lycoris")
    flags = ("--network_module=lycoris.kohya", "--network_args", "algo=lokr", "factor=4", "preset=full")
    start = training.run(dataset, "--max_train_steps=1", "--learning_rate=1e-12", *flags).weights
    run = training.run(dataset, STEPS, *flags)
    assert any("joint_blocks_0_x_block_attn_qkv.lokr_w" in name for name in run.weights)
    assert parts(run.weights) == {"unet", "te1", "te2"}  # T5 does not train
    for part in parts(run.weights):
        names = [name for name in run.weights if f"_{part}_" in name and not name.endswith("alpha")]
        assert max((run.weights[name] - start[name]).abs().max().item() for name in names) > 1e-3, part


# Optimizers and precision


@pytest.mark.parametrize(
    "flags",
    [
        ("--optimizer_type=AdamW8bit",),
        ("--optimizer_type=Adafactor", "--optimizer_args", "relative_step=False", "scale_parameter=False"),
    ],
    ids=["AdamW8bit", "Adafactor"],
)
def test_other_optimizers_follow_adamw(training, dataset, flags):
    """Their first steps have about the same size, so that the losses stay close."""
    if "8bit" in flags[0]:
        pytest.importorskip("bitsandbytes")
    adamw = training.unet_only(dataset, "--max_train_steps=6", "--network_dim=16", "--learning_rate=3e-3")
    other = training.unet_only(dataset, "--max_train_steps=6", "--network_dim=16", "--learning_rate=3e-3", *flags)
    assert other.losses == pytest.approx(adamw.losses, rel=0.1)
    assert other.losses[1:] != adamw.losses[1:]


def test_adafactor_chooses_its_own_rate(training, dataset):
    run = training.unet_only(dataset, STEPS, "--optimizer_type=adafactor", "--optimizer_args", "relative_step=True")
    assert furthest(run.weights) > 0


def test_bf16_trains_about_the_same(training, dataset):
    flags = ("--max_train_steps=6", "--learning_rate=3e-3")
    full = training.unet_only(dataset, *flags)
    mixed = training.unet_only(dataset, *flags, "--mixed_precision=bf16")
    all_bf16 = training.unet_only(dataset, *flags, "--mixed_precision=bf16", "--full_bf16")
    assert mixed.losses == pytest.approx(full.losses, rel=0.05)
    assert all_bf16.losses == pytest.approx(full.losses, rel=0.05)
    assert {tensor.dtype for tensor in mixed.weights.values()} == {torch.float32}
    factors = {name: tensor for name, tensor in all_bf16.weights.items() if not name.endswith("alpha")}
    assert {tensor.dtype for tensor in factors.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("flags", "every"), [((), 1), (("--network_train_unet_only",), 2)], ids=["with encoders", "denoiser"]
)
def test_gradient_checkpointing_changes_nothing_but_memory(training, dataset, flags, every):
    flags = (STEPS, "--network_dropout=0.1", *flags)
    plain = training.compare(dataset, *flags)
    checkpoints = ("--gradient_checkpointing", f"--gradient_checkpointing_every_n_blocks={every}")
    recomputed = training.compare(dataset, *flags, *checkpoints)
    assert_same(recomputed.weights, plain.weights)
    assert recomputed.trainer.denoiser.checkpoint_every == every


# Models


@pytest.mark.parametrize("variant", ["5-medium", "5-large"])
def test_other_shapes_train(training, tiny_sd3_factory, dataset, variant):
    run = training.unet_only(dataset, "--max_train_steps=2", model=tiny_sd3_factory(variant=variant).model)
    assert len(run.losses) == 2
    assert furthest(run.weights) > 1e-3
    assert any("attn2_qkv" in name for name in run.weights) == (variant == "5-medium")


def test_separate_files_train_what_one_file_trains(training, tiny_sd3_factory, dataset):
    files = tiny_sd3_factory(bundle=False)
    given = [f"--clip_l={files.clip_l}", f"--clip_g={files.clip_g}", f"--t5xxl={files.t5xxl}", f"--vae={files.vae}"]
    separate = training.run(dataset, STEPS, *given, model=files.model)
    assert separate.file.read_bytes() == training.run(dataset, STEPS).file.read_bytes()


def test_files_that_are_given_go_before_what_the_model_holds(training, tiny_sd3_factory, dataset):
    other = tiny_sd3_factory(bundle=False, seed=7)
    plain = training.unet_only(dataset, STEPS)
    for flag, file in (("--t5xxl", other.t5xxl), ("--clip_g", other.clip_g), ("--vae", other.vae)):
        assert training.unet_only(dataset, STEPS, f"{flag}={file}").losses != plain.losses, flag


def test_model_without_t5_trains(training, tiny_sd3_factory, dataset):
    files = tiny_sd3_factory(bundle=False)
    given = [f"--clip_l={files.clip_l}", f"--clip_g={files.clip_g}", f"--vae={files.vae}"]
    live = training.run(dataset, STEPS, *given, "--network_train_unet_only", model=files.model)
    cached = training.unet_only(dataset, STEPS, *given, model=files.model)
    assert list(live.trainer.text.encoders) == ["clip_l", "clip_g"]
    assert cached.losses == pytest.approx(live.losses, rel=1e-5)


@pytest.mark.parametrize("flag", ["--pos_emb_random_crop_rate=1", "--enable_scaled_pos_embed"])
def test_other_positions_train_another_network(training, tiny_sd3_factory, dataset, flag):
    model = tiny_sd3_factory(variant="5-medium").model
    plain = training.unet_only(dataset, STEPS, model=model)
    moved, again = (training.unet_only(dataset, STEPS, flag, model=model) for _ in range(2))
    assert moved.losses != pytest.approx(plain.losses, rel=1e-4)
    assert again.losses == moved.losses


# Saving


def test_saves_between_are_named_by_step_and_epoch(training, dataset):
    flags = ("--max_train_epochs=2", "--save_every_n_steps=3", "--save_every_n_epochs=1", "--output_name=mine")
    run = training.unet_only(dataset, *flags)  # two steps an epoch
    names = [path.name for path in run.trainer.saved_files]
    assert names == ["mine-000001.safetensors", "mine-step00000003.safetensors", "mine.safetensors"]
    assert sorted(path.name for path in run.file.parent.glob("*.safetensors")) == sorted(names)


def test_save_between_equals_the_end_of_a_shorter_run(training, dataset):
    longer = training.unet_only(dataset, "--max_train_steps=4", "--save_every_n_steps=2", "--network_dropout=0.1")
    shorter = training.unet_only(dataset, "--max_train_steps=2", "--network_dropout=0.1")
    assert longer.trainer.saved_files[0].read_bytes() == shorter.file.read_bytes()


def test_save_precision_is_that_of_the_file(training, dataset):
    plain = training.unet_only(dataset, STEPS).weights
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("float", torch.float32)):
        saved = training.unet_only(dataset, STEPS, f"--save_precision={name}").weights
        expected = {key: t if key.endswith("alpha") else t.to(dtype) for key, t in plain.items()}
        torch.testing.assert_close(saved, expected, rtol=0, atol=0)


def test_diffusers_predicts_with_the_saved_file_what_the_trained_model_predicts(training, dataset):
    from diffusers import SD3Transformer2DModel
    from safetensors.torch import load_file

    from library.families.sd3.key_map import mmdit_to_diffusers

    run = training.unet_only(dataset, STEPS, "--learning_rate=1e-2", "--save_model_as=diffusers")
    denoiser = run.trainer.denoiser.eval()
    sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64, "caption_projection_dim": 128}
    sizes |= {"joint_attention_dim": 96, "pooled_projection_dim": 80, "pos_embed_max_size": 24, "sample_size": 8}
    transformer = SD3Transformer2DModel(**sizes).eval()
    transformer.load_state_dict(mmdit_to_diffusers(denoiser.state_dict()))
    torch.manual_seed(0)
    latents, context, pooled = torch.randn(1, 16, 8, 8), torch.randn(1, 93, 96), torch.randn(1, 80)
    time = torch.tensor([500.0])
    with torch.no_grad():
        ours = denoiser(latents, time, context, pooled)
        before = transformer(latents, context, pooled, time).sample
        transformer.load_lora_adapter(load_file(run.file), prefix="transformer")
        theirs = transformer(latents, context, pooled, time).sample
    assert (before - ours).abs().max() > 1e-2
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_metadata_is_written_unless_it_is_not_wanted(training, dataset):
    arguments = [argument for argument in training.arguments(dataset, STEPS) if argument != "--no_metadata"]
    for words, is_written in ((arguments, True), (training.arguments(dataset, STEPS), False)):
        with safe_open(training.run_arguments(words).file, "pt") as file:
            keys = {key.split("_")[0].split(".")[0] for key in file.metadata() or {}}
        assert keys == ({"ss", "sshs", "modelspec"} if is_written else set())


def test_config_file_stands_for_flags(training, dataset, tmp_path):
    plain = training.unet_only(dataset, STEPS, "--weighting_scheme=mode", "--lr_scheduler=cosine")
    config = tmp_path / "options.toml"
    sections = {
        "model": {"pretrained_model_name_or_path": str(training.model), "t5xxl_max_token_length": 16},
        "data": {"dataset_config": str(dataset), "max_data_loader_n_workers": 0},
        "network": {"network_module": "networks.lora", "network_dim": 4, "network_alpha": 4},
        "caches": {"network_train_unet_only": True, "cache_latents": True, "cache_text_encoder_outputs": True},
        "training": {"learning_rate": 1e-3, "seed": 5, "max_train_steps": 50, "lr_scheduler": "cosine"},
        "loss": {"weighting_scheme": "mode"},
        "saving": {"output_dir": str(tmp_path / "out"), "no_metadata": True},
    }
    config.write_text(toml.dumps(sections), encoding="utf-8")
    run = training.run_arguments([f"--config_file={config}", STEPS])
    assert run.file.read_bytes() == plain.file.read_bytes()
