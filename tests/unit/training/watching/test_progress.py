"""The bar on the console."""

import pytest

from library.training.watching.progress import ProgressBar, rate_to_show


def test_the_bar_shows_steps_loss_rate_and_memory(capsys):
    with ProgressBar(10) as bar:
        bar.update(loss=0.12345, rate=1e-4, memory=3 * 2**30)
    line = capsys.readouterr().err.split("\r")[-1]
    assert line.startswith("steps:") and "1/10" in line
    assert "avr_loss=0.1235, lr=0.0001, memory=3.0GiB" in line


def test_what_is_not_known_keeps_its_last_number(capsys):
    with ProgressBar(10) as bar:
        bar.update(loss=0.5, rate=1e-4)
        bar.update(loss=float("nan"), rate=None)
        bar.update(loss=float("inf"))
    shown = capsys.readouterr().err
    assert "nan" not in shown and "inf" not in shown and "None" not in shown
    assert "3/10" in shown and "avr_loss=0.5000, lr=0.0001" in shown.split("\r")[-1]


def test_a_run_that_goes_on_starts_at_its_step(capsys):
    with ProgressBar(10, initial=6) as bar:
        bar.update(2)
    shown = capsys.readouterr().err.split("\r")
    assert "6/10" in shown[1] and "8/10" in shown[-1]


def test_a_run_that_goes_back_shows_it(capsys):
    with ProgressBar(10, initial=6) as bar:
        bar.update(-4, loss=1.0)
    assert "2/10" in capsys.readouterr().err.split("\r")[-1]


def test_other_processes_show_nothing(capsys):
    with ProgressBar(10, is_shown=False) as bar:
        bar.update(loss=0.5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rates", "shown"),
    [
        ({"textencoder 1": 9, "unet": 3, "unet plus": 8, "textencoder 2": 7}, 3),
        ({"clip": 9, "block 1": 1, "block 2": 3, "block 3": 2}, 3),
        ({"textencoder 1": 1, "textencoder 1 plus": 9, "textencoder 2": 2}, 2),
        ({"clip": 2}, 2),
        ({"unet plus": 4, "unet plus 2": 5}, 5),
        ({"unet": 1, "d*lr/unet": 0.01}, 0.01),
        ({}, None),
    ],
)
def test_the_rate_of_the_bar_is_that_of_the_denoiser_where_it_trains(rates, shown):
    assert rate_to_show({f"lr/{name}": rate for name, rate in rates.items()}, ("clip",)) == shown
