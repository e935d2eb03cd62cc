"""Studies that were damaged or forged: what a file claims is never taken over, and nothing else is published."""

import json
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from studies import simulated

from patchcert.data.sealed import sealed_bytes
from patchcert.errors import StudyError
from patchcert.studies.result_folders import digests_of, result_id
from patchcert.studies.results import StudyResult


@pytest.fixture
def folder(tmp_path, results):
    """A copy of a study, to be spoilt."""
    copy = tmp_path / "study"
    shutil.copytree(results[0].folder.path(), copy)
    return copy


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return [simulated.write(simulated.column_study(), tmp_path_factory.mktemp("integrity") / "study")]


def reseal(folder, **changes):
    """Writes a record that fits the files as they are now: what a forger would do."""
    record = json.loads((folder / "summary.json").read_text())
    del record["sha256"]
    (folder / "summary.json").unlink()
    record |= {"files": digests_of(folder)} | changes
    (folder / "summary.json").write_bytes(sealed_bytes(record))


def change_answers(folder, **columns):
    answers = pd.read_parquet(folder / "answers.parquet")
    for name, value in columns.items():
        answers[name] = value
    pq.write_table(pa.Table.from_pandas(answers, preserve_index=False), folder / "answers.parquet")
    reseal(folder)


def test_a_changed_byte_in_any_file_is_named(folder):
    """Figures and report, too; ``tests/verification/test_damage.py`` goes through every kind of folder."""
    rng = np.random.default_rng(0)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert {"summary.json", "run.json", "report.html", "per_image.parquet"} <= {path.name for path in files}
    for _ in range(30):
        path = files[rng.integers(len(files))]
        whole = path.read_bytes()
        position = rng.integers(len(whole))
        path.write_bytes(whole[:position] + bytes([whole[position] ^ rng.integers(1, 256)]) + whole[position + 1 :])
        with pytest.raises(StudyError, match=f"is damaged: .*{path.name}|is damaged: |has result version"):
            StudyResult.open(folder)
        path.write_bytes(whole)
    StudyResult.open(folder)


@pytest.mark.parametrize(
    ("column", "value"),
    [("certified_accuracy", 1.0), ("guarantee", "proved beyond doubt"), ("num_images", 10**6), ("feasible", False)],
)
def test_answers_that_do_not_follow_from_the_images_are_refused(folder, column, value):
    change_answers(folder, **{column: value})
    with pytest.raises(
        StudyError, match=rf"column {column} of answers\.parquet does not follow from per_image\.parquet"
    ):
        StudyResult.open(folder)


def test_what_an_answer_says_in_words_is_written_anew(folder):
    change_answers(folder, note="certified by an authority")
    assert "authority" not in " ".join(StudyResult.open(folder).answers["note"])


@pytest.mark.parametrize("name", ["answers.parquet", "per_image.parquet", "placements.parquet"])
def test_a_table_that_the_record_does_not_name_is_refused(folder, name):
    files = {other: digest for other, digest in digests_of(folder).items() if other not in (name, "summary.json")}
    reseal(folder, files=files)
    with pytest.raises(StudyError, match=f"its record does not name {name}"):
        StudyResult.open(folder)


def test_the_id_of_a_result_is_that_of_what_it_was_made_from(folder):
    record = json.loads((folder / "summary.json").read_text())
    reseal(folder, identity=record["identity"] | {"votes": {"model": "another"}})
    with pytest.raises(StudyError, match=r"its result_id is .*, but its identity gives"):
        StudyResult.open(folder)
    reseal(folder, identity=record["identity"], result_id="0" * 16)
    with pytest.raises(StudyError, match="its result_id is"):
        StudyResult.open(folder)


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/hostname", ".hidden", "figures/../../outside.txt", "a\nb"])
def test_files_elsewhere_are_not_part_of_a_study(folder, name):
    (folder.parent / "outside.txt").write_text("private")
    reseal(folder, files=digests_of(folder) | {name: "ab" * 32})
    with pytest.raises(StudyError, match="no plain file of this folder"):
        StudyResult.open(folder)


def test_a_link_is_not_part_of_a_study(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("private")
    os.symlink(secret, folder / "figures" / "curve.png")
    assert "figures/curve.png" not in StudyResult.open(folder).files
    reseal(folder)
    with pytest.raises(StudyError, match=r"'figures/curve\.png', which is no plain file"):
        StudyResult.open(folder)
    os.unlink(folder / "figures" / "curve.png")
    files = digests_of(folder)
    shutil.move(folder / "figures", tmp_path / "figures")
    os.symlink(tmp_path / "figures", folder / "figures")
    reseal(folder, files={name: digest for name, digest in files.items() if name != "summary.json"})
    with pytest.raises(StudyError, match="which is no plain file"):
        StudyResult.open(folder)


def test_pickled_columns_are_refused_by_name(folder):
    kind = type("Kind", (pa.ExtensionType,), {"__arrow_ext_serialize__": lambda self: b""})(pa.binary(), "some.pickles")
    table = pq.read_table(folder / "per_image.parquet")
    names = pa.ExtensionArray.from_storage(kind, pa.array([b"x"] * table.num_rows))
    pq.write_table(table.set_column(0, "image_id", names), folder / "per_image.parquet")
    reseal(folder)
    with pytest.raises(StudyError, match=r"column image_id holds the extension type some\.pickles"):
        StudyResult.open(folder)


def test_settings_that_nobody_knows_are_refused(folder):
    record = json.loads((folder / "summary.json").read_text())
    study = record["identity"]["study"] | {"certificates": ["faith"]}
    identity = record["identity"] | {"study": study}
    reseal(folder, identity=identity, result_id=result_id(identity))
    with pytest.raises(StudyError, match="unknown certificate 'faith'"):
        StudyResult.open(folder)


@pytest.mark.parametrize("name", ["../../x", "a/b", "..", ".hidden", "a\\b", "", "x\x1b[2J"])
@pytest.mark.parametrize("what", ["defense", "dataset", "split"])
def test_a_name_that_is_a_path_is_refused(folder, what, name):
    record = json.loads((folder / "summary.json").read_text())
    reseal(folder, subject=record["subject"] | {what: name})
    with pytest.raises(StudyError, match=f"the {what} of a study is named"):
        StudyResult.open(folder)


def test_a_cell_that_a_spreadsheet_would_run_is_quoted(tmp_path):
    from patchcert.studies.result_folders import write_csv

    texts = ["=HYPERLINK(1)", "+1", "-2+3", "@SUM(1)", "\tx", "a=b", "5x5"]
    write_csv(tmp_path / "a.csv", pd.DataFrame({"name": texts, "value": [-1.0] * 7}))
    found = pd.read_csv(tmp_path / "a.csv")
    assert found["name"].tolist() == [f"'{text}" for text in texts[:5]] + texts[5:]
    assert found["value"].tolist() == [-1.0] * 7


def test_names_of_images_begin_nothing_in_markdown():
    from patchcert.studies.report import template_environment

    template = template_environment("md").from_string("| {{ name | cell }} |")
    text = template.render(name="a|b](javascript:1) <img src=x> `x` [y]\n# z")
    assert text == "| a\\|b\\](javascript:1) \\<img src=x\\> \\`x\\` \\[y\\] # z |"


def test_files_keep_to_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        study = simulated.write(simulated.column_study(), tmp_path / "study")
    finally:
        os.umask(before)
    paths = [study.folder.path(), *(study.folder.path(name) for name in study.files)]
    assert all(os.stat(path).st_mode & 0o077 == 0 for path in paths)
