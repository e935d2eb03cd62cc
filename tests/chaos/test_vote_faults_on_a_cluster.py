"""Actors, nodes and workers of a cluster of several raylets die while votes are cast and questions are answered."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from processes import processes_named

from .conftest import IMAGES_PER_PART, NUM_IMAGES

ACTOR, ANSWERER = "MapWorker(MapBatches(VoteWorker))", "Map(_AnswerPart"
pytestmark = pytest.mark.timeout(900)


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
    cluster, fault, same_table, small_recipe, prepared, model_folder, tmp_path
):
    from patchcert.stages.resources import Resources
    from patchcert.stages.vote import vote
    from patchcert.workspace import Workspace

    receipts, num_faults = [], 0

    def strike(receipt, progress):
        nonlocal num_faults
        receipts.append(receipt)
        done = progress.parts_done
        if receipt.part < 0 or done >= progress.num_parts - 2:
            return
        if done % 3 == 1 and kill_newest(ACTOR):
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
    # A part is begun once more for each process that died on it; nothing that was finished is computed again.
    assert table.measured()["lost_attempts"] <= num_faults


def test_answers_survive_dying_workers(cluster, fault, small_recipe, prepared, model_folder, tmp_path):
    from patchcert.stages.resources import Resources
    from patchcert.stages.study import answer
    from patchcert.stages.vote import vote
    from patchcert.studies.answering import answer_part, per_image_table
    from patchcert.studies.questions import questions
    from patchcert.workspace import Workspace

    resources = Resources(images_per_part=IMAGES_PER_PART, workers=2)
    table = vote(small_recipe, prepared["test"], model_folder, Workspace(str(tmp_path)), resources)
    asked = questions(small_recipe.study, table.views, table.score_floor)
    expected = per_image_table([answer_part(table.read_part(i), table.views, asked) for i in range(table.num_parts)])
    killed = 0

    def strike(num_images):
        nonlocal killed
        if killed < 2 and kill_newest(ANSWERER):
            killed += 1
            fault("Ray Data worker killed")

    found = per_image_table(answer(table, asked, on_part=strike))
    assert killed == 2 and found.equals(expected)


def test_part_that_ends_every_process_is_quarantined(
    cluster, fault, undisturbed, small_recipe, prepared, model_folder, tmp_path
):
    import dataclasses

    from patchcert.prediction.config import PredictionConfig
    from patchcert.stages.resources import Resources
    from patchcert.stages.vote import vote
    from patchcert.workspace import Workspace

    marks = tmp_path / "votes"

    # Local, so that it travels to the actors by value.
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Deadly(PredictionConfig):
        """Ends the process that computes part 3, as memory that runs out would."""

        def __getattribute__(self, name):
            # Asked for before every chunk.
            if name == "precision":
                begun = sorted(marks.glob("*/attempts/part-*"), key=lambda mark: mark.stat().st_mtime_ns)
                if begun and begun[-1].name.startswith("part-00003"):
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().__getattribute__(name)

    recipe = dataclasses.replace(small_recipe, prediction=Deadly(**dataclasses.asdict(small_recipe.prediction)))
    resources = Resources(images_per_part=IMAGES_PER_PART, workers=1, on_bad_part="quarantine", part_attempts=2)
    table = vote(recipe, prepared["test"], model_folder, Workspace(str(tmp_path)), resources)
    for _ in range(3):
        fault("process ended by its part")
    assert table.unvoted_rows == [(3 * IMAGES_PER_PART, 4 * IMAGES_PER_PART)]
    reasons = (Path(table.location) / "quarantined_parts.json").read_text()
    assert "ended its worker process" in reasons or "lost its process" in reasons
    names = [name for name in undisturbed if name.startswith("part-") and "00003-of" not in name]
    assert len(names) == NUM_IMAGES // IMAGES_PER_PART - 1
    assert all((Path(table.location) / name).read_bytes() == undisturbed[name] for name in names)
    part = table.read_part(3)
    assert np.array_equal(part.first_row, 4 * IMAGES_PER_PART)
