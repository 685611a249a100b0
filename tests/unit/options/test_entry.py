"""What surrounds a run: exit codes, one line for an error, the traceback on request."""

import importlib
import logging

import pytest

from library.errors import DatasetError, EnvironmentFault, OutputError
from library.families.sd3.options import NETWORK_SCRIPT, Sd3NetworkOptions
from library.options import entry
from library.options.entry import run_script

NEEDED = ["--pretrained_model_name_or_path=sd3.safetensors", "--dataset_config=d.toml", "--output_dir=out"]
NEEDED += ["--network_module=networks.lora"]


@pytest.fixture(autouse=True)
def restored_log():
    logger = logging.getLogger("easel")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def start(run, *argv: str) -> int:
    return run_script(Sd3NetworkOptions, run, argv=[*NEEDED, *argv], **NETWORK_SCRIPT)


def failing(error: BaseException):
    def run(options):
        raise error

    return run


def test_a_run_that_ends_well_gives_0():
    seen = []
    assert start(seen.append) == 0
    assert seen[0].network.network_module == "networks.lora"
    assert start(lambda options: 4) == 4


@pytest.mark.parametrize(("kind", "code"), [(DatasetError, 2), (EnvironmentFault, 3), (OutputError, 5)])
def test_an_error_of_the_user_is_one_line_and_its_code(kind, code, capsys):
    assert start(failing(kind("a.toml: no such folder.\nCheck it."))) == code
    assert capsys.readouterr().err == "error: a.toml: no such folder. Check it.\n"


def test_only_the_items_of_a_list_get_lines_of_their_own(capsys):
    assert start(failing(DatasetError("a.toml: 2 problems:\n  x.png is\tempty\n  y.png is empty"))) == 2
    assert capsys.readouterr().err == "error: a.toml: 2 problems:\n  x.png is empty\n  y.png is empty\n"


def test_a_wrong_option_ends_before_the_run(capsys):
    assert start(failing(AssertionError()), "--network_dim=0") == 2
    assert capsys.readouterr().err == "error: --network_dim must be at least 1, got 0.\n"


def test_debug_shows_the_traceback_too(capsys):
    assert start(failing(DatasetError("bad")), "--debug") == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith("error: bad\n")


def test_ctrl_c_gives_130(capsys):
    assert start(failing(KeyboardInterrupt())) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_unexpected_errors_pass_through():
    with pytest.raises(ZeroDivisionError):
        start(failing(ZeroDivisionError()))


def test_help_goes_to_stdout_and_gives_0(capsys):
    assert start(failing(AssertionError()), "--help", "--nonsense") == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("usage: sd3_train_network.py") and shown.err == ""


def test_an_error_that_only_another_process_finds_is_told_too(capsys, monkeypatch):
    monkeypatch.setattr(entry, "GRACE_SECONDS", 0.01)
    monkeypatch.setenv("RANK", "1")
    assert start(failing(AssertionError()), "--network_dim=0") == 2
    assert start(failing(DatasetError("bad"))) == 2
    assert capsys.readouterr().err == "error: --network_dim must be at least 1, got 0.\nerror: bad\n"


def test_warnings_go_to_the_log(tmp_path):
    file = tmp_path / "log.txt"
    assert start(lambda options: 0, "--v2", f"--console_log_file={file}") == 0
    assert "Options without effect here: --v2" in file.read_text()


def test_a_log_file_that_cannot_be_written_gives_5(tmp_path, capsys):
    file = tmp_path / "absent" / "log.txt"
    assert start(failing(AssertionError()), f"--console_log_file={file}") == 5
    assert str(file) in capsys.readouterr().err


def test_a_missing_package_is_one_sentence_and_a_missing_module_of_ours_is_not(tmp_path, capsys):
    def needs(name):
        def run(options):
            importlib.import_module(name)

        return run

    assert start(needs("a_package_that_nobody_has.part")) == 3
    assert "a_package_that_nobody_has is not installed" in capsys.readouterr().err
    with pytest.raises(ModuleNotFoundError):
        start(needs("library.no_such_module"))
