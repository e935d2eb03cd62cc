import dataclasses
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.fs as pafs
import pytest
from studies import simulated

from patchcert.cli import main
from patchcert.data.storage import Folder
from patchcert.errors import ResourceError, StudyError
from patchcert.studies import StudyConfig, StudyResult, write_report
from patchcert.studies.naming import distinctly_named
from patchcert.studies.result_folders import local_copy


def contents(location):
    folder = Folder(location)
    return {name: folder.read(name) for name in folder.files(recursive=True)}


def object_store(folder):
    """A file system that is not the local one, as object stores are."""
    folder.mkdir(parents=True, exist_ok=True)
    return Folder("bucket/study", filesystem=pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem()))


def test_a_result_comes_back_as_it_was_written(results, column_study):
    opened = StudyResult.open(results[0].folder)
    pd.testing.assert_frame_equal(opened.answers, results[0].answers)
    assert opened.subject == column_study.subject
    assert (opened.result_id, opened.headline_patch) == (results[0].result_id, "5x5")
    assert opened.identity == results[0].identity and opened.run == results[0].run
    assert {name[-4:] for name in opened.figures} == {".png", ".svg"}
    path = results[0].folder.path("answers.csv")
    from_csv = pd.read_csv(path, keep_default_na=False, na_values={"vote_threshold": ""})
    np.testing.assert_array_equal(from_csv["certified_accuracy"], opened.answers["certified_accuracy"])


def test_per_image_rows_give_the_answers_again_and_stay_small(results, crop_study):
    per_image = results[1].per_image()
    assert per_image.num_rows == 300 and per_image["image_id"][0].as_py() == "00000"
    correct_N = np.asarray(per_image["prediction/top_class/all"]) == np.asarray(per_image["label"])
    certified_N = np.asarray(per_image["certified/placement/5x5/top_class/all"])
    row = results[1].answers.query("certificate == 'placement' and patch == '5x5'").iloc[0]
    assert row["certified_accuracy"] == (correct_N & certified_N).mean()
    assert results[1].folder.files()["per_image.parquet"] < 5 * 300 * len(crop_study.asked)


def test_equal_input_gives_equal_bytes_but_for_run_json(tmp_path, column_study, results):
    again = simulated.write(column_study, tmp_path / "again", run=results[0].run, drawn=True)
    first, second = contents(results[0].folder), contents(again.folder)
    assert first == second
    other = simulated.write(column_study, tmp_path / "other", run={"study_seconds": 99}, drawn=True)
    changed = {name for name, data in contents(other.folder).items() if first[name] != data}
    assert changed == {"run.json", "report.html", "report.md", "summary.json"}, (
        "what shows the run, and names its digest"
    )


def test_result_id_follows_everything_that_can_change_an_answer(tmp_path, column_study, results):
    changed = simulated.write(column_study, tmp_path / "a", identity=results[0].identity | {"code": "another commit"})
    assert changed.result_id != results[0].result_id and len(changed.result_id) == 16


def test_nothing_is_left_of_a_write_that_fails(tmp_path, column_study):
    with pytest.raises(StudyError, match=r"hold 600 images \(300 different ones\)"):
        simulated.write(column_study, tmp_path / "study", parts=column_study.parts * 2)
    with pytest.raises(TypeError):
        simulated.write(column_study, tmp_path / "study", run={"not": object()})
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_older_result(tmp_path, column_study):
    folder = simulated.write(column_study, tmp_path / "study").folder
    before = contents(folder)
    with pytest.raises(TypeError):
        simulated.write(column_study, folder, run={"not": object()})
    assert contents(folder) == before and os.listdir(tmp_path) == ["study"]


def test_an_older_result_is_replaced_and_strangers_are_left_alone(tmp_path, column_study, crop_study):
    folder = simulated.write(column_study, tmp_path / "study").folder
    simulated.write(crop_study, folder)
    assert StudyResult.open(folder).subject.defense == "crop10-cifar10" and os.listdir(tmp_path) == ["study"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(StudyError, match=r"photos exists and was not written by patchcert \(no summary.json in it\)"):
        simulated.write(column_study, tmp_path / "photos")
    assert os.listdir(tmp_path / "photos") == ["cat.jpg"]


def test_a_place_that_cannot_be_written_is_one_clear_error(tmp_path, column_study):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"cannot write .*file/study"):
        simulated.write(column_study, tmp_path / "file" / "study")


def test_a_result_on_an_object_store_is_the_one_on_a_disk(tmp_path, results, column_study):
    stored = simulated.write(column_study, object_store(tmp_path), run=results[0].run, drawn=True)
    assert not stored.folder.is_local and contents(stored.folder) == contents(results[0].folder)
    opened = StudyResult.open(stored.folder)
    pd.testing.assert_frame_equal(opened.answers, results[0].answers)
    assert opened.per_image().equals(results[0].per_image()) and opened.figures == results[0].figures
    with local_copy(opened.folder, opened.files) as copy:
        assert contents(copy) == contents(results[0].folder)
    assert not copy.exists()
    write_report(report := object_store(tmp_path / "report"), [opened])
    assert report.files().keys() == {"answers.csv", "report.html", "report.md"}


