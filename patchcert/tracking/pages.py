"""The tracker's own pages: how they are served on this machine, and the view of runs that is saved for them."""

import contextlib
import dataclasses
import errno
import os
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Callable
from typing import Any

from patchcert.errors import ResourceError
from patchcert.tracking.store import ENVIRONMENT, database_lock, database_path, follow_folder

HOST = "127.0.0.1"
LOCAL_ADDRESS = f"http://{HOST}:5000"
_LAST_PORT = 65535
_END_SECONDS = 10.0
# Of what MLflow reads, its server may use only what opens artifacts elsewhere; the rest would change the pages.
_KEPT_VARIABLES = ("MLFLOW_S3_", "MLFLOW_GCS_", "MLFLOW_TRACKING_")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UiCommand:
    """How to start the tracker's pages.

    Attributes:
        arguments: of the process; empty when the tracker is a server that runs already.
        environment: all variables of the process.
        address: what to open in a browser.
    """

    arguments: list[str]
    environment: dict[str, str]
    address: str


def ui_command(uri: str, port: int = 5000) -> UiCommand:
    """Say how to look at a store; its own pages are served on this machine only.

    Args:
        uri: tracking server or database.
        port: of the pages.
    """
    if uri.startswith(("http://", "https://")):
        return UiCommand(arguments=[], environment={}, address=page_address(uri))
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MLFLOW_") or name.startswith(_KEPT_VARIABLES)
    }
    # The URI may hold a password and arguments show in the list of processes: it goes through the environment.
    ours = ENVIRONMENT | {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    if (allowed := os.environ.get("MLFLOW_ALLOW_FILE_STORE")) is not None:
        ours["MLFLOW_ALLOW_FILE_STORE"] = allowed
    arguments = [sys.executable, "-m", "mlflow", "ui", "--host", HOST, "--port", str(port), "--workers", "1"]
    return UiCommand(arguments=arguments, environment=inherited | ours, address=f"http://{HOST}:{port}")


def serve_pages(uri: str, port: int, say: Callable[[str], object]) -> int:
    """Serve the pages of a store until they are stopped, or name the server that has pages of its own.

    Args:
        uri: tracking server or database, from ``tracking_uri``.
        port: of the pages.
        say: takes lines for the reader.

    Returns:
        The exit code of the server, where it ended without being asked to; 0 where there was nothing to serve.

    Raises:
        ResourceError: the port is taken, forbidden or none.
    """
    command = ui_command(uri, port)
    if not command.arguments:
        say(f"The tracker's pages are at {command.address}")
        return 0
    _check_port(port)
    if database_path(uri) is not None:
        with database_lock(uri):
            follow_folder(uri)
    say(f"The tracker's pages are at {command.address} until you press Ctrl-C")
    server = subprocess.Popen(command.arguments, env=command.environment)
    try:
        code = server.wait()
    finally:
        _end(server)
    code = 128 - code if code < 0 else code
    say(f"The server of the tracker's pages ended with exit code {code}.")
    return code


def _check_port(port: int) -> None:
    """Raises ResourceError unless the pages can be served at a port, so that no other service is taken for them."""
    if not 0 < port <= _LAST_PORT:
        raise ResourceError(f"there is no port {port}: ports are 1 to {_LAST_PORT}.\n  Choose another:  --port 5000")
    try:
        with socket.create_server((HOST, port)):
            return
    except OSError as error:
        why = "another program answers there" if error.errno == errno.EADDRINUSE else error.strerror
    with socket.create_server((HOST, 0)) as free:
        other = free.getsockname()[1]
    raise ResourceError(
        f"port {port} of this machine cannot be used for the tracker's pages: {why}.\n"
        f"  Use a free one:  patchcert ui --port {other}"
    )


def _end(server: "subprocess.Popen[bytes]") -> None:
    """Ends a server that still runs; Ctrl-C has reached it already."""
    if server.poll() is not None:
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.terminate()
        server.wait(_END_SECONDS)
        return
    server.kill()
    server.wait()


def page_address(uri: str) -> str:
    """Return the address of a server as it may be printed: without user and password, for which its pages ask."""
    parts = urllib.parse.urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def view_state(logged: set[str]) -> dict[str, Any]:
    """Return the state of MLflow's run page (3.17): columns, and line charts over stated axes of what was logged."""
    ways = [f"{way}_replacement" for way in ("with", "without")]
    charts = (
        ("certified accuracy against patch area (% of the image)", "curve_patch_area", ["cert_acc"], "patch_area_pct"),
        ("accuracy against vote threshold (x 1000)", "curve_threshold", ["cert_acc", "clean_acc"], ""),
        (
            "certified accuracy against drawn views",
            "curve_n_crops",
            [f"{kind}_cert_acc_{way}" for kind in ("heuristic", "probabilistic") for way in ways],
            "",
        ),
        (
            "certified accuracy of single draws against drawn views: mean, 5 % and 95 %",
            "variance_n_crops",
            [f"cert_prob_{figure}" for figure in ("mean", "p05", "p95")],
            "",
        ),
    )
    section = "patchcert-curves"
    cards = []
    for title, curve, wanted, axis in charts:
        names = [f"{curve}/{name}" for name in wanted if f"{curve}/{name}" in logged]
        card = {
            "uuid": f"{section}-{curve}",
            "type": "LINE",
            "metricSectionId": section,
            "deleted": False,
            "isGenerated": False,
            "displayName": title,
            "metricKey": (names or [""])[0],
            "selectedMetricKeys": names,
            "xAxisKey": "metric" if axis else "step",
            "selectedXAxisMetricKey": f"{curve}/{axis}" if axis else "",
            "xAxisScaleType": "linear",
            "scaleType": "linear",
            "range": {"yMin": 0, "yMax": 1},
            "lineSmoothness": 0,
            "displayPoints": True,
            "yAxisKey": "metric",
            "yAxisExpressions": [],
            "ignoreOutliers": False,
            "useGlobalXaxisKey": False,
            "useGlobalLineSmoothing": False,
        }
        cards += [card] if names else []
    headline = sorted(name for name in logged if "/" not in name)
    return {
        "selectedColumns": [f"metrics.`{name}`" for name in headline] + ["attributes.`Dataset`"],
        "compareRunSections": [
            {"uuid": section, "name": "certified accuracy", "display": True, "isReordered": False}
            | {"deleted": False, "isGenerated": False}
        ],
        "compareRunCharts": cards,
    }
