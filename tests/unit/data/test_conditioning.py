"""Conditioning pictures: paired, refused and prepared exactly as their pictures."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from library.data.cache import TensorCache, latent_entries
from library.data.config.schema import parse_dataset_config
from library.data.config.sources import DataPlaces, specs_from_options
from library.data.config.specs import DatasetSpec, SubsetSpec
from library.data.files.scan import scan_datasets
from library.data.files.soundness import broken_pictures
from library.data.loader import BatchDataset
from library.data.pixels.pictures import prepare_conditioning
from library.data.plan.batches import epoch_plan
from library.data.plan.buckets import plan_crop
from library.errors import DatasetError
from library.records import Size

SIZES = (Size(40, 44), Size(60, 33), Size(64, 64))


@pytest.fixture
def folder(tmp_path):
    """pictures/ and told/ with the same pictures: what is done to one must be done to the other."""
    rng = np.random.default_rng(0)
    for name in ("pictures", "told"):
        (tmp_path / name).mkdir()
    for index, size in enumerate(SIZES):
        pixels = Image.fromarray(rng.integers(0, 255, (size.height, size.width, 3), np.uint8))
        pixels.save(tmp_path / "pictures" / f"{index}.png")
        pixels.save(tmp_path / "told" / f"{index}.png")
        (tmp_path / "pictures" / f"{index}.txt").write_text("a picture")
    return tmp_path


def spec_of(folder, **keys):
    subset = SubsetSpec(
        image_dir=folder / "pictures",
        conditioning_data_dir=folder / "told",
        is_conditioned=True,
        caption_extension=".txt",
        **keys,
    )
    return DatasetSpec(
        resolution=Size(32, 32),
        batch_size=2,
        enable_bucket=True,
        min_bucket_reso=16,
        max_bucket_reso=64,
        bucket_reso_steps=16,
        subsets=(subset,),
    )


def scanned(spec):
    return scan_datasets([spec], "d.toml")


def batches(spec, **settings):
    records = scanned(spec).records
    crops = [plan_crop(record.size, spec) for record in records]
    dataset = BatchDataset(records, crops, (spec,), seed=3, max_steps=9, **settings)
    return [dataset[plan] for epoch in (1, 2) for plan in epoch_plan(records, crops, [2], 5, epoch)]


@pytest.mark.parametrize("keys", [{}, {"flip_aug": True, "random_crop": True}, {"resize_interpolation": "bicubic"}])
def test_it_goes_exactly_the_way_of_its_picture(folder, keys):
    made = batches(spec_of(folder, **keys))
    assert len({view for batch in made for view in batch.views}) >= len(SIZES)
    for batch in made:
        assert torch.equal(batch.conditioning_images, batch.images)
        assert batch.masks is None


def test_beside_cached_latents_it_is_mirrored_as_they_are(folder):
    spec = spec_of(folder, flip_aug=True)
    records = scanned(spec).records
    crops = [plan_crop(record.size, spec) for record in records]
    latents = TensorCache(latent_entries(records, crops, (spec,), identity="vae", family="sdxl", to_disk=False))
    for entry in latents.entries:
        latents.write(entry.id, {"latents": torch.ones(4, 2, 2), "latents_flipped": -torch.ones(4, 2, 2)})
    dataset = BatchDataset(records, crops, (spec,), latents=latents, seed=3, max_steps=9)
    seen = set()
    for plan in [plan for epoch in range(1, 5) for plan in epoch_plan(records, crops, [1], 5, epoch)]:
        batch, index = dataset[plan], plan.items[0].record
        is_flipped = bool((batch.latents < 0).all())
        expected = prepare_conditioning(records[index], crops[index], spec, is_flipped=is_flipped)
        assert torch.equal(batch.conditioning_images[0], expected)
        seen.add(is_flipped)
    assert seen == {True, False}


def test_its_colours_are_not_changed(folder):
    plain, recoloured = batches(spec_of(folder)), batches(spec_of(folder, color_aug=True))
    pairs = list(zip(recoloured, plain, strict=True))
    assert all(torch.equal(batch.conditioning_images, before.images) for batch, before in pairs)
    assert any(not torch.equal(batch.images, before.images) for batch, before in pairs)


def test_a_smaller_one_of_the_same_shape_is_brought_to_the_size(folder):
    spec = spec_of(folder)
    path = folder / "told" / "2.png"
    small = Image.open(path).resize((32, 32))
    small.save(path)
    scan = scanned(spec)
    record = scan.records[2]
    pixels = prepare_conditioning(record, plan_crop(record.size, spec), spec, is_flipped=False)
    expected = torch.from_numpy(np.asarray(small).copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(pixels, expected.float())
    assert any("conditioning pictures of another size" in note for note in scan.findings.notes)


def test_parts_of_a_batch_keep_theirs(folder):
    batch = batches(spec_of(folder))[0]
    part = batch.take(range(len(batch.sample_ids) - 1, len(batch.sample_ids)))
    assert torch.equal(part.conditioning_images, batch.conditioning_images[-1:])
    assert torch.equal(batch.to(torch.device("cpu")).conditioning_images, batch.conditioning_images)


def faults(folder):
    return [f"{fault.picture.name} {fault.problem}" for fault in scanned(spec_of(folder)).findings.faults]


def test_missing_ambiguous_and_misshapen_ones_are_faults(folder):
    (folder / "told" / "0.png").unlink()
    Image.new("RGB", (60, 33)).save(folder / "told" / "1.jpg")
    Image.new("RGB", (64, 32)).save(folder / "told" / "2.png")
    found = faults(folder)
    assert any(line.startswith("0.png has no conditioning picture in") for line in found)
    assert any("1.png has several conditioning pictures in" in line for line in found)
    assert any("give both one shape" in line for line in found)
    assert scanned(spec_of(folder)).records == ()


def test_a_broken_one_is_found_by_decoding(folder):
    path = folder / "told" / "1.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
    path.write_bytes(content)
    (problem,) = broken_pictures(scanned(spec_of(folder)).records).values()
    assert problem.startswith("has a conditioning picture that cannot be used: ")


def test_every_subset_of_a_dataset_file_must_name_a_folder(folder):
    subset = {"image_dir": str(folder / "pictures"), "caption_extension": ".txt"}
    table = {"datasets": [{"resolution": 64, "subsets": [subset]}]}
    with pytest.raises(DatasetError, match="dataset 1, subset 1: no conditioning_data_dir"):
        parse_dataset_config(table, "d.toml", {}, is_conditioned=True)
    subset["conditioning_data_dir"] = str(folder / "told")
    with pytest.raises(DatasetError, match="needs --masked_loss.* are for the script that trains it"):
        parse_dataset_config(table, "d.toml", {})
    (spec,) = parse_dataset_config(table, "d.toml", {}, is_conditioned=True)
    assert spec.subsets[0].is_conditioned and not spec.subsets[0].has_masks


def test_folders_of_the_command_line_share_one_or_have_their_own(folder):
    (folder / "train").mkdir()
    (folder / "pictures").rename(folder / "train" / "2_a")
    places = DataPlaces(train_data_dir=folder / "train", conditioning_data_dir=folder / "told")
    defaults = {"resolution": Size(64, 64), "caption_extension": ".txt"}

    def folder_of_first():
        _, specs = specs_from_options(places, defaults, is_conditioned=True)
        return specs[0].subsets[0].conditioning_data_dir

    assert folder_of_first() == folder / "told"
    (folder / "told" / "2_a").mkdir()
    assert folder_of_first() == folder / "told" / "2_a"


def test_regularisation_folders_of_the_command_line_have_theirs_too(folder):
    for name in ("train/2_a", "reg/1_b", "told/1_b"):
        (folder / name).mkdir(parents=True)
    places = DataPlaces(
        train_data_dir=folder / "train", reg_data_dir=folder / "reg", conditioning_data_dir=folder / "told"
    )
    _, (spec,) = specs_from_options(places, {"resolution": Size(64, 64)}, is_conditioned=True)
    named = {subset.image_dir.name: (subset.is_reg, subset.conditioning_data_dir) for subset in spec.subsets}
    assert named == {"2_a": (False, folder / "told"), "1_b": (True, folder / "told" / "1_b")}


def test_folders_that_share_one_are_told_of_equal_names(folder):
    shutil.copytree(folder / "pictures", folder / "more")
    Image.new("RGB", (40, 44)).save(folder / "told" / "nobody.png")
    spec = spec_of(folder)
    spec = replace(spec, subsets=(*spec.subsets, replace(spec.subsets[0], image_dir=folder / "more")))
    scan = scanned(spec)
    assert len(scan.records) == 2 * len(SIZES)
    (note,) = (line for line in scan.findings.notes if "of several folders share" in line)
    assert "conditioning pictures" in note and "3 (0.png, 1.png, 2.png, of" in note
    assert [fault.path.name for fault in scan.findings.left_out] == ["nobody.png"]
    assert [folder / "told" / "nobody.png" in files for files in scan.files.values()] == [True, False]
