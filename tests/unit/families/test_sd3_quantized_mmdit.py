"""The denoiser in fewer bits: what is rounded, how it is read from every layout, and that files in fp8 stay."""

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from library.errors import CheckpointError, EnvironmentFault
from library.families.quantized import check_form
from library.families.sd3.checkpoint import inspect_files, load_mmdit
from library.families.sd3.family import Sd3Family
from library.families.sd3.key_map import mmdit_to_diffusers
from library.memory import quantize as quantize_module
from library.memory.quantize import quantize
from library.memory.quantized_linear import QuantizedLinear
from library.models.mmdit import MMDiT, MMDiTConfig

CONFIG = MMDiTConfig(
    depth=2, num_heads=2, head_dim=8, qk_norm=True, context_dim=24, pooled_dim=20, position_side=6, dual_attention=(0,)
)
LINEAR = "joint_blocks.1.x_block.mlp.fc1"
CPU = torch.device("cpu")


@pytest.fixture(params=["int8", "fp8", "nf4"])
def form(request):
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes")
    return request.param


def stored(dtype=torch.float16):
    torch.manual_seed(0)
    return {name: value.to(dtype) for name, value in MMDiT(CONFIG).state_dict().items()}


def is_matrix_of_a_block(name):
    return name.startswith("joint_blocks.") and name.endswith(".weight") and ".ln_" not in name


def in_fp8(fp8, has_scales=False):
    """A file in fp8 with scales for all its matrices, or without any."""
    tensors = {}
    for name, value in stored().items():
        scale = value.float().abs().max() / 300 if has_scales and is_matrix_of_a_block(name) else torch.tensor(1.0)
        tensors[name] = (value.float() / scale).to(fp8) if is_matrix_of_a_block(name) or not has_scales else value
        if has_scales and is_matrix_of_a_block(name):
            tensors[f"{name.removesuffix('weight')}scale_weight"] = scale
    return tensors


@pytest.fixture
def files(tmp_path):
    def write(tensors, name="sd3.safetensors"):
        save_file({key: value.contiguous().clone() for key, value in tensors.items()}, tmp_path / name)
        return inspect_files(tmp_path / name)

    return write


def prediction(model, dtype=torch.bfloat16):
    draw = torch.Generator().manual_seed(0)
    shapes = ((2, 16, 8, 8), (2, 5, 24), (2, 20))
    latents, context, pooled = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
    with torch.no_grad():
        return model(latents, torch.tensor([300.0, 800.0]), context, pooled)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("mmap", [True, False])
def test_linear_layers_of_the_blocks_are_rounded_and_all_else_is_as_it_was(files, form, mmap):
    found = files(stored())
    narrow, wide = (load_mmdit(found, torch.bfloat16, "cpu", mmap, form=kept) for kept in (form, None))
    layers = {name for name, module in narrow.named_modules() if isinstance(module, QuantizedLinear)}
    assert {f"{name}.weight" for name in layers} == {name for name in stored() if is_matrix_of_a_block(name)}
    expected = dict(wide.state_dict())
    for name in layers:
        weight, scale = quantize(stored()[f"{name}.weight"], form)
        expected |= {f"{name}.weight": weight, f"{name}.scale": scale}
    assert_same(narrow.state_dict(), expected)
    assert not any(parameter.requires_grad for parameter in narrow.parameters())


def test_a_diffusers_file_gives_the_same(files, form):
    published, diffusers = files(stored()), files(mmdit_to_diffusers(stored()), "diffusers.safetensors")
    assert diffusers.denoiser.is_diffusers
    loaded = [load_mmdit(found, torch.float32, "cpu", form=form) for found in (published, diffusers)]
    assert_same(*(model.state_dict() for model in loaded))


