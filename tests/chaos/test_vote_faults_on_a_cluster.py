"""Actors, nodes and workers of a cluster of several raylets die while votes are cast and questions are answered."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from processes import processes_named

from .conftest import NUM_IMAGES, stamps
from .held import IMAGES_PER_PART, UNLIMITED

ACTOR = "MapWorker(MapBatches(VoteWorker))"
# Ray Data hands a receipt over when those after it are there as well.
PARTS_AHEAD = 4
pytestmark = pytest.mark.timeout(2400)


class SmallCluster:
    """A head and two nodes of one CPU each, every one with its own raylet."""

    def __init__(self, hold):
        import ray
        from ray.cluster_utils import Cluster

        self._hold = hold
        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20},
        )
        self._nodes = [self._add(), self._add()]
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def _add(self):
        with self._hold.over_what_starts():
            return self._cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)

    def lose_a_node(self, *, notice=False):
        """Ends a node and starts another in its place."""
        self._cluster.remove_node(self._nodes.pop(0), allow_graceful=notice)
        self._nodes.append(self._add())

    def shutdown(self):
        import ray

        ray.shutdown()
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def cluster(held_here):
    from patchcert.stages.cluster import set_environment

    set_environment(embedded=True, verbose=False)
    cluster = SmallCluster(held_here)
    yield cluster
    cluster.shutdown()


def kill_voting_actor(table, hold):
    """Kills an actor that is held in the middle of a part; one may still be starting after the fault before."""
    deadline = time.monotonic() + 120
    while True:
        voting = set(processes_named(ACTOR))
        for _, _, process in hold.waiting(table):
            if process in voting:
                os.kill(process, signal.SIGKILL)
                return
        assert time.monotonic() < deadline, "no actor comes back"
        time.sleep(0.05)


def test_table_survives_dying_actors_and_nodes(
    cluster, held_here, fault, lost, same_table, small_recipe, prepared, model_folder, tmp_path
):
    from patchcert.stages.resources import Resources
    from patchcert.stages.vote import vote
    from patchcert.workspace import Workspace

    receipts, num_faults, written = [], 0, {}

    def strike(receipt, progress):
        """Injects a fault while parts are held in their middle, then lets one more part be written."""
        nonlocal num_faults
        receipts.append(receipt)
        for folder in tmp_path.glob("votes/*"):
            written.update(stamps(folder) | written)
        done = progress.parts_done
        if receipt.part < 0:
            return
        if done >= progress.num_parts - 2:
            held_here.allow(parts=UNLIMITED)
            return
        if done % 3 == 1:
            kill_voting_actor(folder, held_here)
            num_faults += 1
            fault("voting actor killed")
        elif done in (9, 20):
            cluster.lose_a_node()
            num_faults += 1
            fault("node killed")
        elif done == 15:
            cluster.lose_a_node(notice=True)
            num_faults += 1
            fault("node taken away with notice")
        held_here.allow(parts=done + PARTS_AHEAD)

    held_here.allow(parts=PARTS_AHEAD)
    # So many that no part is given up, however often the same one is hit.
    resources = Resources(images_per_part=IMAGES_PER_PART, workers=2, part_timeout=300, part_attempts=20)
    table = vote(small_recipe, prepared["test"], model_folder, Workspace(str(tmp_path)), resources, on_part=strike)
    same_table(Path(table.location))
    assert sorted(receipt.part for receipt in receipts[1:]) == list(range(NUM_IMAGES // IMAGES_PER_PART))
    assert num_faults >= 9
    # A part is begun once more for each process that died on it; one that was finished stays as it was, unless its
    # actor lived on for a moment on a node that was lost.
    written_again = sum(written[name] != stamp for name, stamp in stamps(Path(table.location)).items())
    lost("parts", table.measured()["lost_attempts"] + written_again, num_faults)


def test_answers_survive_dying_workers(
    cluster, held_here, fault, lost, small_recipe, prepared, model_folder, tmp_path, monkeypatch
):
    from patchcert.stages import study
    from patchcert.stages.resources import Resources
    from patchcert.stages.vote import vote
    from patchcert.studies.answering import answer_part, per_image_table
    from patchcert.studies.questions import questions
    from patchcert.workspace import Workspace

    held_here.allow(parts=UNLIMITED)
    resources = Resources(images_per_part=IMAGES_PER_PART, workers=2)
    table = vote(small_recipe, prepared["test"], model_folder, Workspace(str(tmp_path)), resources)
    asked = questions(small_recipe.study, table.views, table.score_floor)
    expected = per_image_table([answer_part(table.read_part(i), table.views, asked) for i in range(table.num_parts)])
    deadly = (5, 15)
    (marks := tmp_path / "marks").mkdir()

    # Local, so that it travels to the workers by value.
    class _AnswerPart(study._AnswerPart):
        """Writes down that a part was begun; two parts end their process the first time."""

        def __call__(self, part):
            (marks / f"{part}-{time.time_ns()}").touch()
            if part in deadly and begun(marks, part) == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(part)

    monkeypatch.setattr(study, "_AnswerPart", _AnswerPart)
    found = per_image_table(study.answer(table, asked))
    assert found.equals(expected)
    for part in deadly:
        assert begun(marks, part) == 2
        fault("answering worker killed")
    assert {int(path.name.partition("-")[0]) for path in marks.iterdir()} == set(range(table.num_parts))
    lost("parts of answers", len(list(marks.iterdir())) - table.num_parts, len(deadly))


def dying_worker(deaths, is_deadly):
    """A voting worker, and a task of one, that end their process as memory that runs out does, and leave a trace."""
    from patchcert.stages.vote_worker import VoteWorker

    # Local, so that they travel to the actors by value.
    class DyingWorker(VoteWorker):
        def _load(self):
            self._die_if("load")
            super()._load()

        def _votes(self, start, stop):
            self._die_if(start // IMAGES_PER_PART)
            return super()._votes(start, stop)

        def _die_if(self, what):
            (deaths / f"{what}-{time.time_ns()}").touch()
            if what == is_deadly:
                os.kill(os.getpid(), signal.SIGKILL)

    def computed_once(job, row, seconds):
        return DyingWorker(job).compute(row)

    return DyingWorker, computed_once


def begun(deaths, what):
    """How often a part, or the loading of the model, was begun."""
    return len(list(deaths.glob(f"{what}-*")))


def test_part_that_ends_every_process_is_quarantined(
    cluster, held_here, fault, lost, undisturbed, small_recipe, prepared, model_folder, tmp_path, monkeypatch
):
    from patchcert.stages import vote as stage
    from patchcert.stages.resources import Resources
    from patchcert.workspace import Workspace

    held_here.allow(parts=UNLIMITED)
    (deaths := tmp_path / "deaths").mkdir()
    worker, computed_once = dying_worker(deaths, 3)
    monkeypatch.setattr(stage, "VoteWorker", worker)
    monkeypatch.setattr(stage, "computed_once", computed_once)
    resources = Resources(images_per_part=IMAGES_PER_PART, workers=1, on_bad_part="quarantine", part_attempts=2)
    table = stage.vote(small_recipe, prepared["test"], model_folder, Workspace(str(tmp_path)), resources)
    # Twice in the pool of actors, until its marks speak against it; then once more in a process of its own.
    assert begun(deaths, 3) == 3
    for _ in range(3):
        fault("process ended by its part")
    assert table.unvoted_rows == [(3 * IMAGES_PER_PART, 4 * IMAGES_PER_PART)]
    reasons = (Path(table.location) / "quarantined_parts.json").read_text()
    assert "lost its process" in reasons
    others = [part for part in range(NUM_IMAGES // IMAGES_PER_PART) if part != 3]
    lost("parts", sum(begun(deaths, part) - 1 for part in others), 0)
    names = [name for name in undisturbed if name.startswith("part-") and "00003-of" not in name]
    assert len(names) == len(others)
    assert all((Path(table.location) / name).read_bytes() == undisturbed[name] for name in names)
    part = table.read_part(3)
    assert np.array_equal(part.first_row, 4 * IMAGES_PER_PART)


def test_actors_that_die_while_they_start_end_the_stage_with_a_word(
    cluster, fault, small_recipe, prepared, model_folder, tmp_path, monkeypatch
):
    """Ray starts such actors again without end; the stage does not wait for ever."""
    from patchcert.errors import VoteTableError
    from patchcert.stages import vote as stage
    from patchcert.stages.resources import Resources
    from patchcert.workspace import Workspace

    (deaths := tmp_path / "deaths").mkdir()
    worker, computed_once = dying_worker(deaths, "load")
    monkeypatch.setattr(stage, "VoteWorker", worker)
    monkeypatch.setattr(stage, "computed_once", computed_once)
    resources = Resources(images_per_part=IMAGES_PER_PART, workers=1, part_timeout=60)
    with pytest.raises(VoteTableError, match=r"of 30 parts failed, too many to be bad parts.*nothing had happened for"):
        stage.vote(small_recipe, prepared["test"], model_folder, Workspace(str(tmp_path)), resources)
    assert begun(deaths, "load") >= 1
    for _ in range(begun(deaths, "load")):
        fault("actor killed while it starts")
