"""Where a work folder keeps its things."""

import json
import os
from pathlib import Path

import pytest

from patchcert.data import DataConfig, Folder
from patchcert.workspace import Workspace

SIZE = (8, 8)


def data(work, **fields):
    return Workspace(str(work)).data(DataConfig(**fields), SIZE)


def test_own_images_from_two_places_live_side_by_side(tmp_path):
    cats, dogs = (data(tmp_path, dataset="folder", source=f"/photos/{name}") for name in ("cats", "dogs"))
    assert cats != dogs
    assert data(tmp_path, dataset="folder", source="/photos/../photos/cats") == cats


def test_one_place_has_one_folder_however_it_is_spelled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    spellings = ["photos", "./photos/", "~/photos", str(tmp_path / "photos"), f"file://{tmp_path}/photos"]
    assert len({data(tmp_path, dataset="folder", source=spelling).uri for spelling in spellings}) == 1


def test_registered_datasets_are_the_same_wherever_they_lie(tmp_path):
    places = [None, "/a", "torchvision"]
    assert len({data(tmp_path, dataset="cifar10", source=place).uri for place in places}) == 1
    # The name that versions without class names in the settings gave it: what they prepared is still found.
    assert data(tmp_path, dataset="cifar10").uri == f"{tmp_path}/data/cifar10-8x8-65e33c30"


def test_class_names_have_a_folder_of_their_own(tmp_path):
    plain, named = (
        data(tmp_path, dataset="folder", source="/photos", class_names=names) for names in (None, ("ant", "bee"))
    )
    assert plain != named


def test_own_images_that_an_older_version_prepared_are_found(tmp_path):
    old = tmp_path / "data" / "folder-8x8-69b21d7b"
    (old / "test").mkdir(parents=True)
    (old / "test" / "dataset.json").write_text(json.dumps({"schema_version": 1, "source": {"uri": "/photos"}}))
    assert data(tmp_path, dataset="folder", source="/photos").uri == str(old)
    assert data(tmp_path, dataset="folder", source="/others").uri != str(old)


@pytest.mark.parametrize("name", ["a?b", "100%", "a b#c"])
def test_any_folder_can_be_the_work_folder(tmp_path, name):
    model = Workspace(str(tmp_path / name)).models("column4-digits").folder("k")
    model.write("config.json", b"{}")
    assert os.listdir(tmp_path) == [name] and Path(tmp_path, name, "models/column4-digits/k/config.json").is_file()
    assert Folder(str(model)) == model and Folder(str(model)).exists("config.json")


def test_the_home_is_where_a_shell_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Workspace("~/work").folder.uri == f"{tmp_path}/work"
