"""Ray tasks that are never cancelled: results in order, a bounded number ahead, errors in their own words."""

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import patchcert
from patchcert.errors import DatasetError


def test_the_package_cancels_no_ray_task():
    """Cancelling a task at the moment it finishes ends the whole process, inside Ray."""
    found = [
        f"{path.name}: {ast.unparse(node.func)}"
        for path in Path(patchcert.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("ray.cancel", "ray.kill"))
    ]
    assert found == []


def test_results_come_in_order_and_arguments_are_taken_as_cpus_become_free(ray_cluster):
    from patchcert.stages.tasks import results_in_order

    taken = []

    def arguments():
        for number in range(40):
            taken.append(number)
            yield number

    def square(number):
        time.sleep(0.02 * (number % 3))
        return number**2

    results = results_in_order(ray_cluster, square, arguments(), "a square")
    assert next(results) == 0 and len(taken) == 8
    assert [0, *results] == [number**2 for number in range(40)]


def test_the_first_failure_is_raised_as_it_was_and_the_other_tasks_end_unseen(ray_cluster, tmp_path):
    from patchcert.stages.tasks import results_in_order

    def work(number):
        if number == 1:
            raise DatasetError("row 7 is damaged\n  Restore it.")
        (tmp_path / str(number)).touch()
        return number

    results = results_in_order(ray_cluster, work, range(6), "a number")
    assert next(results) == 0
    with pytest.raises(DatasetError) as caught:
        next(results)
    assert type(caught.value) is DatasetError and str(caught.value) == "row 7 is damaged\n  Restore it."
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 5:
        assert time.monotonic() < deadline


def test_a_part_that_hangs_ends_its_own_process(tmp_path):
    """Even one that holds the interpreter: its deadline is watched by native code."""
    hang = (
        "import re\n"
        "from patchcert.stages.vote_worker import _ends_process_after\n"
        "with _ends_process_after(60): pass\n"
        "print('in time', flush=True)\n"
        "with _ends_process_after(0.5): re.match('(a*)*b', 'a' * 60)\n"
        "print('never')\n"
    )
    ended = subprocess.run([sys.executable, "-c", hang], capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stdout) == (1, "in time\n")
    assert "Timeout (0:00:00.5" in ended.stderr


@pytest.mark.slow
def test_a_hundred_preparations_on_one_ray_leave_the_process_alive():
    script = Path(__file__).with_name("many_preparations.py")
    ended = subprocess.run(
        [sys.executable, str(script), "100"], capture_output=True, text=True, env=os.environ, check=False
    )
    assert ended.returncode == 0, f"died after {ended.stdout.split()[-1:]}: {ended.stderr[-2000:]}"
    assert ended.stdout.split()[-1] == "100"
