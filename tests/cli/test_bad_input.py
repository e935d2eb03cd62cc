"""Every mistake of a user ends with exit code 2, one clear message and nothing half-written."""

import io
import os
import resource
import socket

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from .conftest import SMALL


def png(size=(28, 28)):
    data = io.BytesIO()
    Image.new("L", size, 7).save(data, format="PNG")
    return data.getvalue()


def hub_parquet(path, images, labels):
    """A file in the layout of public hubs."""
    structs = [{"bytes": image, "path": f"{row}.png"} for row, image in enumerate(images)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": structs, "label": pa.array(labels, pa.int64())}), path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shw"], "there is no command 'shw'. Did you mean show?"),
        (["train", "colunm4-digits"], "there is no recipe 'colunm4-digits'. Did you mean column4-digits?"),
        (["show"], "takes one recipe or one folder"),
        (["train", "--training.epochs", "3"], "starts with a recipe"),
        (["train", "column4-digits", "--training.epoch", "3"], "--training.epoch"),
        (["train", "column4-digits", "--training.epochs", "many"], "--training.epochs"),
        (["train", "column4-digits", "--training.epochs", "0"], "epochs must be at least 1, not 0"),
        (["vote", "column4-digits", "--views.width", "40"], "32x40, but the image is only 32x32"),
        (["study", "column4-digits", "--study.patches", "40x40"], "40x40, but the image is only 32x32"),
        (["run", "column4-digits", "--data.dataset", "mnist"], "mnist has images of 28x28"),
        (["run", "column4-digits", "--data.dataset", "digitz"], "Did you mean 'digits'?"),
        (["vote", "column4-digits"], "no trained model"),
        (["study", "column4-digits"], "no trained model"),
        (["study", "column4-digits", "--votes", "nowhere"], "holds no vote table"),
        (["report", "nowhere"], "holds no study result"),
        (["report"], "at least one folder"),
        (["demo", "now"], "takes no arguments"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_mistake_is_named_and_leaves_nothing_behind(here, arguments, message):
    assert message in here.fails(*arguments)
    left = [os.path.join(place, name) for place, _, names in os.walk(here.folder / "work") for name in names]
    assert not [path for path in left if "/data/" not in path], left


def test_missing_dataset_says_where_it_was_looked_for_and_what_to_do(here):
    error = here.fails("prepare", "column2-mnist")
    assert "PATCHCERT_DATA (not set)" in error and "--data.source FOLDER" in error


def test_empty_dataset_folder_is_refused(here):
    (here.folder / "empty").mkdir()
    assert "holds no images" in here.fails("prepare", "column2-mnist", "--data.source", "empty")


def test_unreadable_image_is_named_with_its_row(here):
    for split in ("train", "test"):
        hub_parquet(here.folder / "images" / f"{split}-0.parquet", [png(), png()[:40], png()], [0, 1, 2])
    error = here.fails("prepare", "column2-mnist", "--data.source", "images", "--data.validation-size", "1")
    assert "row 1" in error and "train-0.parquet" in error and "quarantine" in error
    assert not list((here.folder / "work").rglob("dataset.json"))


def test_label_out_of_range_is_named_with_its_row(here):
    for split in ("train", "test"):
        hub_parquet(here.folder / "images" / f"{split}-0.parquet", [png()] * 3, [0, 10, 2])
    error = here.fails("prepare", "column2-mnist", "--data.source", "images", "--data.validation-size", "1")
    assert "row 1" in error and "10" in error


def test_full_disk_is_one_line_and_the_command_goes_on_later(patchcert):
    # The kernel refuses files beyond this size, as a full disk would.
    full = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))}
    error = patchcert.fails("prepare", "column4-digits", **full)
    assert "ResourceError: cannot write" in error
    assert not list((patchcert.folder / "work").rglob("*.tmp"))
    out, _ = patchcert("prepare", "column4-digits")
    assert "1,097" in out


def test_folder_that_cannot_be_written_is_one_line(here):
    assert "ResourceError: cannot write /dev/null" in here.fails(
        "prepare", "column4-digits", "--work", "/dev/null/work"
    )


@pytest.mark.slow
@pytest.mark.ray
def test_ray_that_cannot_start_is_one_line(patchcert):
    error = patchcert.fails("train", "column4-digits", *SMALL, env={"RAY_TMPDIR": "/dev/null/ray"})
    assert "ResourceError: cannot start Ray on this machine: " in error and "Not a directory" in error
    assert "disk space for RAY_TMPDIR" in error
    assert not (patchcert.folder / "work" / "models").exists()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:{port}",
        pytest.param("ray://127.0.0.1:{port}", marks=pytest.mark.slow),
        pytest.param("127.0.0.1:70000", marks=pytest.mark.slow),
        pytest.param("no-host.invalid:1", marks=pytest.mark.slow),
    ],
)
def test_cluster_that_does_not_answer_is_one_line_within_seconds(patchcert, address):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = address.format(port=unused.getsockname()[1])
        patchcert.patience = 120
        error = patchcert.fails("prepare", "column4-digits", env={"RAY_ADDRESS": address})
    assert f"ResourceError: cannot connect to Ray at {address}: " in error
    assert "leave --resources.address and RAY_ADDRESS unset" in error
    assert not (patchcert.folder / "work").exists()


@pytest.mark.slow
def test_cluster_address_where_something_else_answers_is_one_line(patchcert):
    """A server that takes connections and says nothing, as far as Ray can tell."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        patchcert.patience = 200
        error = patchcert.fails("prepare", "column4-digits", "--resources.address", address)
    assert f"cannot connect to Ray at {address}: it did not answer as Ray within 30 s" in error
