"""What a new word begins as, and the sentences that it is learned from."""

from __future__ import annotations

import pytest
import torch

from library.training.textual_inversion.first_vectors import drawn_rows, rows_of
from library.training.textual_inversion.templates import OBJECTS, STYLES, sentences


def test_rows_are_those_of_the_ids_and_a_copy():
    table = torch.arange(12.0).reshape(4, 3)
    rows = rows_of(table, [2, 0, 2])
    assert torch.equal(rows, table[[2, 0, 2]])
    rows += 1
    assert torch.equal(table, torch.arange(12.0).reshape(4, 3))


def test_drawn_rows_lie_as_those_of_the_table_do():
    draws = torch.Generator().manual_seed(0)
    table = torch.randn(4000, 8, generator=draws) * torch.arange(1.0, 9.0) + 5
    rows = drawn_rows(table, 4000, seed=1, encoder="first")
    assert torch.allclose(rows.mean(dim=0), table.mean(dim=0), atol=0.6)
    assert torch.allclose(rows.std(dim=0), table.std(dim=0), rtol=0.1)


def test_draws_depend_on_seed_and_encoder_and_on_nothing_else():
    table = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    first = drawn_rows(table, 2, seed=1, encoder="first")
    torch.rand(3)
    assert torch.equal(drawn_rows(table, 2, seed=1, encoder="first"), first)
    assert torch.equal(drawn_rows(table, 2, seed=1, encoder="first")[0], first[0])
    assert not torch.equal(drawn_rows(table, 2, seed=2, encoder="first"), first)
    assert not torch.equal(drawn_rows(table, 2, seed=1, encoder="second"), first)


@pytest.mark.parametrize("templates", [OBJECTS, STYLES])
def test_every_sentence_has_one_place_for_the_word(templates: tuple[str, ...]):
    assert all(sentence.count("{}") == 1 for sentence in templates)
    assert len(set(templates)) == len(templates) >= 20


def test_the_word_is_in_every_sentence_of_the_kind_that_is_asked_for():
    things, styles = sentences("<x>", is_style=False), sentences("<x>", is_style=True)
    assert all("<x>" in sentence for sentence in (*things, *styles))
    assert not set(things) & set(styles)
