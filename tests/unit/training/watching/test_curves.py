"""The picture of the curves: drawn for runs of any length, equal for equal runs, never in the way of training."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.errors import EnvironmentFault, OutputError
from library.training.watching.curves import CurvePicture, Curves, draw_curves, envelope, smoothed, thinned
from library.training.watching.loss_records import LossRecords

ROOT = Path(__file__).resolve().parents[4]


def run_of(num_steps, **changes):
    """Curves of a run that learns."""
    steps = np.arange(1, num_steps + 1)
    records = LossRecords()
    records.add(1, [("a", 50, 1.0), ("b", 500, 0.5), ("c", 950, 0.25)])
    records.extend(records.take_new())
    values = {
        "steps": steps,
        "losses": 0.2 + 0.1 * np.exp(-steps / 50) + 0.05 * np.sin(steps * 1.7),
        "rates": {"unet": np.full(num_steps, 1e-4)},
        "validation": [(step, 0.3 - step * 1e-6) for step in range(10, num_steps, max(num_steps // 10, 1))],
        "epoch_ends": range(20, num_steps, 20),
        "bins": records.timestep_bins(),
        "title": "my_lora",
    }
    return Curves(**{**values, **changes})


def pixels(path):
    with Image.open(path) as picture:
        picture.load()
        assert (picture.format, picture.size) == ("PNG", (1200, 900))
        return np.asarray(picture.convert("RGB")).astype(int)


def drawn(tmp_path, curves):
    draw_curves(tmp_path / "curves.png", curves)
    return pixels(tmp_path / "curves.png")


def count_colour(picture, colour):
    return int((np.abs(picture - colour).max(axis=-1) < 12).sum())


TRAINING, VALIDATION, SKIPPED = (0x25, 0x63, 0xA8), (0xD1, 0x58, 0x1B), (0xB0, 0x00, 0x20)
OTHERS = (0xB8, 0xB8, 0xB8)


@pytest.mark.parametrize("num_steps", [1, 2, 31, 400, 100_000])
def test_runs_of_any_length_show_their_loss(tmp_path, num_steps):
    assert count_colour(drawn(tmp_path, run_of(num_steps, bins=())), TRAINING) > 20


def test_equal_curves_give_equal_files_and_others_do_not(tmp_path):
    for name, changes in (("a", {}), ("b", {}), ("c", {"validation": [(10, 0.1)]})):
        draw_curves(tmp_path / f"{name}.png", run_of(60, **changes))
    first, second, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == second != other


def test_the_file_does_not_tell_when_or_with_what_it_was_made(tmp_path):
    draw_curves(tmp_path / "curves.png", run_of(5))
    with Image.open(tmp_path / "curves.png") as picture:
        assert set(picture.info) <= {"dpi"}


def test_validation_is_drawn_only_where_there_is_one(tmp_path):
    assert count_colour(drawn(tmp_path, run_of(100)), VALIDATION) > 200
    assert count_colour(drawn(tmp_path, run_of(100, validation=[(50, float("nan"))])), VALIDATION) == 0
    assert count_colour(drawn(tmp_path, run_of(100, validation=())), VALIDATION) == 0


def test_skipped_steps_are_gaps_with_a_mark(tmp_path):
    losses = np.full(100, 0.25)
    whole = drawn(tmp_path, run_of(100, losses=losses, bins=(), validation=()))
    losses[40:80] = np.nan
    broken = drawn(tmp_path, run_of(100, losses=losses, bins=(), validation=()))
    assert count_colour(broken, TRAINING) < count_colour(whole, TRAINING) * 0.75
    assert count_colour(whole, SKIPPED) == 0 < count_colour(broken, SKIPPED)


@pytest.mark.parametrize(
    "changes",
    [
        {"losses": np.full(20, np.nan)},
        {"losses": np.zeros(20), "rates": {"unet": [0.0] * 20, "text encoder 1": [1e-5] * 20}},
        {"losses": np.full(20, -0.5)},
        {"rates": {}, "bins": (), "validation": (), "epoch_ends": ()},
        {"title": "$x_{1 \\frac 日本 a\udcff" * 5},
    ],
    ids=["all skipped", "zero", "below zero", "nothing known", "strange title"],
)
def test_strange_runs_are_drawn_without_a_warning(tmp_path, changes, recwarn):
    drawn(tmp_path, run_of(20, **changes))
    assert not list(recwarn)  # matplotlib's name the file that calls it


def test_of_many_rates_and_epochs_a_few_are_named(tmp_path, recwarn):
    rates = {f"block {index}": [1e-4 * index] * 20 for index in range(50)}
    picture = drawn(tmp_path, run_of(20, epoch_ends=range(20), rates=rates))
    assert count_colour(picture[560:, :600], OTHERS) > 5000 and not list(recwarn)


def test_a_run_without_a_step_is_drawn(tmp_path):
    drawn(tmp_path, Curves(steps=(), losses=()))


def test_an_outlier_does_not_flatten_the_curve(tmp_path):
    losses = 0.2 + 0.1 * np.sin(np.arange(200) / 10)
    losses[100] = 1e6
    picture = drawn(tmp_path, run_of(200, losses=losses, validation=(), bins=(), rates={}))
    rows = np.nonzero((np.abs(picture - TRAINING).max(axis=-1) < 12)[40:540].any(axis=1))[0]
    assert np.ptp(rows) > 250


def test_the_users_settings_of_matplotlib_change_nothing(tmp_path):
    import matplotlib

    before = drawn(tmp_path, run_of(30))
    with matplotlib.rc_context({"axes.facecolor": "black", "savefig.dpi": 20, "lines.linewidth": 9}):
        assert (drawn(tmp_path, run_of(30)) == before).all()
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_drawing_needs_no_display_and_leaves_pyplot_alone(tmp_path):
    code = (
        "import sys; from pathlib import Path; from library.training.watching import curves\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"curves.draw_curves(Path({str(tmp_path / 'c.png')!r}), curves.Curves(steps=[1], losses=[1.0]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_failing_picture_is_one_warning_and_leaves_the_former_file(tmp_path, caplog):
    path = tmp_path / "curves.png"
    picture = CurvePicture(path)
    assert picture.draw(run_of(5)) == path
    before = path.read_bytes()
    picture.path = path / "under_a_file.png"
    with caplog.at_level(logging.WARNING, "easel"):
        assert picture.draw(run_of(6)) is None
        assert picture.draw(run_of(7)) is None
    assert [record.message.partition(":")[0] for record in caplog.records] == ["no picture of the curves"]
    assert path.read_bytes() == before
    with pytest.raises(OutputError):
        draw_curves(picture.path, run_of(5))


def test_a_missing_matplotlib_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(EnvironmentFault, match="pip install matplotlib"):
        draw_curves(tmp_path / "curves.png", run_of(5))
    assert CurvePicture(tmp_path / "curves.png").draw(run_of(5)) is None


def test_smoothing_is_the_mean_of_the_neighbours_and_keeps_gaps():
    values = np.array([1.0, 2.0, 6.0, np.nan, 4.0])
    np.testing.assert_allclose(smoothed(values, 3), [1.5, 3.0, 4.0, np.nan, 4.0])
    np.testing.assert_array_equal(smoothed(values, 1), values)
    np.testing.assert_allclose(smoothed(np.full(9, 0.1), 4), 0.1)


def test_fewer_points_keep_what_shows():
    steps, values = np.arange(10_000.0), np.zeros(10_000)
    values[5_001], values[7_003] = 9.0, -9.0
    values[2_000:3_000] = np.nan
    short_steps, short = envelope(steps, values, 100)
    assert len(short) <= 100 and (np.diff(short_steps) > 0).all()
    assert np.nanmax(short) == 9.0 and np.nanmin(short) == -9.0 and np.isnan(short).any()
    assert [len(thinned(steps, values, n)[0]) for n in (100, 20_000)] == [100, 10_000]
    assert thinned(steps, values, 100)[0][[0, -1]].tolist() == [0, 9_999]
