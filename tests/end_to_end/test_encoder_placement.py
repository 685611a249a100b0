"""When models are in memory: each encoder only while it is needed, and none that is not when the denoiser comes."""

import gc
import weakref

import pytest

from library.families.sd3.checkpoint import inspect_files, read_part
from library.families.sd3.family import Sd3Family
from library.models.vae import load_vae

UNET_ONLY = "--network_train_unet_only"
LATENTS, TEXT = "--cache_latents", "--cache_text_encoder_outputs"


@pytest.fixture
def moments(monkeypatch, tiny_sd3):
    """[(what happens, models that are alive then)]: each loading, and each use of an encoder."""
    load_vae(read_part(inspect_files(tiny_sd3).vae))  # the first import may log an error, whose frames pytest keeps
    models, seen = {}, []

    def alive(what):
        if what.startswith("load") and any(ref() is not None for refs in models.values() for ref in refs):
            gc.collect()  # as between phases on a GPU
        return tuple(sorted(name for name, refs in models.items() if any(ref() is not None for ref in refs)))

    def watch(method, what_of):
        real = getattr(Sd3Family, method)

        def watched(self, *arguments, **named):
            what, loads = what_of(*arguments)
            seen.append((what, alive(what)))
            result = real(self, *arguments, **named)
            for name in loads:
                module = result[name] if isinstance(result, dict) else result
                models.setdefault(name, []).append(weakref.ref(module))
            return result

        monkeypatch.setattr(Sd3Family, method, watched)

    watch("load_denoiser", lambda *_: ("load mmdit", ["mmdit"]))
    watch("load_vae", lambda *_: ("load vae", ["vae"]))
    watch("load_text_encoders", lambda files, dtype, device, names: (f"load {' '.join(names)}", names))
    watch("encode_images", lambda *_: ("encode images", []))
    watch("encode_text", lambda encoders, tokens: (f"encode {' '.join(encoders)}".strip(), []))
    return seen


def course(moments):
    """The moments, repeated ones once, without encoders that are asked for nothing."""
    busy = [moment for moment in moments if moment[0] != "encode"]
    return [moment for number, moment in enumerate(busy) if moment != busy[number - 1] or number == 0]


@pytest.mark.parametrize("flags", [(), ("--lowram",)], ids=["", "lowram"])
def test_caches_are_filled_with_one_model_at_a_time(training, moments, flags):
    dataset = training.dataset(training.pictures())
    training.unet_only(dataset, "--max_train_steps=1", *flags)
    assert course(moments)[:9] == [
        ("load vae", ()),
        ("encode images", ("vae",)),
        *(
            moment
            for name in ("clip_l", "clip_g", "t5xxl")
            for moment in ((f"load {name}", ()), (f"encode {name}", (name,)))
        ),
        ("load mmdit", ()),
    ]
    assert all(alive == ("mmdit",) for _, alive in moments if "mmdit" in alive)


def test_a_vae_that_runs_in_every_step_comes_when_text_is_cached(training, moments):
    training.run(training.dataset(training.pictures()), UNET_ONLY, TEXT, "--max_train_steps=1")
    loads = [moment for moment in moments if moment[0].startswith("load")]
    assert [what for what, _ in loads] == ["load clip_l", "load clip_g", "load t5xxl", "load vae", "load mmdit"]
    assert [alive for _, alive in loads] == [(), (), (), (), ("vae",)]


def test_a_cached_t5_is_gone_before_the_encoders_that_train_come(training, moments):
    training.run(training.dataset(training.pictures()), LATENTS, TEXT, "--max_train_steps=1")
    loads = [moment for moment in moments if moment[0].startswith("load")]
    assert loads == [
        ("load vae", ()),
        ("load t5xxl", ()),
        ("load clip_l", ()),
        ("load clip_g", ("clip_l",)),
        ("load mmdit", ("clip_g", "clip_l")),
    ]


def test_prompts_written_while_training_bring_one_encoder_at_a_time_beside_the_denoiser(training, moments):
    prompts = training.folder / "prompts.txt"
    prompts.write_text("a red star --w 64 --h 64 --s 1\n", encoding="utf-8")

    def add():
        prompts.write_text("a blue star --w 64 --h 64 --s 1\n", encoding="utf-8")

    flags = (f"--sample_prompts={prompts}", "--sample_every_n_steps=1", "--max_train_steps=1")
    arguments = training.arguments(training.dataset(training.pictures()), UNET_ONLY, LATENTS, TEXT, *flags)
    training.run_arguments(arguments, after={"build_loop": add})
    seen = course(moments)
    later = seen[[what for what, _ in seen].index("load mmdit") + 1 :]
    assert [moment for moment in later if "vae" not in moment[0]] == [
        moment
        for name in ("clip_l", "clip_g", "t5xxl")
        for moment in ((f"load {name}", ("mmdit",)), (f"encode {name}", tuple(sorted(("mmdit", name)))))
    ]