@pytest.mark.parametrize("layout", ["published", "diffusers"])
@pytest.mark.parametrize("fp8", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_file_in_fp8_stays_bit_by_bit_and_says_what_it_says_when_it_is_read_wide(files, fp8, layout):
    content = in_fp8(fp8)
    found = files(content if layout == "published" else mmdit_to_diffusers(content))
    narrow, wide = (load_mmdit(found, torch.bfloat16, "cpu", form=kept) for kept in ("fp8", None))
    assert torch.equal(narrow.get_submodule(LINEAR).weight.view(fp8).float(), content[f"{LINEAR}.weight"].float())
    assert torch.equal(prediction(narrow), prediction(wide))


def test_scales_of_a_file_in_fp8_stay_as_well(files):
    content = in_fp8(torch.float8_e4m3fn, has_scales=True)
    found = files(content)
    narrow, wide = (load_mmdit(found, torch.bfloat16, "cpu", form=kept) for kept in ("fp8", None))
    layer = narrow.get_submodule(LINEAR)
    assert (layer.scale == content[f"{LINEAR}.scale_weight"]).all()
    assert torch.equal(prediction(narrow), prediction(wide))


def test_a_file_in_fp8_is_rounded_to_other_forms_from_what_it_means(files):
    content = in_fp8(torch.float8_e4m3fn, has_scales=True)
    layer = load_mmdit(files(content), torch.float32, "cpu", form="int8").get_submodule(LINEAR)
    meant = content[f"{LINEAR}.weight"].float() * content[f"{LINEAR}.scale_weight"]
    assert torch.equal(layer.weight, quantize(meant, "int8")[0])


def test_numbers_that_are_not_finite_are_refused_in_fp8_too(files):
    content = in_fp8(torch.float8_e4m3fn)
    content[f"{LINEAR}.weight"][3, 2] = float("nan")
    with pytest.raises(CheckpointError, match=rf"{LINEAR}\.weight has NaN or infinite values"):
        load_mmdit(files(content), torch.bfloat16, "cpu", form="fp8")


def test_while_it_is_read_each_matrix_is_wide_alone(files, monkeypatch):
    seen, alive = [], []

    def recorded(weight, *rest):
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(weight))
        return quantize(weight, *rest)

    monkeypatch.setattr(quantize_module, "quantize", recorded)
    load_mmdit(files(mmdit_to_diffusers(in_fp8(torch.float8_e4m3fn))), torch.float32, "cpu", form="int8")
    assert alive == [0] * len([name for name in stored() if is_matrix_of_a_block(name)])


def family(form):
    return Sd3Family(pretrained=Path("sd3.safetensors"), dropout_rates={}, flow={}, weights_format=form)


def test_what_changes_the_denoiser_changes_it_before_it_is_rounded(files, form):
    small = {name: torch.full_like(value, 1e-3) for name, value in stored().items() if is_matrix_of_a_block(name)}

    def change(model):
        for name, value in small.items():
            model.get_parameter(name).data += value

    changed = files({name: value + small.get(name, 0) for name, value in stored().items()}, "changed.safetensors")
    expected = family(form).load_denoiser(changed, torch.bfloat16, CPU)
    found = family(form).load_denoiser(files(stored()), torch.bfloat16, CPU, change)
    assert_same(found.state_dict(), expected.state_dict())
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert type(found.final_layer.linear) is nn.Linear


def test_without_a_form_the_change_happens_all_the_same(files):
    def change(model):
        model.get_parameter(f"{LINEAR}.weight").data.zero_()

    found = family(None).load_denoiser(files(stored()), torch.bfloat16, CPU, change)
    assert not found.get_parameter(f"{LINEAR}.weight").any()


def test_a_device_that_does_not_know_a_form_gets_int8_advised():
    for form in (None, "int8"):
        check_form(form, torch.device("mps"))
    for form in ("fp8", "nf4"):
        check_form(form, torch.device("cuda"))
        with pytest.raises(EnvironmentFault, match=f"--base_weights_dtype {form}: .* Use int8"):
            check_form(form, torch.device("mps"))
