import os

import pytest

from patchcert.stages.resources import Resources


def test_estimate_counts_parts_measures_a_rate_and_writes_nothing(
    reference, small_recipe, prepared, model_folder, workspace
):
    from patchcert.stages.estimate import estimate_vote

    resources = Resources(images_per_part=20, workers=2)
    estimate = estimate_vote(small_recipe, prepared["test"], model_folder, workspace, resources)
    assert (estimate.num_images, estimate.num_views, estimate.num_parts, estimate.parts_done) == (120, 32, 6, 0)
    assert estimate.workers == 2 and estimate.gpus_per_worker == 0 and 1 <= estimate.probe_images <= 16
    assert estimate.worker_hours == pytest.approx(120 * 32 / estimate.views_per_second / 3600)
    assert estimate.hours == pytest.approx(estimate.worker_hours / 2)
    stored = sum(
        os.path.getsize(os.path.join(reference.location, name))
        for name in os.listdir(reference.location)
        if name.startswith("part-")
    )
    assert 0.5 < estimate.table_bytes / stored < 2
    assert "6 to compute, 0 there already" in estimate.describe() and "core-hours" in estimate.describe()
    assert not workspace.folder.exists()


def test_finished_parts_cost_nothing(reference, small_recipe, prepared, model_folder):
    from patchcert.stages.estimate import estimate_vote
    from patchcert.workspace import Workspace

    work = Workspace(os.path.dirname(os.path.dirname(reference.location)))
    estimate = estimate_vote(small_recipe, prepared["test"], model_folder, work, Resources(workers=1))
    assert (estimate.num_images, estimate.num_parts, estimate.parts_done, estimate.hours) == (0, 0, 6, 0)


def test_images_that_are_not_prepared_yet_are_counted(ray_cluster, small_recipe, prepared, model_folder, workspace):
    from patchcert.stages.estimate import estimate_vote

    estimate = estimate_vote(
        small_recipe,
        prepared["test"],
        model_folder,
        workspace,
        Resources(images_per_part=1000, workers=1),
        num_images=50_000,
        note="rough",
    )
    assert (estimate.num_images, estimate.num_parts, estimate.parts_done) == (50_000, 50, 0)
    assert estimate.describe().endswith("note      rough")
