"""What SDXL is told of a picture: the true place of the cut, mirrored or not, and its embedding."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from library.families.base import Conditioning
from library.families.sdxl.conditioning import compat_sizes, size_embedding, true_sizes
from library.records import Batch, BatchPlan, CropPlan, PlannedItem, Size, View


@st.composite
def crops(draw):
    bucket = Size(draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    left, top = draw(st.integers(0, 9)), draw(st.integers(0, 9))
    return CropPlan(
        Size(bucket.width + left + draw(st.integers(0, 9)), bucket.height + top + draw(st.integers(0, 9))),
        left,
        top,
        bucket,
    )


@given(crops(), st.booleans())
def test_the_crop_is_where_the_training_picture_lies_in_the_resized_one(crop, is_flipped):
    resized = torch.arange(crop.resized.width * crop.resized.height).reshape(crop.resized.height, crop.resized.width)
    shown = resized[crop.top :, crop.left :][: crop.bucket.height, : crop.bucket.width]
    if is_flipped:  # the sample is mirrored after cutting; SDXL is told where it lies in the mirrored picture
        shown, resized = shown.flip(1), resized.flip(1)
    (sizes,) = true_sizes([View(Size(31, 17), crop, is_flipped)]).int().tolist()
    height, width, top, left, *target = sizes
    assert (height, width) == (17, 31)
    assert torch.equal(shown, resized[top : top + target[0], left : left + target[1]])


def test_a_whole_picture_has_no_crop():
    view = View.whole(Size(1024, 768))
    for sizes in (true_sizes([view]), compat_sizes([view])):
        assert sizes.tolist() == [[768, 1024, 0, 0, 768, 1024]]
        assert sizes.dtype == torch.float32


def test_parts_of_a_batch_and_of_what_the_u_net_is_told_keep_their_sizes():
    views = tuple(View(Size(64 + n, 80), CropPlan(Size(64, 64), n, 2 * n, Size(32, 32)), n == 1) for n in range(3))
    items = tuple(PlannedItem(n, 0) for n in range(3))
    names = ("a", "b", "c")
    batch = Batch(BatchPlan(1, 0, 0, Size(32, 32), items), names, names, torch.ones(3), views=views)
    whole = Conditioning(torch.zeros(3, 2, 4), torch.zeros(3, 5), sizes=true_sizes(views))
    assert len({tuple(row) for row in whole.sizes.tolist()}) == 3
    for part in (range(0, 1), range(1, 3)):
        rows = torch.tensor(list(part))
        assert batch.take(part).views == views[part.start : part.stop]
        assert torch.equal(true_sizes(batch.take(part).views), whole.sizes[rows])
        assert torch.equal(whole.take(rows, rows).sizes, whole.sizes[rows])


def test_the_embedding_is_the_one_that_diffusers_computes():
    from diffusers.models.embeddings import get_timestep_embedding

    sizes = torch.tensor([[768.0, 1024, 0, 16, 896, 1152], [480, 640, 12, 0, 832, 1216]])
    theirs = get_timestep_embedding(sizes.flatten(), 256, flip_sin_to_cos=True, downscale_freq_shift=0).reshape(2, -1)
    torch.testing.assert_close(size_embedding(sizes), theirs, atol=1e-5, rtol=0)
