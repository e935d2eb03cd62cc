"""Actors, nodes and workers of a cluster of several raylets die while votes are cast and questions are answered."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from processes import processes_named

from .conftest import IMAGES_PER_PART, NUM_IMAGES, stamps

ACTOR, ANSWERER = "MapWorker(MapBatches(VoteWorker))", "ray::_AnswerPart"
pytestmark = pytest.mark.timeout(2400)


class SmallCluster:
    """A head and two nodes of one CPU each, every one with its own raylet."""

    def __init__(self):
        import ray
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20},
        )
        self._nodes = [self._add(), self._add()]
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")

    def _add(self):
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
def cluster():
    from patchcert.stages.cluster import set_environment

    set_environment(embedded=True, verbose=False)
    cluster = SmallCluster()
    yield cluster
    cluster.shutdown()


def kill_newest(words):
    """Kills the youngest process with such a title, or nothing when none is there at this moment."""
    for process in processes_named(words)[-1:]:
        os.kill(process, signal.SIGKILL)
        return True
    return False


def test_table_survives_dying_actors_and_nodes(
    cluster, fault, lost, same_table, small_recipe, prepared, model_folder, tmp_path
):
    from patchcert.stages.resources import Resources
    from patchcert.stages.vote import vote
    from patchcert.workspace import Workspace

    receipts, num_faults, written = [], 0, {}

    def strike(receipt, progress):
        nonlocal num_faults
        receipts.append(receipt)
        for folder in tmp_path.glob("votes/*"):
            written.update(stamps(folder) | written)
        done = progress.parts_done
        if receipt.part < 0 or done >= progress.num_parts - 2:
            return
        if done % 3 == 1:
            # Parts come in bursts; an actor may still be starting after the kill before.
            deadline = time.monotonic() + 120
            while not kill_newest(ACTOR):
                assert time.monotonic() < deadline, "no actor comes back"
                time.sleep(0.1)
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

    resources = Resources(images_per_part=IMAGES_PER_PART, workers=2, part_timeout=300)
    table = vote(small_recipe, prepared["test"], model_folder, Workspace(str(tmp_path)), resources, on_part=strike)
    same_table(Path(table.location))
    assert sorted(receipt.part for receipt in receipts[1:]) == list(range(NUM_IMAGES // IMAGES_PER_PART))
    assert num_faults >= 9
    # A part is begun once more for each process that died on it; one that was finished stays as it was, unless its
    # actor lived on for a moment on a node that was lost.
    written_again = sum(written[name] != stamp for name, stamp in stamps(Path(table.location)).items())
    lost("parts", table.measured()["lost_attempts"] + written_again, num_faults)


def test_answers_survive_dying_workers(
    cluster, fault, lost, small_recipe, prepared, model_folder, tmp_path, monkeypatch
):
    from patchcert.stages import study
    from patchcert.stages.resources import Resources
    from patchcert.stages.vote import vote
    from patchcert.studies.answering import answer_part, per_image_table
    from patchcert.studies.questions import questions
    from patchcert.workspace import Workspace

    resources = Resources(images_per_part=IMAGES_PER_PART, workers=2)
    table = vote(small_recipe, prepared["test"], model_folder, Workspace(str(tmp_path)), resources)
    asked = questions(small_recipe.study, table.views, table.score_floor)
    expected = per_image_table([answer_part(table.read_part(i), table.views, asked) for i in range(table.num_parts)])
    begun, killed = tmp_path / "begun", 0
    begun.mkdir()

    # Local, so that it travels to the workers by value.
    class _AnswerPart(study._AnswerPart):
        """Writes down that a part was begun."""

        def __call__(self, part):
            (begun / f"{part}-{time.time_ns()}").touch()
            return super().__call__(part)

    def strike(num_images):
        nonlocal killed
        if killed < 2 and kill_newest(ANSWERER):
            killed += 1
            fault("answering worker killed")

    monkeypatch.setattr(study, "_AnswerPart", _AnswerPart)
    found = per_image_table(study.answer(table, asked, on_part=strike))
    assert killed == 2 and found.equals(expected)
    assert {int(path.name.partition("-")[0]) for path in begun.iterdir()} == set(range(table.num_parts))
    lost("parts of answers", len(list(begun.iterdir())) - table.num_parts, killed)


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
    cluster, fault, lost, undisturbed, small_recipe, prepared, model_folder, tmp_path, monkeypatch
):
    from patchcert.stages import vote as stage
    from patchcert.stages.resources import Resources
    from patchcert.workspace import Workspace

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
