import os
import pty
import subprocess
import sys

from patchcert.console import Terminal

BAR = """
from patchcert.console import Terminal
with Terminal().progress("vote", "images") as bar:
    for done in range(0, 1001):
        bar.update(done, 1000, "part ready" if done == 1000 else "")
"""


def test_a_log_gets_a_plain_line_for_every_tenth_even_when_colours_are_forced():
    for variables in ({}, {"FORCE_COLOR": "1"}, {"TTY_COMPATIBLE": "1"}):
        done = subprocess.run([sys.executable, "-c", BAR], capture_output=True, env=os.environ | variables, check=True)
        lines = done.stderr.decode().splitlines()
        assert len(lines) == 10 and lines[4].startswith("vote: 500/1000 images, 0:00 left"), variables
        assert lines[-1] == "vote: 1000/1000 images  part ready"
        assert b"\x1b[" not in done.stderr and b"\r" not in done.stderr


def test_a_screen_gets_a_bar():
    ours, theirs = pty.openpty()
    done = subprocess.Popen([sys.executable, "-c", BAR], stderr=theirs, env=os.environ | {"TERM": "xterm"})
    os.close(theirs)
    drawn = b""
    while True:
        try:
            if not (more := os.read(ours, 4096)):
                break
        except OSError:
            break
        drawn += more
    assert done.wait(60) == 0 and b"\x1b[" in drawn and b"1000/1000" in drawn
    os.close(ours)


def test_a_slow_run_says_once_a_minute_how_long_it_will_take(capsys, monkeypatch):
    seconds = [0]
    monkeypatch.setattr("patchcert.console.time.monotonic", lambda: seconds[0])
    with Terminal().progress("vote", "images") as bar:
        bar.update(400, 1000)  # found done by a resumed run: no measure of its speed
        for seconds[0], done in ((20, 410), (40, 420), (60, 430), (90, 445), (120, 460), (7320, 461)):
            bar.update(done, 1000)
    assert capsys.readouterr().err.splitlines() == [
        "vote: 400/1000 images",
        "vote: 430/1000 images, 19:00 left",
        "vote: 460/1000 images, 18:00 left",
        "vote: 461/1000 images, 17:58:00 left",
    ]


def test_names_from_files_cannot_steer_the_terminal(capsys):
    from rich.table import Table

    terminal = Terminal()
    table = Table("name [/x]", title="[bold]title[/nothing]")
    table.add_row("\x1b[2J\x07 [/x] \u202e:smile:")
    terminal.result(table)
    terminal.result("\x1b]0;title\x07 [/x]")
    terminal.say("\x9b31m [/x]")
    shown = "".join(capsys.readouterr())
    assert not set(shown) & {"\x1b", "\x07", "\x9b", "\u202e"}
    for text in ("[bold]title[/nothing]", "name [/x]", "\\x1b[2J\\x07 [/x] \\u202e:smile:", "\\x9b31m [/x]"):
        assert text in shown


def test_a_message_of_an_error_cannot_steer_the_terminal(capsys):
    from patchcert.cli import main

    assert main(["run", "\x1b[2Jcolumn4"]) == 2
    assert "\x1b" not in "".join(capsys.readouterr())
