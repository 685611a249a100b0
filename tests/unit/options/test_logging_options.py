"""Options about the log and the trackers."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from library.errors import OptionError
from library.options.groups import CommonOptions, LoggingOptions
from library.options.spec import parse_options


@dataclass(frozen=True, kw_only=True)
class TrackedOptions(CommonOptions):
    """Options of a script that has trackers."""

    logging: LoggingOptions = field(default_factory=LoggingOptions)


def parse(*argv):
    return parse_options(TrackedOptions, list(argv), prog="a.py", description="", example="")


@pytest.mark.parametrize(
    ("given", "trackers"),
    [
        ({}, ()),
        ({"logging_dir": Path("logs")}, ("tensorboard",)),
        ({"log_with": "wandb"}, ("wandb",)),
        ({"log_with": "wandb", "logging_dir": Path("logs")}, ("wandb",)),
        ({"log_with": "all", "logging_dir": Path("logs")}, ("tensorboard", "wandb")),
    ],
)
def test_a_folder_alone_means_tensorboard(given, trackers):
    assert LoggingOptions(**given).trackers == trackers


@pytest.mark.parametrize("name", ["tensorboard", "all"])
def test_tensorboard_needs_a_folder(name):
    with pytest.raises(OptionError, match=f"--log_with {name} needs --logging_dir"):
        LoggingOptions(log_with=name)


def test_names_of_projects_are_names():
    with pytest.raises(OptionError, match="--log_tracker_name is a name without"):
        LoggingOptions(logging_dir=Path("logs"), log_tracker_name="a/b")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--log_config", "--log_tracker_name=a"], "--log_tracker_name, --log_config (no --log_with or --logging_dir)"),
        (["--log_with=wandb", "--log_prefix=a"], "--log_prefix (no --logging_dir)"),
        (["--logging_dir=l", "--wandb_run_name=a"], "--wandb_run_name (no --log_with wandb)"),
    ],
)
def test_options_of_a_tracker_that_is_off_are_a_warning(argv, reason):
    assert parse(*argv).warnings == (f"Options without effect here: {reason}.",)


def test_options_that_go_together_are_no_warning():
    everything = ["--log_with=all", "--logging_dir=l", "--log_prefix=a", "--log_tracker_name=b", "--log_config"]
    assert parse(*everything, "--wandb_run_name=c", "--wandb_api_key=d").warnings == ()
