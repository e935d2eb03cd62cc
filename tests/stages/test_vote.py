import dataclasses
import os

import pyarrow as pa
import pytest
from vote_jobs import digests, job_of

from patchcert.errors import CheckpointError, ModelError, ResourceError, VoteTableError
from patchcert.models.checkpoint import initial_classifier, save_checkpoint
from patchcert.stages.resources import Resources
from patchcert.votes import VoteTable
from patchcert.workspace import Workspace

PARTS_OF_20 = Resources(images_per_part=20, workers=1)


def test_table_of_two_actors_is_byte_for_byte_that_of_one(reference, small_recipe, prepared, model_folder, workspace):
    from patchcert.stages.vote import vote

    seen = []
    table = vote(
        small_recipe,
        prepared["test"],
        model_folder,
        workspace,
        dataclasses.replace(PARTS_OF_20, workers=2),
        on_part=lambda receipt, progress: seen.append((progress.images_done, progress.parts_done)),
    )
    assert table.num_parts == 6 and table.num_images == 120
    assert digests(table) == digests(reference)
    assert seen == [(20 * part, part) for part in range(7)]


def test_damaged_and_missing_parts_are_computed_again_and_nothing_else(
    copied_table, reference, small_recipe, prepared, model_folder, workspace
):
    from patchcert.stages.vote import vote

    table = copied_table
    before = digests(table)
    names = [name for name in sorted(before) if name.startswith("part-")]
    os.remove(os.path.join(table.location, "_SUCCESS.json"))
    os.remove(os.path.join(table.location, names[1]))
    with open(os.path.join(table.location, names[4]), "r+b") as file:
        file.truncate(100)
    kept = {name: os.stat(os.path.join(table.location, name)).st_mtime_ns for name in names if name != names[1]}
    with pytest.raises(VoteTableError, match="is unfinished: 5 parts"):
        VoteTable.open(table.location)
    computed = []
    again = vote(
        small_recipe,
        prepared["test"],
        model_folder,
        workspace,
        PARTS_OF_20,
        on_part=lambda receipt, _: computed.append(receipt.part),
    )
    assert sorted(computed) == [-1, 1, 4]
    assert digests(again) == before == digests(reference)
    touched = [name for name in kept if os.stat(os.path.join(again.location, name)).st_mtime_ns != kept[name]]
    assert touched == [names[4]]


def test_finished_table_is_taken_without_any_work(reference, small_recipe, prepared, model_folder):
    from patchcert.stages.vote import vote

    folder = os.path.dirname(os.path.dirname(reference.location))
    calls = []
    vote(
        small_recipe,
        prepared["test"],
        model_folder,
        Workspace(folder),
        PARTS_OF_20,
        on_part=lambda receipt, _: calls.append(receipt.part),
    )
    assert calls == [-1]


def test_layout_of_an_unfinished_table_stays_as_it_was_begun(reference, small_recipe, prepared, model_folder):
    from patchcert.stages.vote import vote

    folder = os.path.dirname(os.path.dirname(reference.location))
    table = vote(small_recipe, prepared["test"], model_folder, Workspace(folder), Resources(images_per_part=7))
    assert table.part_rows[0] == (0, 20)


def test_worker_outside_of_ray_gives_the_same_bytes(reference, small_recipe, prepared, model_folder, tmp_path):
    from patchcert.stages.vote_worker import VoteWorker

    job = job_of(small_recipe, prepared, model_folder, tmp_path)
    receipts = VoteWorker(job)(pa.table({"part": [2], "start": [40], "stop": [60]})).to_pylist()
    assert receipts[0]["error"] == "" and receipts[0]["rows"] == 20
    name = "part-00002-of-00006.parquet"
    assert (tmp_path / name).read_bytes() == open(os.path.join(reference.location, name), "rb").read()
    assert os.listdir(tmp_path / "attempts") == []


def test_part_that_kills_its_process_is_given_up_after_three_attempts(small_recipe, prepared, model_folder, tmp_path):
    from patchcert.stages.vote_worker import VoteWorker

    job = job_of(small_recipe, prepared, model_folder, tmp_path)
    (tmp_path / "attempts").mkdir()
    for number in (1, 2, 3):
        (tmp_path / "attempts" / f"part-00000-{number}").touch()
    receipt = VoteWorker(job)(pa.table({"part": [0], "start": [0], "stop": [20]})).to_pylist()[0]
    assert receipt["error_kind"] == "VoteTableError" and "ended its worker process 3 times" in receipt["error"]


def test_scores_that_are_not_finite_end_the_run_with_the_images_named(
    ray_cluster, small_recipe, prepared, workspace, tmp_path
):
    import torch

    from patchcert.stages.vote import vote

    dataset = prepared["test"]
    classifier = initial_classifier(small_recipe.classifier, small_recipe.views, 1, 10, 0)
    with torch.no_grad():
        classifier.network[-1].bias.fill_(float("nan"))
    folder = workspace.models("broken").folder("x")
    save_checkpoint(classifier, folder, {})
    with pytest.raises(ModelError, match=r"not finite for .*000"):
        vote(small_recipe, dataset, folder, workspace, PARTS_OF_20)


def test_checkpoint_of_other_views_is_refused_before_anything_is_written(
    ray_cluster, small_recipe, prepared, model_folder, workspace
):
    from patchcert.stages.vote import vote

    wider = dataclasses.replace(small_recipe, views=dataclasses.replace(small_recipe.views, width=5))
    with pytest.raises(CheckpointError, match=r"bands of width 4.*bands of width 5"):
        vote(wider, prepared["test"], model_folder, workspace, PARTS_OF_20)
    assert not workspace.folder.exists("votes")


def test_gpu_that_is_not_there_is_refused(ray_cluster, small_recipe, prepared, model_folder, workspace):
    from patchcert.stages.vote import vote

    if ray_cluster.cluster_resources().get("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ResourceError, match="the cluster has 0 GPUs"):
        vote(small_recipe, prepared["test"], model_folder, workspace, Resources(device="cuda"))


def test_more_workers_than_cpus_are_refused(ray_cluster, small_recipe, prepared, model_folder, workspace):
    from patchcert.stages.vote import vote

    with pytest.raises(ResourceError, match=r"64 workers with 1 CPUs .* has 4 CPUs"):
        vote(small_recipe, prepared["test"], model_folder, workspace, Resources(workers=64))


def test_table_begun_on_another_kind_of_device_is_not_mixed(
    copied_table, small_recipe, prepared, model_folder, workspace
):
    from patchcert.stages.vote import vote

    table = copied_table
    os.remove(os.path.join(table.location, "_SUCCESS.json"))
    with open(os.path.join(table.location, "layout.json"), "w") as layout:
        layout.write('{"images_per_part": 20, "device": "cuda"}')
    with pytest.raises(VoteTableError, match="was begun on cuda, but this run would go on with cpu"):
        vote(small_recipe, prepared["test"], model_folder, workspace, PARTS_OF_20)
    with open(os.path.join(table.location, "layout.json"), "w") as layout:
        layout.write('{"images_per_part": 20, "device": "cpu"}')
    with pytest.raises(VoteTableError, match=r"begun on shortcuts False, .*\n  Use --prediction.no-shortcuts"):
        vote(small_recipe, prepared["test"], model_folder, workspace, PARTS_OF_20)
