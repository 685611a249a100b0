"""sd3_train.py: what trains, at which rates, what is saved, and that a run goes on exactly."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from library.errors import DatasetError, OptionError

CACHED = ("--cache_latents", "--cache_text_encoder_outputs")
LIVE = ("--cache_latents",)
ENCODERS = ("--train_text_encoder", "--train_t5xxl")
MMDIT, VAE = "model.diffusion_model.", "first_stage_model."


@pytest.fixture
def dataset(full_training):
    return full_training.dataset(full_training.pictures())


def changed(run, model, prefix=""):
    """Names of the tensors of a saved model that are not those of the base model, to fp16."""
    before, after = load_file(model), run.weights
    names = [name for name in after if name.startswith(prefix)]
    assert names
    return {name.removeprefix(prefix) for name in names if not torch.equal(before[name], after[name].to(torch.float16))}


def test_the_mmdit_trains_and_nothing_else(full_training, dataset):
    run = full_training.run(dataset, *CACHED, "--max_train_steps=2")
    model = load_file(full_training.model)
    assert set(run.weights) == {name for name in model if name.startswith((MMDIT, VAE))}
    trained = {name for name in run.weights if name.startswith(MMDIT)} - {f"{MMDIT}pos_embed"}
    assert changed(run, full_training.model) == trained
    assert run.losses[1] != run.losses[0]


def test_what_is_saved_is_a_base_model_for_every_script(training, full_training, dataset):
    """Trained for nothing (a learning rate that changes no fp16 number), it gives the LoRA that its base gives."""
    bundle = ("--save_clip", "--save_t5xxl", "--save_precision=fp16")
    copy = full_training.run(dataset, *CACHED, *bundle, "--learning_rate=1e-12", "--max_train_steps=1")
    before, after = load_file(full_training.model), copy.weights
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = full_training.folder / "again"
    for tokenizer in full_training.model.parent.glob("tokenizer*"):
        shutil.copytree(tokenizer, again / tokenizer.name)
    shutil.copy(copy.file, again / "model.safetensors")
    flags = (*CACHED, "--network_train_unet_only", "--max_train_steps=2")
    first = training.run(dataset, *flags)
    second = training.run(dataset, *flags, model=again / "model.safetensors")
    assert first.losses == second.losses


def test_encoders_train_at_rates_of_their_own_and_not_at_a_rate_of_0(full_training, dataset):
    flags = (*LIVE, *ENCODERS, "--learning_rate_te1=1e-3", "--learning_rate_te2=0", "--learning_rate_te3=2e-3")
    run = full_training.run(dataset, *flags, "--save_clip", "--save_t5xxl", "--max_train_steps=2")
    encoders = {name: f"text_encoders.{name}.transformer." for name in ("clip_l", "clip_g", "t5xxl")}
    moved = {name: changed(run, full_training.model, prefix) for name, prefix in encoders.items()}
    assert moved["clip_l"] and moved["t5xxl"] and not moved["clip_g"]
    groups = dict(zip(run.trainer.optimizer_group_names(), run.trainer.optimizer.param_groups, strict=True))
    assert {name: group["lr"] for name, group in groups.items()} == {"mmdit": 1e-3, "clip_l": 1e-3, "t5xxl": 2e-3}


def test_a_learning_rate_of_0_freezes_the_mmdit_which_is_saved_as_it_was_stored(full_training, dataset):
    flags = ("--learning_rate=0", "--train_text_encoder", "--learning_rate_te1=1e-3", "--learning_rate_te2=1e-3")
    run = full_training.run(dataset, *LIVE, *flags, "--save_clip", "--max_train_steps=2", "--mixed_precision=bf16")
    names = changed(run, full_training.model)
    assert names and all(name.startswith("text_encoders.clip_") for name in names)
    assert {tensor.dtype for name, tensor in run.weights.items() if name.startswith(MMDIT)} == {torch.float16}


def test_the_projection_of_clip_l_stays_the_identity_that_files_imply(full_training, dataset):
    run = full_training.run(dataset, *LIVE, "--train_text_encoder", "--max_train_steps=2")
    projection = run.trainer.text.encoders["clip_l"].text_projection.weight
    assert torch.equal(projection, torch.eye(len(projection)))


def part_of(name):
    """The part of --block_lr that a tensor of the MMDiT belongs to."""
    if name.startswith("joint_blocks."):
        return 1 + int(name.split(".")[1])
    return -1 if name.startswith("final_layer") else 0


def test_block_lr_gives_each_part_its_rate_and_0_freezes_it(full_training, dataset):
    depth = 2
    half = ("--mixed_precision=bf16", "--full_bf16")  # what is frozen is written as it was stored, in fp16
    run = full_training.run(dataset, *CACHED, *half, "--block_lr=1e-3,0,2e-3,0", "--max_train_steps=2")
    assert run.weights[f"{MMDIT}joint_blocks.0.x_block.attn.qkv.weight"].dtype == torch.float16
    assert run.weights[f"{MMDIT}joint_blocks.1.x_block.attn.qkv.weight"].dtype == torch.bfloat16
    moved = changed(run, full_training.model, MMDIT)
    assert {part_of(name) for name in moved} == {0, depth}
    rates = [group["lr"] for group in run.trainer.optimizer.param_groups]
    assert list(zip(run.trainer.optimizer_group_names(), rates, strict=True)) == [
        ("embedders", 1e-3),
        ("block_01", 2e-3),
    ]


def test_the_last_blocks_can_be_frozen(full_training, dataset):
    run = full_training.run(dataset, *CACHED, "--num_last_block_to_freeze=1", "--max_train_steps=2")
    moved = {part_of(name) for name in changed(run, full_training.model, MMDIT)}
    assert moved == {0, 1, -1}


def test_cached_and_live_encoders_train_alike(full_training, dataset):
    cached = full_training.compare(dataset, *CACHED, "--max_train_steps=3")
    live = full_training.compare(dataset, "--max_train_steps=3")
    assert cached.losses == pytest.approx(live.losses, rel=1e-5)


@pytest.mark.parametrize(
    "flags",
    [
        (*CACHED, "--optimizer_type=Adafactor", "--optimizer_args", "relative_step=False"),
        (*LIVE, *ENCODERS, "--ema_decay=0.9", "--mixed_precision=bf16"),
        (*CACHED, "--mixed_precision=bf16", "--full_bf16", "--optimizer_type=AdamW8bit", "--block_lr=1e-3,1e-3,0,2e-3"),
        (*LIVE, "--cache_text_encoder_outputs", "--train_text_encoder", "--gradient_checkpointing"),
    ],
    ids=["adafactor", "encoders", "full_bf16", "clips_beside_cached_t5"],
)
def test_resumed_equals_unbroken(full_training, dataset, flags):
    flags = (*flags, "--max_train_steps=4", "--save_every_n_steps=2", "--save_state", "--output_name=x", "--save_clip")
    whole = full_training.run(dataset, *flags)
    rest = full_training.run(dataset, *flags, f"--resume={whole.file.parent / 'x-step00000002-state'}")
    assert rest.trainer.continuation.first_step == 2
    for file in whole.file.parent.glob("x*.safetensors"):
        if "step" not in file.name:
            assert (rest.file.parent / file.name).read_bytes() == file.read_bytes(), file.name


def test_weights_are_kept_in_float32_unless_they_shall_train_in_half_precision(full_training, dataset):
    mixed = full_training.run(dataset, *CACHED, "--mixed_precision=bf16", "--max_train_steps=1")
    half = full_training.run(dataset, *CACHED, "--mixed_precision=bf16", "--full_bf16", "--max_train_steps=1")
    name = f"{MMDIT}final_layer.linear.weight"
    assert mixed.weights[name].dtype == torch.float32 and half.weights[name].dtype == torch.bfloat16
    with safe_open(half.file, "pt") as file:
        assert file.get_slice(f"{MMDIT}pos_embed").get_dtype() == "F16"  # as the base model has it
        assert file.get_slice(f"{VAE}decoder.conv_in.weight").get_dtype() == "F16"


def test_a_weight_per_sample_is_a_weight_per_sample(full_training):
    """A batch of a picture and a regularisation picture is the mean of what each of them gives, times its weight."""
    pictures = full_training.pictures(("red_circle.png",)), full_training.pictures(("red_star.png",), to="others")
    subsets = [{"image_dir": str(pictures[0])}, {"image_dir": str(pictures[1]), "is_reg": True}]
    together = full_training.dataset_of({"subsets": subsets}, batch_size=2)
    flags = (*CACHED, "--max_train_steps=1", "--prior_loss_weight=0.25")
    run = full_training.run(together, *flags)
    (batch,) = run.batches
    assert sorted(batch.loss_weights.tolist()) == [0.25, 1.0]
    trainer = run.trainer
    rows = [batch.take(range(index, index + 1)) for index in range(2)]
    whole = trainer.batch_loss(batch).losses
    each = torch.cat([trainer.batch_loss(row).losses for row in rows])
    unweighted = trainer.batch_loss(replace(batch, loss_weights=torch.ones(2))).losses
    assert whole.shape == (2,) and torch.allclose(whole, each, rtol=1e-4)
    assert torch.allclose(whole, unweighted * batch.loss_weights, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (("--block_lr=1e-3,1e-3",), OptionError, "--block_lr takes 4 rates for this model"),
        (("--num_last_block_to_freeze=3",), OptionError, "the model has 2 blocks"),
        (("--learning_rate=0",), OptionError, "nothing is left to train"),
        (("--block_lr=0,0,0,0",), OptionError, "nothing is left to train"),
        (("--block_lr=0,0,1e-3,0", "--num_last_block_to_freeze=1"), OptionError, "nothing is left to train"),
        (("--train_t5xxl",), OptionError, "a trained encoder has no fixed output"),
        (("--train_t5xxl", "--mixed_precision=fp16"), OptionError, "exceed the range of fp16"),
    ],
)
def test_what_cannot_work_is_refused(full_training, dataset, flags, error, message):
    with pytest.raises(error, match=message):
        full_training.run(dataset, *CACHED, *flags)


def test_output_preservation_is_refused_where_no_old_model_is_kept(full_training):
    pictures = str(full_training.pictures())
    own = {"image_dir": pictures, "custom_attributes": {"diff_output_preservation": True}}
    dataset = full_training.dataset_of({"subsets": [own, {"image_dir": str(full_training.pictures(to="more"))}]})
    with pytest.raises(DatasetError, match="diff_output_preservation compares with the model as it was"):
        full_training.run(dataset, *CACHED)


def test_watching_the_whole_model_changes_no_bit_of_it(full_training, dataset):
    """Samples, validation and the average, with a CLIP that trains and T5 from the cache."""
    prompts = full_training.folder / "prompts.txt"
    prompts.write_text("a red star --w 64 --h 64 --s 2 --d 1\n", encoding="utf-8")
    flags = (*CACHED, "--train_text_encoder", "--learning_rate_te2=0", "--max_train_steps=3", "--validation_split=0.25")
    watching = ("--sample_every_n_steps=1", "--validate_every_n_steps=1", "--ema_decay=0.5", "--save_state")
    plain = full_training.run(dataset, *flags)
    watched = full_training.run(dataset, *flags, f"--sample_prompts={prompts}", *watching)
    assert len(list((watched.file.parent / "sample").glob("0*_1.png"))) == 3
    assert any("validation" in line for line in watched.log)
    names = sorted(path.name for path in plain.file.parent.glob("*.safetensors"))
    assert names == ["last.safetensors", "last_clip_l.safetensors"]
    for name in names:
        assert (watched.file.parent / name).read_bytes() == (plain.file.parent / name).read_bytes(), name
