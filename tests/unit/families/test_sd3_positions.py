"""Which table of positions the SD3 family takes for a bucket."""

import pytest
import torch

from library.families.sd3.family import Sd3Family
from library.models.mmdit import MMDiT, MMDiTConfig
from library.models.positions import centred_window, sincos_table
from library.records import Size

CONFIG = MMDiTConfig(depth=1, num_heads=1, head_dim=8, in_channels=16, out_channels=16, context_dim=8, pooled_dim=8)
CHANNELS = 8


def positions(resolutions, size, mmdit):
    """Rows for pictures of that size, in a run with these resolutions. Shape [1, N, D]."""
    family = Sd3Family(pretrained="none", dropout_rates={}, enable_scaled_pos_embed=True, flow={})
    family = family.for_buckets([Size(*side) for side in resolutions], [size])
    return family._positions(mmdit, torch.zeros(1, 16, size.height // 8, size.width // 8), None)


@pytest.mark.parametrize(
    ("resolutions", "size", "native"),
    [
        ([(1024, 1024)], Size(1024, 1024), 64),
        ([(992, 1024)], Size(992, 1024), 63),  # a side of 1007.9 pixels, 126 latent cells
        ([(1024, 992)], Size(1024, 992), 63),
        ([(512, 512), (1024, 1024)], Size(512, 512), 32),
        ([(512, 512), (1024, 1024)], Size(1024, 1024), 64),
        ([(512, 512), (1024, 1024)], Size(768, 640), 32),  # nearer to 512 by area
        ([(512, 512), (1024, 1024)], Size(896, 768), 64),
    ],
)
def test_bucket_takes_the_table_of_the_nearest_resolution(resolutions, size, native):
    rows = positions(resolutions, size, MMDiT(CONFIG))
    table = sincos_table(CHANNELS, int(1.5 * native), native)
    assert torch.equal(rows, centred_window(table, size.height // 16, size.width // 16))
    other = sincos_table(CHANNELS, int(1.5 * (native + 1)), native + 1)
    assert not torch.allclose(rows, centred_window(other, size.height // 16, size.width // 16))


def test_without_the_option_the_stored_table_is_used():
    family = Sd3Family(pretrained="none", dropout_rates={}, flow={}).for_buckets([Size(512, 512)], [Size(512, 512)])
    assert family._positions(MMDiT(CONFIG), torch.zeros(1, 16, 64, 64), None) is None
