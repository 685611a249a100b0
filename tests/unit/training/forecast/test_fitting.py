"""--fit takes the cheapest settings that suffice, in an order, and never touches what was given."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.errors import OptionError
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.spec import parse_options
from library.training.forecast.figures import GIB, SAMPLES, TRAINING, Forecast, Phase
from library.training.forecast.fitting import Fitting, flags_of
from library.training.forecast.ladder import Rung, swap_rung, with_values

DEPTH = 24
NEEDED = ("--pretrained_model_name_or_path=m", "--output_dir=o", "--network_module=networks.lora", "--train_data_dir=d")
OPTIONS = parse_options(Sd3NetworkOptions, NEEDED, **NETWORK_SCRIPT)
CHECKPOINTING = Rung(
    tuple({"gradient_checkpointing": True, "gradient_checkpointing_every_n_blocks": n} for n in (2, 1))
)
RUNGS = (Rung(({"cache_latents": True},)), CHECKPOINTING, swap_rung(DEPTH), Rung(({"base_weights_dtype": "fp8"},)))


def options_with(*flags):
    return parse_options(Sd3NetworkOptions, [*NEEDED, *flags], **NETWORK_SCRIPT)


def forecast(options):
    """Of a model of 10 GiB, half of it in blocks' activations, with samples that need fewer of them."""
    training, memory = options.training, options.memory
    weights = 4 * GIB // (2 if memory.weights_format else 1)
    activations = 6 * GIB // (training.gradient_checkpointing_every_n_blocks + 1 if training.recomputes else 1)
    if training.recomputes and training.gradient_checkpointing_every_n_blocks == 1:
        activations = GIB
    vae = 0 if options.cache.caches_latents else GIB // 2

    def left(swapped):
        return weights - weights * max(0, (swapped or 0) - 2) // DEPTH

    in_samples = memory.blocks_to_swap if memory.sample_blocks_to_swap is None else memory.sample_blocks_to_swap
    phases = (
        Phase(TRAINING, left(memory.blocks_to_swap) + activations + vae),
        Phase(SAMPLES, left(in_samples) + GIB // 2),
    )
    return Forecast(phases, 0, 0, False, "1 at 64x64")


def fitting(limit, rungs=RUNGS):
    return Fitting(limit, "a card", "--fit X", rungs, forecast)


@settings(max_examples=25)
@given(st.integers(2 * GIB, 11 * GIB))
def test_what_is_chosen_fits_and_a_larger_device_is_made_use_of(limit):
    chosen, lines = fitting(limit).fit(OPTIONS)
    more, _ = fitting(limit + GIB).fit(OPTIONS)
    assert forecast(chosen).peak.device <= min(limit, forecast(more).peak.device)
    assert lines


def test_settings_come_in_their_order_with_figures_before_and_after():
    chosen, lines = fitting(6 * GIB).fit(OPTIONS)
    assert lines == [
        "--cache_latents: 10.5 GiB -> 10.0 GiB",
        "--gradient_checkpointing --gradient_checkpointing_every_n_blocks=2: 10.0 GiB -> 6.0 GiB",
    ]
    flags = set(flags_of(OPTIONS, chosen))
    assert flags == {"--cache_latents", "--gradient_checkpointing", "--gradient_checkpointing_every_n_blocks=2"}


def test_the_least_number_of_blocks_is_swapped_and_fewer_while_samples_are_drawn():
    chosen, lines = fitting(4 * GIB).fit(OPTIONS)
    number = chosen.memory.blocks_to_swap
    assert forecast(with_values(chosen, {"blocks_to_swap": number - 1})).peak.device > 4 * GIB
    assert chosen.memory.weights_format is None
    assert chosen.memory.sample_blocks_to_swap < number
    assert any(line.startswith("--sample_blocks_to_swap") for line in lines)


def test_nothing_changes_where_all_fits():
    options = OPTIONS
    chosen, lines = fitting(11 * GIB).fit(options)
    assert chosen == options and lines == ["nothing has to be changed: 10.5 GiB at most"]


def test_auto_alone_only_swaps():
    chosen, _ = fitting(8 * GIB, (swap_rung(DEPTH),)).fit(options_with("--blocks_to_swap=auto"))
    flags = [flag.partition("=")[0] for flag in flags_of(OPTIONS, chosen)]
    assert flags == ["--blocks_to_swap", "--sample_blocks_to_swap"]


def test_what_cannot_fit_is_refused_with_what_is_missing_and_what_else_helps():
    with pytest.raises(OptionError, match=r"--fit X: .* 0\.\d+ GiB too much, in the phase .*mixed_precision bf16"):
        fitting(GIB).fit(OPTIONS)


def test_other_values_are_checked_like_given_ones():
    with pytest.raises(OptionError, match="exclude each other"):
        with_values(options_with("--cpu_offload_checkpointing"), {"blocks_to_swap": 3})
