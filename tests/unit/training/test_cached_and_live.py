"""What a cache file holds equals what encoders give in a step, in half precision too."""

import pytest
import torch

from library.data.cache import TensorCache, prompt_entries, stored_precision
from library.families.sd3.family import Sd3Family
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options.spec import parse_options
from library.training.encoding.caching import encode_pictures
from library.training.encoding.text_stage import TextStage

CAPTIONS = ["a red circle", "a star", ""]
CPU = torch.device("cpu")
NAMES = ("clip_l", "clip_g", "t5xxl")


@pytest.fixture(scope="module")
def family(tiny_sd3, tmp_path_factory):
    arguments = [f"--pretrained_model_name_or_path={tiny_sd3}", f"--output_dir={tmp_path_factory.mktemp('out')}"]
    arguments += ["--dataset_config=none.toml", "--network_module=networks.lora", "--t5xxl_max_token_length=16"]
    return Sd3Family.from_options(parse_options(Sd3NetworkOptions, arguments, **NETWORK_SCRIPT))


def through_files(states, folder):
    """Rows of the batch as they come back from cache files."""
    entries = prompt_entries(CAPTIONS, folder=folder, family="sd3", identity="this")
    cache = TensorCache(entries)
    for i, entry in enumerate(entries):
        cache.write(entry.id, {name: state[i] for name, state in states.items()})
    rows = [TensorCache(entries).read(entry.id) for entry in entries]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_text_states_from_a_file_are_those_of_live_encoders(family, tmp_path, dtype):
    files = family.inspect()
    encoders = family.load_text_encoders(files, dtype, CPU, NAMES)
    stage = TextStage(family, CPU, encoders, family.load_tokenizers(files, NAMES))
    cached = through_files(stage.encode(CAPTIONS), tmp_path)
    with torch.autocast("cpu", dtype):  # as in a step
        live = stage.encode(CAPTIONS)
    assert cached.keys() == live.keys()
    for name, state in live.items():
        assert state.dtype == cached[name].dtype == torch.bfloat16
        assert torch.equal(cached[name], state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_latents_of_one_picture_are_those_of_its_batch(family, dtype):
    """A cache is filled in batches of other sizes than those of the steps."""
    vae = family.load_vae(family.inspect(), dtype, CPU)
    images = torch.rand(3, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    seeds = [11, 12, 13]
    batch = encode_pictures(family, vae, images, seeds)
    alone = torch.cat([encode_pictures(family, vae, images[i : i + 1], seeds[i : i + 1]) for i in range(3)])
    assert batch.dtype == torch.bfloat16 and batch.is_contiguous()  # the layout changes how a denoiser rounds
    torch.testing.assert_close(alone, batch, rtol=0.02, atol=0.02)
    other = encode_pictures(family, vae, images, [21, 22, 23])
    assert (other.float() - batch.float()).abs().max() > 0.1


def test_only_fp16_is_stored_in_another_format():
    for dtype, stored in ((torch.float16, torch.bfloat16), (torch.bfloat16, None), (torch.float32, None)):
        assert stored_precision(torch.ones(1, dtype=dtype)).dtype == (stored or dtype)
