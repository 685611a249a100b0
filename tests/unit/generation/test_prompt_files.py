"""Files and modules that give prompts."""

from types import SimpleNamespace

import pytest

from library.errors import OptionError
from library.generation.prompt_file import PromptLine, read_prompt_lines, shuffled
from library.generation.prompters import prompts_of_module

ARGS = SimpleNamespace(prompter_module_args="red,blue", steps=3)


def test_blank_lines_and_comments_are_passed_over(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffa cat --w 64\r\n\r\n# a dog\r\n  a bird  \n  # none".encode())
    assert read_prompt_lines(path) == [
        PromptLine("a cat --w 64", f"{path} line 1"),
        PromptLine("a bird", f"{path} line 4"),
    ]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist. Check the path."),
        (b"", "has no prompt"),
        (b"# only this\n\n", "has no prompt"),
        (b"caf\xe9", "is not UTF-8 text (byte 3)"),
        (b"x" * (16 * 1024**2 + 1), "has more than 16,777,216 bytes"),
    ],
    ids=["missing", "empty", "comments", "latin-1", "huge"],
)
def test_files_without_prompts_are_named(tmp_path, content, sentence):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(OptionError) as error:
        read_prompt_lines(path)
    assert str(error.value).startswith(f"--from_file: {path} {sentence}")


def test_a_folder_is_named(tmp_path):
    with pytest.raises(OptionError, match="is a folder"):
        read_prompt_lines(tmp_path)


def test_shuffled_prompts_are_keyed_by_seed_and_iteration():
    lines = list(range(50))
    assert sorted(shuffled(lines, seed=1)) == lines
    assert shuffled(lines, seed=1) == shuffled(lines, seed=1)
    assert shuffled(lines, seed=1) != shuffled(lines, seed=2)
    assert shuffled(lines, seed=1) != shuffled(lines, seed=1, iteration=1)


def module(tmp_path, text):
    path = tmp_path / "prompter.py"
    path.write_text(text)
    return path


def test_a_module_gives_prompts_as_they_are_asked_for(tmp_path):
    text = (
        "def get_prompter(args):\n"
        "    for colour in args.prompter_module_args.split(','):\n"
        "        yield f'a {colour} car'\n"
        "    while True:\n"
        "        yield 'again'\n"
    )
    prompts = prompts_of_module(module(tmp_path, text), ARGS)
    assert [next(prompts) for _ in range(4)] == ["a red car", "a blue car", "again", "again"]


def test_a_prompter_of_three_parameters_gets_no_pipeline(tmp_path):
    text = "def get_prompter(args, pipe, networks):\n    return [f'{args.steps} {pipe} {networks}']\n"
    assert list(prompts_of_module(module(tmp_path, text), ARGS)) == ["3 None None"]


def test_a_prompter_may_give_a_function_that_gives_the_texts(tmp_path):
    text = "def get_prompter(args, pipe, networks):\n    def give():\n        yield 'a'\n    return give\n"
    assert list(prompts_of_module(module(tmp_path, text), ARGS)) == ["a"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no function get_prompter(args). Add it."),
        ("def get_prompter():\n    return []\n", "has 0 parameters"),
        ("1 +\n", "fails (SyntaxError"),
        ("\n1 / 0\n", "fails in line 2 (ZeroDivisionError: division by zero)"),
        ("def get_prompter(args):\n    return 5\n", "fails (TypeError"),
        ("def get_prompter(args):\n    yield 'a'\n    raise OSError('no')\n", "fails in line 3 (OSError: no)"),
        ("def get_prompter(args):\n    yield 5\n", "gives 5. It must give texts."),
    ],
)
def test_what_is_wrong_with_a_module_is_named(tmp_path, text, sentence):
    path = module(tmp_path, text)
    with pytest.raises(OptionError) as error:
        list(prompts_of_module(path, ARGS))
    assert sentence in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_module_is_named(tmp_path):
    with pytest.raises(OptionError, match="does not exist or is no file"):
        prompts_of_module(tmp_path / "missing.py", ARGS)
