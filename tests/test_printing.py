"""What is printed where nobody can read it: no traceback, no lost work, the work's exit status.

Real processes with real descriptors: closed ones, full devices, pipes without a reader, encodings
that lack a character.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from hebm_sample.cli.edit import main as edit
from hebm_sample.cli.evaluation.main import main as evaluation
from hebm_sample.cli.printing import say
from hebm_sample.cli.sample import main as sample
from hebm_sample.cli.train import main as train
from hebm_sample.errors import EnvironmentFailure

ROOT = Path(__file__).resolve().parents[1]
# Longer than what a pipe holds; an é, a byte that is no UTF-8 in a name, and another alphabet.
COMMAND = """
import sys

import click

from hebm_sample.cli.errors import OneLineErrors
from hebm_sample.cli.printing import say


@click.group(cls=type("Group", (OneLineErrors, click.Group), {}))
def main():
    pass


@main.command(cls=OneLineErrors)
@click.argument("done")
@click.pass_context
def work(ctx, done):
    "A command."
    print("a bar", file=sys.stderr)
    say("a note \\u00e9", err=True)
    for _ in range(30):
        say("r\\u00e9sultat \\udcff \\u03b1 " + 10000 * "x")
    open(done, "w").close()
    ctx.exit(7)


main()
"""
bash = pytest.mark.skipif(
    shutil.which("bash") is None or not os.path.exists("/dev/full"), reason="needs bash, /dev/full"
)


def shell(tmp_path, line, **environment):
    """`line` in bash, RUN being the command; its last status is that of the command."""
    (tmp_path / "command.py").write_text(COMMAND)
    run = f"{sys.executable} {tmp_path / 'command.py'}"
    known = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        ["bash", "-c", line.replace("RUN", run) + "; exit ${PIPESTATUS[0]}"],
        env=known,
        capture_output=True,
        timeout=100,
        cwd=tmp_path,
    )


@bash
@pytest.mark.parametrize(
    "where",
    ["| head -c 1", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full >out", "2>&1 | head -c 1"],
)
def test_nobody_reads_and_the_work_is_done(tmp_path, where):
    done = shell(tmp_path, f"RUN work done {where}")
    assert done.returncode == 7, done.stderr
    assert (tmp_path / "done").exists()
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr


@bash
@pytest.mark.parametrize("words", ["work done", "--help", "work --help"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_full_device_is_one_line(tmp_path, words, encoding):
    done = shell(tmp_path, f"RUN {words} >/dev/full", PYTHONIOENCODING=encoding)
    lines = [x for x in done.stderr.decode().splitlines() if not x.startswith("a ")]
    assert done.returncode == 1 and len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ") and "No space left on device" in lines[0]


@bash
@pytest.mark.parametrize(
    "encoding, shown",
    [
        ("ascii", b"r\\xe9sultat \\udcff \\u03b1"),
        ("cp1252", b"r\xe9sultat \\udcff \\u03b1"),
        ("utf-8", "résultat \\udcff α".encode()),
    ],
)
def test_what_an_encoding_lacks_is_replaced(tmp_path, encoding, shown):
    done = shell(tmp_path, "RUN work done >out", PYTHONIOENCODING=encoding)
    assert done.returncode == 7, done.stderr
    first = (tmp_path / "out").read_bytes().splitlines()[0]
    assert first.rstrip(b"x") == shown + b" "


@bash
def test_closed_descriptors_do_not_become_those_of_files(tmp_path):
    """What a library prints to descriptor 2 would go into the file."""
    script = COMMAND.replace('open(done, "w").close()', 'assert open(done, "w").fileno() > 2')
    (tmp_path / "other.py").write_text(script)
    line = f"{sys.executable} other.py work done <&- >&- 2>&-"
    assert shell(tmp_path, line).returncode == 7


def test_streams_are_as_before_afterwards():
    before = sys.stdin, sys.stdout, sys.stderr, getattr(sys.stdout, "errors", None)
    CliRunner().invoke(sample, ["--list"])
    with pytest.raises(SystemExit):
        sample(["--version"])
    assert (sys.stdin, sys.stdout, sys.stderr, getattr(sys.stdout, "errors", None)) == before


# What holds for every command


def calls(node):
    found = [
        (n.lineno, n.func.id)
        for n in ast.walk(node)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    ]
    return [name for _, name in sorted(found)]


def test_all_that_commands_print_goes_one_way():
    for folder in ("cli", "demo"):
        for path in (ROOT / "hebm_sample" / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert "print" not in calls(tree), path
            names = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
            assert not names & {"echo", "secho"}, path


def figures_printed(node):
    """The function without lines on the standard error, such as how long it will take."""
    for n in ast.walk(node):
        if isinstance(n, ast.Call) and any(k.arg == "err" for k in n.keywords):
            n.func = ast.Name("told", ast.Load())
    return node


def test_figures_are_written_before_they_are_printed():
    ordered = 0
    for path in (ROOT / "hebm_sample/cli/evaluation").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and "write_json" in (
                names := calls(figures_printed(node))
            ):
                assert names.index("write_json") < names.index("say"), path
                ordered += 1
    assert ordered == 4


def test_figures_that_cannot_be_printed_are_there(tmp_path, monkeypatch):
    def full(*_, **__):
        raise EnvironmentFailure("cannot write to the standard output: full")

    class Found:
        table = staticmethod(lambda: "a table")
        to_dict = staticmethod(lambda: {"distance": 1.0})

    monkeypatch.setattr("hebm_sample.evaluation.folders.compare_folders", lambda *_, **__: Found)
    # The package's attribute `compare` is the command.
    monkeypatch.setattr(sys.modules["hebm_sample.cli.evaluation.compare"], "say", full)
    words = ["compare", str(tmp_path), str(tmp_path), "--json", str(tmp_path / "f.json")]
    result = CliRunner().invoke(evaluation, words)
    assert result.exit_code == 1 and "standard output" in result.stderr
    assert '"distance": 1.0' in (tmp_path / "f.json").read_text()
    again = CliRunner().invoke(evaluation, words)
    assert again.exit_code == 2 and "add --overwrite" in again.stderr
    assert CliRunner().invoke(evaluation, [*words, "--overwrite"]).exit_code == 1


@pytest.mark.parametrize("command", [sample, edit, train, evaluation], ids=lambda c: str(c.name))
def test_help_is_printed_in_any_encoding(command):
    names = sorted(getattr(command, "commands", {}))
    for words in ([], *([name] for name in names)):
        result = CliRunner(charset="cp932").invoke(command, [*words, "--help"])
        assert result.exit_code == 0 and result.stdout.startswith("Usage: "), words


def test_names_do_not_control_a_terminal(capsys):
    say("a\x1b[31mred\x07.png\x9b0m\ta\nb")
    assert capsys.readouterr().out == "a?[31mred?.png?0m\ta\nb\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_tables_show_such_a_name_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "e\x1b[31mvil\nx.png"
    Image.new("RGB", (20, 20)).save(name)
    result = CliRunner().invoke(edit, ["score", name, "--dataset", "cifar10"])
    assert result.exit_code == 0, result.output
    assert "e?[31mvil?x.png" in result.stdout and "\x1b" not in result.output


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (sample, ["--dataset", "cifar10", "-n", "1", "--outdir", "a" * 300]),
        (edit, ["score", "a" * 300 + ".png", "--dataset", "cifar10"]),
    ],
)
def test_names_that_are_too_long_are_bad_input(command, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, words)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "too long" in result.stderr


def test_a_large_image_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("1", (9500, 9500)).save("large.png")
    code = "from hebm_sample.cli.edit import main; main()"
    command = [sys.executable, "-c", code, "score", "large.png", "--dataset", "cifar10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
