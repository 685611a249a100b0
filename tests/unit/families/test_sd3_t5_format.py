"""T5 in 8 bits and on other devices: how near its states are, what it takes, and what is refused before it is read."""

import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from library.errors import EnvironmentFault, OptionError
from library.families.sd3 import t5_format
from library.families.sd3.family import Sd3Family
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.families.sd3.t5_format import T5Format, load_t5
from library.memory import quantize as quantize_module
from library.memory.quantized_linear import QuantizedLinear
from library.options.spec import parse_options

CPU = torch.device("cpu")
CAPTIONS = ["a red circle", "a blue square on white, with a star beside it", ""]
ERROR = {"int8": 0.02, "fp8": 0.06}  # of a caption's states, relative


def family_of(model, *flags):
    arguments = [f"--pretrained_model_name_or_path={model}", "--output_dir=out", "--dataset_config=none.toml"]
    arguments += ["--network_module=networks.lora", "--t5xxl_max_token_length=16", *flags]
    return Sd3Family.from_options(parse_options(Sd3NetworkOptions, arguments, **NETWORK_SCRIPT))


def loaded(family, dtype=torch.float32):
    return family.load_text_encoders(family.inspect(), dtype, CPU, ["t5xxl"])["t5xxl"]


@torch.no_grad()
def states(family, t5):
    tokens = family.tokenize(family.load_tokenizers(family.inspect(), ["t5xxl"]), CAPTIONS)
    return family.encode_text({"t5xxl": t5}, tokens)["t5xxl"]


def num_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_states_in_8_bits_are_near_those_of_the_wide_encoder(tiny_sd3, form, dtype):
    wide = family_of(tiny_sd3)
    expected = states(wide, loaded(wide))
    family = family_of(tiny_sd3, f"--t5xxl_dtype={form}")
    found = states(family, loaded(family, dtype))
    assert found.dtype == dtype
    error = (found.float() - expected).norm(dim=(1, 2)) / expected.norm(dim=(1, 2))
    assert (error > 1e-4).all() and (error < ERROR[form]).all()


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_linear_layers_take_a_byte_a_number_and_all_else_stays_wide(tiny_sd3, form):
    t5 = loaded(family_of(tiny_sd3, f"--t5xxl_dtype={form}"), torch.bfloat16)
    layers = [module for module in t5.modules() if isinstance(module, QuantizedLinear)]
    assert len(layers) == 7 * len(t5.encoder.block)
    assert num_bytes(layer.weight for layer in layers) == sum(layer.weight.numel() for layer in layers)
    assert {parameter.dtype for parameter in t5.parameters()} == {torch.bfloat16}
    assert not any(type(module) is torch.nn.Linear for module in t5.modules())


def test_second_matrix_of_the_feed_forward_layers_computes_in_float32_in_fp16(tiny_sd3):
    family = family_of(tiny_sd3, "--t5xxl_dtype=int8")
    t5 = loaded(family, torch.float16)
    for name, layer in t5.named_modules():
        if isinstance(layer, QuantizedLinear):
            assert layer.dtype == (torch.float32 if name.endswith(".wo") else torch.float16)
            if name.endswith(".wo"):
                layer.scale *= 1e5  # sums beyond 65504, as the real T5's
    assert states(family, t5).isfinite().all()


def test_while_it_is_read_each_matrix_is_wide_alone(tiny_sd3, monkeypatch):
    seen, alive = [], []

    def recorded(weight, *rest):
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(weight))
        return quantize(weight, *rest)

    part, quantize = family_of(tiny_sd3).inspect().t5xxl, quantize_module.quantize
    monkeypatch.setattr(quantize_module, "quantize", recorded)
    load_t5(part, T5Format(torch.float32, "int8"), CPU, mmap=False)
    assert alive == [0] * 14


