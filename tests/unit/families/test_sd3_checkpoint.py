"""Parts of SD3 models in small real files: every layout, fp8, precision, identity, and files that do not fit."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from library.errors import CheckpointError
from library.families.sd3.checkpoint import inspect_files, load_mmdit, part_identity, read_part
from library.families.sd3.key_map import mmdit_to_diffusers
from library.models.mmdit import MMDiT, MMDiTConfig

CONFIG = MMDiTConfig(
    depth=2, num_heads=2, head_dim=4, qk_norm=True, context_dim=24, pooled_dim=20, position_side=6, dual_attention=(0,)
)
PREFIX = "model.diffusion_model."
LINEAR = "joint_blocks.0.x_block.mlp.fc1"


def tensor(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mmdit():
    torch.manual_seed(0)
    return {name: value.half() for name, value in MMDiT(CONFIG).state_dict().items()}


def vae(channels=16, seed=0):
    return {
        "encoder.conv_in.weight": tensor(4, 3, 3, 3, seed=seed),
        "encoder.mid.attn_1.q.weight": tensor(4, 4, 1, 1, seed=seed),
        "decoder.conv_in.weight": tensor(4, channels, 3, 3, seed=seed),
    }


def clip(width, seed=0, has_projection=True):
    tensors = {
        "text_model.embeddings.token_embedding.weight": tensor(30, width, seed=seed),
        "text_model.encoder.layers.0.self_attn.q_proj.weight": tensor(width, width, seed=seed),
        "text_model.final_layer_norm.weight": tensor(width, seed=seed),
    }
    return tensors | ({"text_projection.weight": tensor(width, width, seed=seed)} if has_projection else {})


def t5(width=24, seed=0):
    return {
        "shared.weight": tensor(30, width, seed=seed),
        "encoder.block.0.layer.0.SelfAttention.q.weight": tensor(width, width, seed=seed),
    }


def under(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def bundle():
    return {
        **under(PREFIX, mmdit()),
        **under("first_stage_model.", vae()),
        **under("text_encoders.clip_l.transformer.", clip(8, has_projection=False)),
        **under("text_encoders.clip_g.transformer.", clip(12)),
        **under("text_encoders.t5xxl.transformer.", t5()),
    }


@pytest.fixture
def save(tmp_path):
    def write(tensors, name="sd3.safetensors", metadata=None):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path, metadata)
        return path

    return write


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("prefix", [PREFIX, "", "model.", "net."])
@pytest.mark.parametrize("mmap", [True, False])
def test_mmdit_is_loaded_under_any_prefix(save, prefix, mmap):
    files = inspect_files(save(under(prefix, mmdit()) | {"epoch": torch.zeros(1)}))
    model = load_mmdit(files, torch.float16, "cpu", mmap=mmap)
    assert_same(model.state_dict(), mmdit())
    assert files.config == CONFIG
    assert files.variant == "5-medium"
    assert not any(value.is_meta or value.requires_grad for value in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("prefix", ["", PREFIX, "transformer."])
def test_diffusers_transformer_is_loaded_under_published_names(save, prefix):
    files = inspect_files(save(under(prefix, mmdit_to_diffusers(mmdit()))))
    assert_same(load_mmdit(files, torch.float16, "cpu").state_dict(), mmdit())


@pytest.mark.parametrize("num_shards", [1, 2])
def test_diffusers_folder_is_read_with_its_shards(save, tmp_path, num_shards):
    weights = list(mmdit_to_diffusers(mmdit()).items())
    names = [f"diffusion_pytorch_model-{i + 1:05}-of-{num_shards:05}.safetensors" for i in range(num_shards)]
    where = {}
    for index, name in enumerate(names):
        shard = dict(weights[index::num_shards])
        save(shard, f"folder/transformer/{name}")
        where |= dict.fromkeys(shard, name)
    index_file = tmp_path / "folder" / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index_file.write_text(json.dumps({"weight_map": where}))
    flat = {name.removeprefix("text_model."): value for name, value in clip(8).items()}
    save(flat, "folder/text_encoder/model.safetensors")
    save(clip(12, seed=5), "folder/text_encoder_2/model.fp16.safetensors")
    save(clip(12), "folder/text_encoder_2/model.safetensors")
    files = inspect_files(tmp_path / "folder")
    assert_same(load_mmdit(files, torch.float16, "cpu").state_dict(), mmdit())
    assert_same(read_part(files.clip_l), clip(8, has_projection=False))
    assert_same(read_part(files.clip_g), clip(12))
    assert files.t5xxl is None
    assert len(part_identity(files.denoiser)) == 64


def test_bundled_parts_lose_their_whole_prefix(save):
    files = inspect_files(save(bundle()))
    assert_same(read_part(files.vae), vae())
    assert_same(read_part(files.clip_l), clip(8, has_projection=False))
    assert_same(read_part(files.clip_g), clip(12))
    assert_same(read_part(files.t5xxl), t5())


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", ""])
def test_vae_is_found_under_every_prefix_in_use(save, prefix):
    model = under(PREFIX, mmdit())
    assert_same(read_part(inspect_files(save(model | under(prefix, vae()))).vae), vae())
    separate = save(under(prefix, vae(seed=1)), "vae.safetensors")
    assert_same(read_part(inspect_files(save(model), vae=separate).vae), vae(seed=1))


def test_parts_that_are_not_there_are_none(save):
    files = inspect_files(save(under(PREFIX, mmdit())))
    assert (files.vae, files.clip_l, files.clip_g, files.t5xxl) == (None,) * 4


def test_given_files_win_over_bundled_ones(save):
    own = {"vae": vae(seed=1), "clip_l": clip(8, seed=1), "clip_g": clip(12, seed=1), "t5xxl": t5(seed=1)}
    paths = {kind: save(tensors, f"{kind}.safetensors") for kind, tensors in own.items()}
    files = inspect_files(save(bundle()), **paths)
    del own["clip_l"]["text_projection.weight"]  # SD3 does not use it
    for kind, tensors in own.items():
        assert_same(read_part(getattr(files, kind)), tensors)


def test_encoder_is_taken_out_of_a_file_of_several(save):
    other = save(bundle() | under("text_encoders.clip_l.transformer.", clip(8, seed=3)), "other.safetensors")
    files = inspect_files(save(under(PREFIX, mmdit())), clip_l=other, clip_g=other, t5xxl=other)
    assert_same(read_part(files.clip_l), clip(8, seed=3, has_projection=False))
    assert_same(read_part(files.clip_g), clip(12))


def test_tensors_that_encoders_do_not_use_are_left_out(save):
    extra = {"text_model.embeddings.position_ids": torch.arange(77)[None], "logit_scale": torch.zeros(())}
    vision = {"vision_model.embeddings.class_embedding": torch.zeros(3)}
    path = save(clip(8, has_projection=False) | extra | vision, "clip.safetensors")
    files = inspect_files(save(under(PREFIX, mmdit())), clip_l=path)
    assert_same(read_part(files.clip_l), clip(8, has_projection=False))


def test_precision_is_the_one_asked_for_and_the_position_table_stays_as_stored(save):
    files = inspect_files(save(bundle()))
    model = load_mmdit(files, torch.bfloat16, "cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.pos_embed, mmdit()["pos_embed"])
    assert {value.dtype for value in read_part(files.t5xxl, dtype=torch.float16).values()} == {torch.float16}


@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_plain_fp8_is_widened_without_change(save, fp8):
    stored = {name: value.to(fp8) for name, value in t5().items()}
    part = inspect_files(save(under(PREFIX, mmdit())), t5xxl=save(stored, "t5.safetensors")).t5xxl
    for dtype, expected in ((None, torch.bfloat16), (torch.float16, torch.float16), (torch.float32, torch.float32)):
        read = read_part(part, dtype=dtype)
        for name, value in stored.items():
            assert read[name].dtype == expected
            assert torch.equal(read[name].float(), value.float())


def scaled(tensors, layout):
    """The same tensors with the linear layer in fp8 with a scale, and what it stands for."""
    weight = tensors[f"{LINEAR}.weight"]
    scale = weight.float().abs().max() / 400
    stored = (weight.float() / scale).to(torch.float8_e4m3fn)
    extra = {
        "old": {f"{LINEAR}.scale_weight": scale, f"{LINEAR}.scale_input": torch.ones(()), "scaled_fp8": stored[:0, 0]},
        "new": {
            f"{LINEAR}.weight_scale": scale,
            f"{LINEAR}.input_scale": torch.ones(1),
            f"{LINEAR}.comfy_quant": torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8),
        },
    }[layout]
    return tensors | {f"{LINEAR}.weight": stored} | extra, stored.float() * scale


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_scaled_fp8_is_multiplied_out(save, layout, prefix):
    tensors, expected = scaled(mmdit(), layout)
    files = inspect_files(save(under(prefix, tensors)))
    model = load_mmdit(files, torch.float32, "cpu")
    assert torch.equal(model.get_parameter(f"{LINEAR}.weight"), expected)
    original = mmdit()[f"{LINEAR}.weight"].float()
    assert (expected - original).abs().max() < 0.07 * original.abs().max()
    assert read_part(files.denoiser)[f"{LINEAR}.weight"].dtype == torch.float32


def test_scale_per_row_is_applied_to_rows(save):
    tensors, _ = scaled(mmdit(), "new")
    rows = torch.rand(32) + 0.5
    files = inspect_files(save(under(PREFIX, tensors | {f"{LINEAR}.weight_scale": rows})))
    expected = tensors[f"{LINEAR}.weight"].float() * rows[:, None]
    assert torch.equal(read_part(files.denoiser)[f"{LINEAR}.weight"], expected)


def test_other_quantisation_is_refused_by_name(save):
    tensors, _ = scaled(mmdit(), "new")
    marked = tensors | {f"{LINEAR}.comfy_quant": torch.tensor(list(b'{"format":"nvfp4"}'), dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match=f"{LINEAR} is quantised as nvfp4"):
        inspect_files(save(under(PREFIX, marked)))
    metadata = {"_quantization_metadata": json.dumps({"layers": {LINEAR: {"format": "int8"}}})}
    with pytest.raises(CheckpointError, match=f"{LINEAR} is quantised as int8"):
        inspect_files(save(under(PREFIX, mmdit()), metadata=metadata))
    integers = mmdit() | {f"{LINEAR}.weight": torch.zeros(32, 8, dtype=torch.uint8)}
    with pytest.raises(CheckpointError, match=rf"{LINEAR}\.weight is stored as U8"):
        inspect_files(save(under(PREFIX, integers)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weight_that_is_not_finite_is_named(save, value):
    broken = mmdit()
    broken[f"{LINEAR}.bias"][3] = value
    files = inspect_files(save(under(PREFIX, broken)))
    with pytest.raises(CheckpointError, match=rf"{LINEAR}\.bias has NaN or infinite values as float16"):
        load_mmdit(files, torch.float16, "cpu")


def test_weight_too_large_for_fp16_is_named(save):
    files = inspect_files(save(under(PREFIX, mmdit()) | under("vae.", {n: v * 1e6 for n, v in vae().items()})))
    read_part(files.vae, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"conv_in\.weight has NaN or infinite values as float16.*bf16"):
        read_part(files.vae, dtype=torch.float16)


def test_identity_is_of_the_weights_not_of_where_they_lie(save):
    bundled = inspect_files(save(bundle())).t5xxl
    alone = inspect_files(save(bundle()), t5xxl=save(t5(), "t5.safetensors")).t5xxl
    other = inspect_files(save(bundle()), t5xxl=save(t5(seed=1), "other.safetensors")).t5xxl
    assert part_identity(bundled) == part_identity(alone) != part_identity(other)


def test_identity_depends_on_the_scales_of_fp8(save):
    tensors, _ = scaled(mmdit(), "old")
    one = part_identity(inspect_files(save(tensors)).denoiser)
    twice = tensors | {f"{LINEAR}.scale_weight": tensors[f"{LINEAR}.scale_weight"] * 2}
    assert part_identity(inspect_files(save(twice, "twice.safetensors")).denoiser) != one


def test_faults_of_the_mmdit_are_listed(save):
    tensors = mmdit()
    del tensors["joint_blocks.1.x_block.attn.proj.bias"]
    tensors["joint_blocks.1.x_block.attn3.qkv.weight"] = torch.zeros(1)
    tensors["final_layer.linear.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError) as error:
        inspect_files(save(under(PREFIX, tensors)))
    message = str(error.value)
    assert "1 missing (joint_blocks.1.x_block.attn.proj.bias)" in message
    assert "1 unknown (joint_blocks.1.x_block.attn3.qkv.weight)" in message
    assert "1 of another shape (final_layer.linear.bias)" in message


def test_incomplete_diffusers_transformer_is_named(save):
    tensors = mmdit_to_diffusers(mmdit())
    del tensors["transformer_blocks.1.attn.to_k.weight"]
    with pytest.raises(CheckpointError, match=r"transformer_blocks\.1\.attn\.to_k\.weight"):
        inspect_files(save(tensors))


def test_unknown_tensors_beside_the_model_are_counted_and_ignored(save, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("easel"), "propagate", True)
    with caplog.at_level(logging.INFO):
        inspect_files(save(bundle() | {"epoch": torch.zeros(1), "optimizer.step": torch.zeros(1)}))
    assert "2 tensors are not used (epoch, optimizer.step)" in caplog.text


def test_lora_controlnet_and_unknown_files_are_not_taken_for_models(save):
    lora = {"lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": torch.zeros(2, 8)}
    with pytest.raises(CheckpointError, match=r"is a LoRA or another adapter.*--network_weights"):
        inspect_files(save(lora))
    control = mmdit_to_diffusers(mmdit()) | {"controlnet_blocks.0.weight": torch.zeros(8, 8)}
    with pytest.raises(CheckpointError, match="is a ControlNet"):
        inspect_files(save(control))
    with pytest.raises(CheckpointError, match="is no model that is known here"):
        inspect_files(save({"weight": torch.zeros(1)}))


def test_clips_that_do_not_add_up_to_the_pooled_width_are_refused(save):
    path = save(clip(13), "clip_g.safetensors")
    with pytest.raises(CheckpointError, match="widths 8 and 13, which must add up to 20"):
        inspect_files(save(bundle()), clip_g=path)


def test_clips_given_the_wrong_way_round_are_refused(save):
    small, large = save(clip(8), "small.safetensors"), save(clip(12), "large.safetensors")
    with pytest.raises(CheckpointError) as error:
        inspect_files(save(bundle()), clip_l=large, clip_g=small)
    assert "--clip_l" in str(error.value)
    assert "--clip_g" in str(error.value)


def test_t5_of_another_width_or_kind_is_refused(save):
    with pytest.raises(CheckpointError, match=r"--t5xxl: .* width 16, but this model needs 24"):
        inspect_files(save(bundle()), t5xxl=save(t5(16), "t5.safetensors"))
    umt5 = t5() | {"encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="UMT5"):
        inspect_files(save(bundle()), t5xxl=save(umt5, "umt5.safetensors"))


def test_encoder_in_open_clip_layout_is_named(save):
    open_clip = {"transformer.resblocks.0.ln_1.weight": torch.zeros(12), "text_projection": torch.zeros(12, 12)}
    with pytest.raises(CheckpointError, match=r"open_clip's layout\. Use a file with Hugging Face names"):
        inspect_files(save(bundle()), clip_g=save(open_clip, "g.safetensors"))


def test_vae_without_encoder_is_refused(save):
    decoder = {name: value for name, value in vae().items() if name.startswith("decoder")}
    with pytest.raises(CheckpointError, match="only the decoder"):
        inspect_files(save(bundle()), vae=save(decoder, "vae.safetensors"))


def test_every_file_that_cannot_be_opened_is_named(save, tmp_path):
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html><html></html>")
    with pytest.raises(CheckpointError) as error:
        inspect_files(tmp_path / "none.safetensors", clip_l=page, t5xxl=tmp_path)  # a folder of other files
    starts = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert starts == ["--pretrained_model_name_or_path", "--clip_l", "--t5xxl"]
