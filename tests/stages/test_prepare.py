"""Preparing on the CPUs of a cluster: the same files as on one machine, and its errors in the same words."""

from pathlib import Path

import pytest

from patchcert.data import DataConfig, prepare
from patchcert.errors import ImageError
from patchcert.stages.prepare import on_cluster
from patchcert.stages.resources import Resources

SMALL = {"rows_per_group": 10, "rows_per_shard": 50}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_cluster_makes_the_same_files(ray_cluster, tmp_path):
    config = DataConfig(limit=180, **SMALL)
    prepare(config, None, tmp_path / "alone", splits=["train"])
    steps = []
    prepare(
        config,
        None,
        tmp_path / "cluster",
        splits=["train"],
        spread=on_cluster(Resources()),
        on_progress=lambda *step: steps.append(step),
    )
    assert contents(tmp_path / "cluster") == contents(tmp_path / "alone")
    assert steps == [(50, 180), (100, 180), (150, 180), (180, 180)]


def test_a_bad_image_is_named_as_on_one_machine(ray_cluster, tmp_path):
    for row in range(60):
        path = tmp_path / "source" / "test" / str(row % 2) / f"{row:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not an image")
    config = DataConfig(dataset="folder", source=str(tmp_path / "source"), rows_per_group=5, rows_per_shard=5)
    with pytest.raises(ImageError) as caught:
        prepare(config, (8, 8), tmp_path / "out", splits=["test"], spread=on_cluster(Resources()))
    assert type(caught.value) is ImageError
    assert "5 bad images in the test split" in str(caught.value) and "0/00.png" in str(caught.value)
    assert not list((tmp_path / "out").rglob("shard-*"))