@pytest.mark.parametrize("layout", ["plain", "scaled"])
def test_a_file_in_fp8_is_kept_as_it_is(tiny_sd3_factory, tmp_path, layout):
    separate = tiny_sd3_factory(bundle=False)
    tensors = {}
    for name, tensor in load_file(separate.t5xxl).items():
        is_matrix = name.endswith(("q.weight", "k.weight", "v.weight", "o.weight", "wi_0.weight", "wi_1.weight"))
        scale = tensor.float().abs().max() / 400 if is_matrix and layout == "scaled" else torch.tensor(1.0)
        tensors[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        if layout == "scaled" and is_matrix:
            tensors[f"{name.removesuffix('weight')}scale_weight"] = scale
    file = tmp_path / "t5.safetensors"
    save_file(tensors, file)
    files = [f"--{name}={getattr(separate, name)}" for name in ("clip_l", "clip_g", "vae")]
    wide = family_of(separate.model, *files, f"--t5xxl={file}")
    narrow = replace(wide, t5_dtype="fp8")
    assert torch.equal(states(narrow, loaded(narrow)), states(wide, loaded(wide)))


def test_cache_headers_name_the_format_only_where_it_changes_the_numbers(tiny_sd3):
    plain, bf16 = family_of(tiny_sd3), torch.bfloat16
    files, names = plain.inspect(), ("clip_l", "clip_g", "t5xxl")
    before = plain.text_identity(files, names, bf16)
    assert "t5xxl_dtype" not in before
    told = {}
    for form in ("bf16", "fp32", "fp8", "fp8_e4m3fn", "int8"):
        family = replace(plain, t5_dtype=form)
        found = family.text_identity(files, names, bf16)
        told[form] = found.pop("t5xxl_dtype", None)
        assert found == before
        assert family.text_settings(bf16).get("t5xxl_dtype") == told[form]
        assert family.text_identity(files, ["clip_l"], bf16) == plain.text_identity(files, ["clip_l"], bf16)
    assert told == {"bf16": None, "fp32": "torch.float32", "fp8": "fp8", "fp8_e4m3fn": "fp8", "int8": "int8"}
    elsewhere = replace(plain, t5_device="cpu")
    assert elsewhere.text_identity(files, names, bf16) == before


def test_on_a_cpu_a_t5_of_its_own_format_does_no_arithmetic_in_fp16(tiny_sd3):
    t5 = loaded(family_of(tiny_sd3, "--t5xxl_dtype=fp16"))
    assert {parameter.dtype for parameter in t5.parameters()} == {torch.float32}


def test_wide_formats_are_those_asked_for(tiny_sd3):
    for form, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        family = family_of(tiny_sd3, f"--t5xxl_dtype={form}")
        assert next(loaded(family, torch.bfloat16).parameters()).dtype == dtype
        clip = family.load_text_encoders(family.inspect(), torch.bfloat16, CPU, ["clip_l"])["clip_l"]
        assert next(clip.parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "1", "cuda,cpu"])
def test_what_is_no_device_is_refused_with_the_options(tiny_sd3, name):
    with pytest.raises(OptionError, match=f"--t5xxl_device needs a device such as cpu, cuda or cuda:1, got '{name}'"):
        family_of(tiny_sd3, f"--t5xxl_device={name}")


def test_devices_that_are_not_there_are_refused(tiny_sd3):
    family = family_of(tiny_sd3, "--t5xxl_device=cuda:99")
    with pytest.raises(EnvironmentFault, match=r"--t5xxl_device cuda:99: there is no such device, only cpu"):
        family.check_devices(CPU)
    family_of(tiny_sd3, "--t5xxl_device=cpu").check_devices(CPU)
    family_of(tiny_sd3).check_devices(CPU)


def test_apples_gpus_get_int8_advised(tiny_sd3):
    with pytest.raises(EnvironmentFault, match="--t5xxl_dtype fp8: this device does not know fp8. Use int8"):
        family_of(tiny_sd3, "--t5xxl_dtype=fp8").check_devices(torch.device("mps"))
    family_of(tiny_sd3, "--t5xxl_dtype=fp8", "--t5xxl_device=cpu").check_devices(torch.device("mps"))


def test_where_there_is_no_room_the_cpu_goes_before_the_option():
    assert t5_format.t5_device("cuda:1", torch.device("cuda")) == torch.device("cuda:1")
    assert t5_format.t5_device("cuda:1", CPU) == CPU
    assert t5_format.t5_device(None, torch.device("cuda")) == torch.device("cuda")


@pytest.mark.parametrize("flags", [("--t5xxl_dtype=int8",), ("--t5xxl_dtype=bf16",), ("--t5xxl_device=cpu",)])
def test_a_t5_whose_weights_change_is_not_elsewhere_and_has_no_format_of_its_own(tiny_sd3, flags):
    family = family_of(tiny_sd3, *flags)
    option = flags[0].replace("=", " ")
    with pytest.raises(OptionError, match=rf"^{option}: T5 trains, .*\. Leave one of them out\.$"):
        family.check_changed_encoders(["clip_l", "t5xxl"], "trains")
    family.check_changed_encoders(["clip_l"], "trains")


def test_memory_that_is_foreseen_is_that_of_8_bits(tiny_sd3):
    family = family_of(tiny_sd3)
    files = family.inspect()
    assert replace(family, t5_dtype="int8").encoder_bytes(files, "t5xxl") == family.encoder_bytes(files, "t5xxl") / 2
    assert replace(family, t5_dtype="int8").encoder_bytes(files, "clip_g") == family.encoder_bytes(files, "clip_g")
