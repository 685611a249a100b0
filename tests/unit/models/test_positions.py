"""Windows into tables of positions."""

import pytest
import torch

from library.errors import DatasetError
from library.models.positions import ScaledPositionTables, centred_window, sincos_table, window_at


def places(side):
    """A table whose rows say where they are: (row, column)."""
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([row, column], dim=2).reshape(1, side * side, 2)


@pytest.mark.parametrize(("side", "size", "offset"), [(384, 64, 160), (384, 32, 176), (384, 90, 147), (192, 64, 64)])
def test_centred_window_starts_where_inference_starts(side, size, offset):
    window = centred_window(places(side), size, size)
    assert window.shape == (1, size * size, 2)
    assert window[0, 0].tolist() == [offset, offset]
    assert window[0, -1].tolist() == [offset + size - 1] * 2


def test_rows_and_columns_are_not_mixed_up():
    window = centred_window(places(10), 2, 6)
    assert window[0, :6].tolist() == [[4, column] for column in range(2, 8)]
    assert window[0, 6].tolist() == [5, 2]


def test_draws_reach_every_place_and_no_other():
    draws = [step / 100 for step in range(100)]
    tops = {window_at(places(8), 3, 2, draw, 0.0)[0, 0, 0].item() for draw in draws}
    lefts = {window_at(places(8), 3, 2, 0.0, draw)[0, 0, 1].item() for draw in draws}
    assert tops == set(range(6))
    assert lefts == set(range(7))


def test_window_of_the_whole_table_has_one_place():
    assert torch.equal(window_at(places(5), 5, 5, 0.999, 0.999), places(5))


@pytest.mark.parametrize("window", [centred_window, lambda table, h, w: window_at(table, h, w, 0.5, 0.5)])
def test_image_larger_than_the_table_is_an_error_with_the_limit(window):
    with pytest.raises(DatasetError, match=r"400 x 80 pixels .* 384 pixels a side"):
        window(places(24), 5, 25)


def test_windows_leave_the_table_as_it_is():
    table = sincos_table(8, 12, 8)
    before = table.clone()
    centred_window(table, 4, 4).add_(1)
    window_at(table, 4, 4, 0.9, 0.1).mul_(2)
    assert torch.equal(table, before)


def test_native_window_covers_the_same_coordinates_at_every_size():
    small, large = (centred_window(sincos_table(16, 3 * native // 2, native), native, native) for native in (4, 16))
    row = slice(0, 16, 4)  # every fourth patch of the first row of the large one
    torch.testing.assert_close(large[0, row], small[0, :4])


def test_scaled_tables_do_not_depend_on_order_once_every_bucket_has_asked():
    buckets = [(4, 4), (3, 9), (9, 3), (2, 14)]
    tables = ScaledPositionTables([8], 8)
    for height, width in buckets:
        tables.table(height, width)
    forward = [tables.table(*bucket) for bucket in buckets]
    backward = [tables.table(*bucket) for bucket in reversed(buckets)]
    assert all(torch.equal(one, other) for one, other in zip(forward, reversed(backward), strict=True))


def test_scaled_tables_need_a_resolution():
    with pytest.raises(ValueError, match="at least 2"):
        ScaledPositionTables([], 8)
