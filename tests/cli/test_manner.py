import json

import pytest
import typer
from typer.testing import CliRunner

from fedmerge.cli import manner
from fedmerge.errors import ConfigError

RAISED = {
    "ours": ConfigError("train.steps = 0: expected more"),
    "file": FileNotFoundError(2, "No such file or directory", "there.jsonl"),
    "module": ModuleNotFoundError("No module named 'peft'", name="peft"),
    "bug": ValueError("oh"),
    "ctrl-c": KeyboardInterrupt(),
}


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.callback()
    def options() -> None:
        pass

    @app.command(cls=manner.Command)
    def fail(how: str) -> manner.Outcome:
        raise RAISED[how]

    @app.command(cls=manner.Command)
    def work(status: int = 0) -> manner.Outcome:
        print("a library's chatter")
        return manner.Outcome({"score": float("nan"), "silos": ("a",)}, ["[bold] and done"], status)

    return app


@pytest.mark.parametrize(
    ("how", "said", "status"),
    [
        ("ours", "fedmerge: train.steps = 0: expected more\n", 1),
        ("file", "fedmerge: No such file or directory: there.jsonl\n", 1),
        ("module", "fedmerge: the Python package 'peft' is missing here", 1),
        ("bug", "fedmerge: unforeseen ValueError: oh", 1),
        ("ctrl-c", "fedmerge: stopped by Ctrl-C", 130),
    ],
)
def test_an_error_is_one_sentence(app: typer.Typer, how: str, said: str, status: int) -> None:
    result = CliRunner().invoke(app, ["fail", how])
    assert result.exit_code == status
    assert result.stderr.startswith(said)
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize("how", sorted(RAISED))
def test_json_of_an_error(app: typer.Typer, how: str) -> None:
    result = CliRunner().invoke(app, ["fail", how, "--json"])
    assert result.exit_code in (1, 130)
    error = json.loads(result.stdout)["error"]
    assert error["message"]
    assert error["kind"] == ("Interrupted" if how == "ctrl-c" else type(RAISED[how]).__name__)


def test_debug_shows_the_traceback(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["fail", "bug", "--debug"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ValueError)


def test_json_is_one_object_whatever_libraries_print(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["work", "--json"])
    assert json.loads(result.stdout) == {"score": None, "silos": ["a"]}
    assert result.exit_code == 0


def test_markup_in_text_is_text_and_the_status_is_true(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["work", "--status", "3"])
    assert result.stdout == "[bold] and done\n"
    assert "chatter" in result.stderr
    assert result.exit_code == 3


def test_a_misspelt_option_is_a_usage_error(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["work", "--stauts", "3"])
    assert result.exit_code == 2
    assert "--status" in result.stderr
    result = CliRunner().invoke(app, ["work", "--json", "--stauts", "3"])
    assert json.loads(result.stdout)["error"]["kind"] == "UsageError"
