"""Which optimizer the options choose, and which of them do not go together."""

import pytest

from library.errors import OptionError
from library.options.groups import OptimizerOptions


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "AdamW"),
        ({"optimizer_type": " prodigy "}, "prodigy"),
        ({"use_8bit_adam": True}, "AdamW8bit"),
        ({"use_lion_optimizer": True}, "Lion"),
    ],
)
def test_the_optimizer_goes_by_the_name_that_was_given(options, name):
    assert OptimizerOptions(**options).optimizer_name == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_8bit_adam": True, "use_lion_optimizer": True}, "--use_8bit_adam and --use_lion_optimizer each choose"),
        ({"use_lion_optimizer": True, "optimizer_type": "SGD"}, "--use_lion_optimizer and --optimizer_type SGD each"),
        ({"lr_scheduler_type": "StepLR", "lr_warmup_steps": 5}, "--lr_scheduler_type StepLR has no warm-up"),
        ({"lr_scheduler_args": ("T_max",)}, "--lr_scheduler_args takes items of the form key=value, got 'T_max'"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        OptimizerOptions(**options)