def test_an_upload_that_is_cut_off_is_no_result_and_the_next_one_replaces_it(tmp_path, monkeypatch, column_study):
    store = object_store(tmp_path)
    simulated.write(column_study, store)
    whole = contents(store)
    store.write("figures/of_an_older_version.png", b"old")
    upload, left = Folder._upload, [3]

    def refuse(folder, path, data):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the store is away")
        upload(folder, path, data)

    monkeypatch.setattr(Folder, "_upload", refuse)
    with pytest.raises(ResourceError, match="the store is away"):
        simulated.write(column_study, store)
    assert store.files() and "summary.json" not in store.files()
    with pytest.raises(StudyError, match="holds no study result"):
        StudyResult.open(store)
    monkeypatch.undo()
    simulated.write(column_study, store)
    assert contents(store) == whole


def test_strangers_on_an_object_store_are_left_alone(tmp_path, column_study):
    store = object_store(tmp_path)
    store.write("cat.jpg", b"x")
    with pytest.raises(StudyError, match="was not written by patchcert"):
        simulated.write(column_study, store)
    assert contents(store) == {"cat.jpg": b"x"}


def test_missing_and_damaged_results_name_the_mend(tmp_path, results):
    with pytest.raises(StudyError, match=r"holds no study result: summary.json is missing.\n  Answer the study again"):
        StudyResult.open(tmp_path / "nothing")

    def damaged(name, change):
        folder = tmp_path / name
        shutil.copytree(results[0].folder.path(), folder)
        change(folder)
        return folder

    def shorten(folder):
        (folder / "answers.parquet").write_bytes((folder / "answers.parquet").read_bytes()[:-9])

    def rename_version(folder):
        text = (folder / "summary.json").read_text().replace('"schema_version": 1', '"schema_version": 9')
        (folder / "summary.json").write_text(text)

    with pytest.raises(StudyError, match=r"is damaged: ValueError: answers.parquet has digest"):
        StudyResult.open(damaged("short", shorten))
    with pytest.raises(StudyError, match="is damaged: FileNotFoundError"):
        StudyResult.open(damaged("gone", lambda folder: (folder / "per_image.parquet").unlink()))
    with pytest.raises(StudyError, match="is damaged: JSONDecodeError"):
        StudyResult.open(damaged("cut", lambda folder: (folder / "summary.json").write_text("{")))
    with pytest.raises(StudyError, match="is damaged: KeyError"):
        StudyResult.open(damaged("empty", lambda folder: (folder / "summary.json").write_text("{}")))
    with pytest.raises(StudyError, match="has result version 9, this version reads 1"):
        StudyResult.open(damaged("later", rename_version))


def test_headline_patch_is_the_one_the_study_names(tmp_path, column_study):
    config = StudyConfig(**{**vars(column_study.config), "headline_patch": "2x2"})
    assert simulated.write(column_study, tmp_path / "study", config=config).headline_patch == "2x2"


def test_report_over_one_study_twice_is_refused(tmp_path, results):
    with pytest.raises(StudyError, match="is shown once: it is the same study as"):
        write_report(tmp_path / "report", [results[0], results[0]])
    with pytest.raises(StudyError, match="at least one study, not 0"):
        write_report(tmp_path / "report", [])


@pytest.mark.usefixtures("blank_figures")
def test_studies_of_one_recipe_are_told_apart_by_what_differs(tmp_path, results, column_study):
    config = dataclasses.replace(column_study.config, seed=1)
    identity = results[0].identity | {"study": dataclasses.asdict(config)}
    reseeded = simulated.write(column_study, tmp_path / "reseeded", config=config, identity=identity)
    retrained = dataclasses.replace(column_study.subject, model_digest="ef" * 32)
    other_model = simulated.write(
        column_study,
        tmp_path / "other",
        subject=retrained,
        identity=results[0].identity | {"votes": {"model": "ef" * 32}},
    )

    def names(*studies):
        return [result.subject.defense for result in distinctly_named(studies)]

    assert names(*results) == ["column4-cifar10", "crop10-cifar10"]
    assert names(results[0], reseeded, results[1]) == [
        "column4-cifar10 (seed 0)",
        "column4-cifar10 (seed 1)",
        "crop10-cifar10",
    ]
    assert names(results[0], other_model) == ["column4-cifar10 (model cdcdcdcd)", "column4-cifar10 (model efefefef)"]
    three = names(results[0], reseeded, other_model)
    assert len(set(three)) == 3 and names(results[0], reseeded, other_model) == three
    report = Path(write_report(tmp_path / "report", [results[0], reseeded, other_model]))
    text = report.with_name("report.md").read_text(encoding="utf-8")
    assert all(name in text for name in three)
    answers = pd.read_csv(report.with_name("answers.csv"))
    assert list(dict.fromkeys(answers["defense"])) == three


@pytest.mark.usefixtures("blank_figures")
def test_report_command_takes_studies_of_one_recipe_and_shows_copies_once(tmp_path, results, column_study, capsys):
    config = dataclasses.replace(column_study.config, seed=1)
    identity = results[0].identity | {"study": dataclasses.asdict(config)}
    simulated.write(column_study, tmp_path / "studies" / "b", config=config, identity=identity)
    for name in ("a", "copy"):
        shutil.copytree(results[0].folder.path(), tmp_path / "studies" / name)
    folders = sorted(str(path) for path in (tmp_path / "studies").iterdir())
    assert main(["report", *folders, "--out", str(tmp_path / "report")]) == 0
    printed = capsys.readouterr()
    assert "seed 1" in printed.out
    assert f"{folders[2]} is shown once: it is the same study as {folders[0]}" in printed.err
