"""From scores to tags: thresholds, order, words."""

import numpy as np
import pytest

from library.preparing.tagging.choosing import TagChooser, TagRules, appended, expanded, split_tags
from library.preparing.tagging.labels import Label
from library.preparing.tagging.replacing import read_replacements, without_underscores

LABELS = (
    Label("safe", "rating"),
    Label("explicit", "rating"),
    Label("long_hair", "general"),
    Label("0_0", "general"),
    Label("miku_(vocaloid)", "character"),
    Label("vocaloid", "copyright"),
    Label("good", "quality"),
    Label("bad", "quality"),
)
THRESHOLDS = {"general": 0.35, "character": 0.35, "copyright": 0.35}
ALL = (0.4, 0.6, 0.9, 0.8, 0.7, 0.6, 0.2, 0.1)


def tags(scores=ALL, **rules):
    chooser = TagChooser(LABELS, TagRules(**{"thresholds": THRESHOLDS, **rules}))
    return [tag.text for tag in chooser.choose(np.array(scores, np.float32))]


def test_tags_keep_the_order_of_the_table():
    assert tags() == ["long_hair", "0_0", "miku_(vocaloid)", "vocaloid"]


def test_a_score_of_exactly_the_threshold_is_enough():
    assert tags((0, 0, 0.35, 0.3499, 0, 0, 0, 0)) == ["long_hair"]


def test_each_category_has_its_own_threshold():
    assert tags(thresholds={"general": 0.85, "character": 0.75, "copyright": 0.5}) == ["long_hair", "vocaloid"]


def test_the_likeliest_rating_and_quality_go_first_or_last_whatever_their_score():
    assert tags(rating="first", quality="first")[:2] == ["explicit", "good"]
    assert tags(rating="last", quality="last")[-2:] == ["good", "explicit"]


def test_characters_first_stand_behind_the_rating():
    assert tags(rating="first", are_characters_first=True)[:3] == ["explicit", "miku_(vocaloid)", "long_hair"]


def test_tags_that_are_always_first_keep_the_order_they_are_given_in_and_are_not_invented():
    assert tags(always_first=("vocaloid", "long hair", "solo")) == ["vocaloid", "long_hair", "0_0", "miku_(vocaloid)"]


def test_an_expanded_character_gives_name_and_series_once():
    assert tags(are_characters_expanded=True) == ["long_hair", "0_0", "miku", "vocaloid"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("miku_(vocaloid)", ("miku", "vocaloid")),
        ("saber_(alter)_(fate)", ("saber_(alter)", "fate")),
        ("ann_(p_(5))", ("ann", "p_(5)")),
        ("hat (series)", ("hat", "series")),
        ("rin", ("rin",)),
        ("(series)", ("(series)",)),
        ("odd)", ("odd)",)),
    ],
)
def test_names_are_taken_apart_at_the_last_brackets(name, parts):
    assert expanded(name) == parts


def test_undesired_tags_are_left_out_in_either_spelling():
    assert tags(undesired=("long hair", "miku_(vocaloid)", "explicit"), rating="first") == ["0_0", "vocaloid"]


def test_a_part_of_a_character_can_be_undesired():
    assert tags(are_characters_expanded=True, undesired=("vocaloid",)) == ["long_hair", "0_0", "miku"]


@pytest.mark.parametrize("is_removed", [False, True])
def test_a_replacement_changes_the_named_tag_only(is_removed):
    rules = {"are_underscores_removed": is_removed, "replacements": read_replacements("long_hair,hair; vocaloid,song")}
    person = "miku (vocaloid)" if is_removed else "miku_(vocaloid)"
    assert tags(**rules) == ["hair", "0_0", person, "song"]


def test_replacements_are_not_replaced_again():
    rules = {"replacements": read_replacements("long hair,vocaloid;vocaloid,long hair")}
    assert tags(**rules) == ["vocaloid", "0_0", "miku_(vocaloid)", "long hair"]


def test_two_tags_with_one_target_are_written_once():
    assert tags(replacements=read_replacements("long_hair,x;0_0,x;vocaloid,x")) == ["x", "miku_(vocaloid)"]


