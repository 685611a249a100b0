"""Contexts that all processes enter and leave together."""

from contextlib import contextmanager
from datetime import timedelta

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import distributed

from library.errors import OutputError
from library.training.sharding.leading import LostProcessError
from library.training.sharding.settings import ShardingSettings
from library.training.sharding.sharded import Sharded


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Of a group of one process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    store = distributed.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield Sharded(ShardingSettings(), accelerator, timedelta(seconds=60))
    distributed.destroy_process_group()


def saved_in_a_context_that_fails(shards, error):
    """The error that ends a save, whose context has raised another one as it was entered."""

    @contextmanager
    def failing():
        raise error
        yield

    def save():
        with shards.everywhere("average"):
            raise AssertionError("was entered")

    shards.contexts = {"average": failing}
    with pytest.raises(type(error)):
        shards.lead(shards._accelerator, save)
    return dict(shards._entered)


def test_a_context_that_cannot_be_entered_is_left_by_all(shards):
    assert saved_in_a_context_that_fails(shards, OutputError("there is no room.")) == {}


def test_nobody_is_told_to_leave_where_a_process_cannot_go_on(shards):
    left = saved_in_a_context_that_fails(shards, LostProcessError("out of memory."))
    assert left.keys() == {"average"}
