"""Training a network beside a denoiser in 8 or 4 bits: near the wide one, and exact when it goes on."""

import pytest

from library.errors import OptionError
from library.memory.quantized_linear import QuantizedLinear

CACHED = ("--network_train_unet_only", "--cache_latents", "--cache_text_encoder_outputs")
FLAGS = ("--max_train_steps=4", "--save_every_n_steps=2", "--save_state", "--output_name=x")
NEAR = {"fp8": 0.01, "int8": 0.005, "nf4": 0.03}  # losses to those of the wide model, relative


@pytest.fixture
def dataset(training):
    return training.dataset(training.pictures())


def forms(model):
    return {module.form for module in model.modules() if isinstance(module, QuantizedLinear)}


def test_it_learns_what_the_wide_model_learns_and_goes_on_to_the_same_bytes(training, dataset):
    pytest.importorskip("bitsandbytes")
    wide = training.unet_only(dataset, "--max_train_steps=4")
    for form, bound in NEAR.items():
        flag = f"--base_weights_dtype={form}"
        whole = training.unet_only(dataset, *FLAGS, "--fp8_base" if form == "fp8" else flag)
        assert forms(whole.trainer.denoiser) == {form}
        assert whole.losses != wide.losses
        assert whole.losses == pytest.approx(wide.losses, rel=bound)
        if form == "int8":
            continue
        rest = training.unet_only(dataset, *FLAGS, flag, f"--resume={whole.file.parent / 'x-step00000002-state'}")
        assert rest.trainer.continuation.first_step == 2
        assert rest.file.read_bytes() == whole.file.read_bytes()
    with pytest.raises(OptionError, match=r"--base_weights_dtype: int8, was nf4"):
        state = whole.file.parent / "x-step00000002-state"
        training.unet_only(dataset, *FLAGS, "--base_weights_dtype=int8", f"--resume={state}")


def test_text_encoders_that_train_beside_it_stay_as_they_are(training, dataset):
    run = training.run(dataset, "--max_train_steps=2", "--fp8_base_unet", "--mixed_precision=bf16")
    assert forms(run.trainer.denoiser) == {"fp8"}
    assert not any(forms(encoder) for encoder in run.trainer.text.encoders.values())
    for part in ("_te1_", "_te2_", "_unet_"):
        assert any(value.any() for name, value in run.weights.items() if part in name and "lora_up" in name), part


def test_base_weights_are_merged_before_the_sum_is_rounded(training, dataset):
    base = training.unet_only(dataset, "--max_train_steps=6", "--learning_rate=1e-2")
    one_step = ("--max_train_steps=1", f"--base_weights={base.file}")
    wide, narrow = (training.unet_only(dataset, *one_step, *flags) for flags in ((), ("--base_weights_dtype=int8",)))
    assert forms(narrow.trainer.denoiser) == {"int8"}
    assert narrow.losses == pytest.approx(wide.losses, rel=NEAR["int8"])
    assert narrow.losses != pytest.approx(base.losses[:1], rel=0.05)  # which is that of the model alone


def test_adapters_of_lycoris_train_in_bypass_mode_and_are_refused_otherwise(training, refused, dataset):
    pytest.importorskip("lycoris")
    flags = ("--network_module=lycoris.kohya", "--network_args", "algo=lokr", "factor=4", "preset=full")
    shown = refused(dataset, *CACHED, "--base_weights_dtype=int8", *flags)
    assert shown.code == 2
    assert "--base_weights_dtype int8: lycoris.kohya would compute with the bits" in shown.shown
    run = training.unet_only(dataset, "--max_train_steps=2", "--base_weights_dtype=int8", *flags, "bypass_mode=True")
    factors = [value for name, value in run.weights.items() if "joint_blocks" in name and name.endswith("lokr_w2_b")]
    assert factors and all(factor.any() for factor in factors)  # they begin at zero
