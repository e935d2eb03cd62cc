"""The tracker's pages as a browser shows them; screenshots stay in $PATCHCERT_TEST_ARTIFACTS when that is set."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from studies import simulated

from patchcert.tracking import TrackingConfig, publish
from patchcert.workspace import Workspace

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason=f"no browser: install one of {', '.join(BROWSERS)}"),
]
# The pages load scripts in steps; the browser stops this long after all is quiet, in its own hastened time.
PATIENCE_MS = 20_000


@pytest.fixture(scope="module")
def pages(tmp_path_factory, empty_store):
    """Address of the pages that ``patchcert ui`` serves, and the link that publishing printed."""
    folder = tmp_path_factory.mktemp("pages")
    shutil.copy(empty_store, folder / "mlflow.db")
    results = [
        simulated.write(study, folder / name)
        for name, study in {"column": simulated.column_study(), "crop": simulated.crop_study()}.items()
    ]
    runs = publish(
        [result.folder for result in results],
        TrackingConfig(mode="strict", uri=f"sqlite:///{folder / 'mlflow.db'}"),
        Workspace(str(folder)),
        print,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["ui", "--work", str(folder), "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    server = subprocess.Popen(
        [sys.executable, "-m", "patchcert", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server)
        yield runs[0].link.replace("http://127.0.0.1:5000", f"http://127.0.0.1:{port}")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def wait_for(address, server):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, "patchcert ui ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError(f"{address} does not answer")


def browse(address, profile, *options):
    """Opens a page in a browser that nobody has used before."""
    quiet = "sandbox first-run".split()
    disabled = "gpu quic background-networking component-update sync".split()
    command = [BROWSER, "--headless", *(f"--no-{name}" for name in quiet), *(f"--disable-{name}" for name in disabled)]
    command += [f"--user-data-dir={profile}", "--window-size=1600,2000", f"--virtual-time-budget={PATIENCE_MS}"]
    return subprocess.run([*command, *options, address], capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_printed_link_compares_both_defenses_over_patch_areas_without_a_click(pages, tmp_path):
    folder = Path(os.environ.get("PATCHCERT_TEST_ARTIFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    image = folder / "tracker-comparison.png"
    # On a busy machine the browser takes its picture before the page has fetched its metrics: look again.
    for attempt in range(6):
        page = browse(pages, tmp_path / f"profile-{attempt}", "--dump-dom", f"--screenshot={image}")
        # plotly puts the curves of each chart into a group of this class.
        if page.count("scatterlayer") >= 2:
            break
    assert page.count("scatterlayer") >= 2
    assert image.read_bytes().startswith(b"\x89PNG")
    assert "column4-cifar10" in page and "crop10-cifar10" in page
    assert "certified accuracy" in page