def test_ratings_and_characters_are_replaced_too():
    rules = {"rating": "first", "replacements": read_replacements("explicit,nsfw;miku_(vocaloid),Miku")}
    assert tags(**rules) == ["nsfw", "long_hair", "0_0", "Miku", "vocaloid"]


@pytest.mark.parametrize(
    ("name", "rules", "words"),
    [
        ("0_0", {"replacements": {"0 0": "eyes"}}, ["eyes"]),
        ("eyes", {"replacements": {"0 0": "eyes"}}, ["eyes"]),
        ("miku_(vocaloid)", {"are_characters_expanded": True}, ["miku", "vocaloid"]),
        ("miku", {"are_characters_expanded": True, "replacements": {"miku": "Hatsune"}}, ["Hatsune"]),
        ("explicit", {"rating": "last", "replacements": {"explicit": "nsfw"}}, ["nsfw"]),
        ("vocaloid", {"replacements": {"long hair": "vocaloid", "vocaloid": "song"}}, ["vocaloid"]),
    ],
)
def test_a_tag_that_is_written_otherwise_comes_first_in_its_words(name, rules, words):
    first, without = tags(always_first=(name,), **rules), tags(**rules)
    assert first == [*words, *(tag for tag in without if tag not in words)]


def test_tags_that_cannot_come_first_are_known():
    rules = TagRules(thresholds=THRESHOLDS, undesired=("0_0",), always_first=("0_0", "long hair", "safe", "lnog hair"))
    assert TagChooser(LABELS, rules).never_first() == ["0_0", "safe", "lnog hair"]


def test_replacements_of_what_the_model_does_not_give_are_known():
    pairs = read_replacements("long_hair,wig;wig,hat;miku,Hatsune;miku_(vocaloid),x")
    assert TagChooser(LABELS, TagRules(thresholds=THRESHOLDS, replacements=pairs)).never_replaced() == ["wig", "miku"]


def test_words_with_the_separator_are_known_by_where_they_come_from():
    labels = (Label("black_hat", "general"), Label("a,b", "general"))
    chooser = TagChooser(labels, TagRules({"general": 0.5}, replacements=read_replacements(r"black hat,hat\, black")))
    assert (chooser.holding(","), chooser.replacing_with(",")) == (["a,b"], ["hat, black"])


def test_names_that_the_model_lacks_are_known():
    chooser = TagChooser(LABELS, TagRules(thresholds=THRESHOLDS, replacements={"long hair": "hair"}))
    assert chooser.unknown(("long hair", "hair", "0_0", "lnog hair")) == ["lnog hair"]


FACES = ["^_^", "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@"]
FACES += ["o_o", "u_u", "x_x", "|_|", "||_||", ";_;", "T_T"]


@pytest.mark.parametrize("face", FACES)
def test_faces_keep_their_underscores(face):
    assert without_underscores(face) == face


def test_words_lose_all_their_underscores():
    assert without_underscores("d.va_(over_watch)") == "d.va (over watch)"


def test_a_backslash_keeps_signs_that_are_part_of_a_tag():
    pairs = read_replacements(r"a\,b,c\;d;\m/ , \o/ ;")
    assert pairs == {"a,b": "c;d", r"\m/": r"\o/"}


@pytest.mark.parametrize("text", ["a", "a,b,c", "a,b;;c,d", ",b", "a,", "a,b;a,c", "long_hair,a;long hair,b", "", ";"])
def test_odd_replacements_are_refused(text):
    with pytest.raises(ValueError, match="needs pairs|without source|twice"):
        read_replacements(text)


def test_appending_adds_only_what_is_not_there():
    assert appended("a girl,long hair", ["long_hair", "hat", "a girl"], ", ") == "a girl, long hair, hat"


def test_appending_nothing_new_changes_nothing():
    assert appended("b ,a", ["a"], ", ") == "b ,a"


def test_a_separator_of_blanks_splits():
    assert split_tags("a b", " ") == ["a", "b"]
