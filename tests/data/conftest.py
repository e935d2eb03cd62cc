import os
from pathlib import Path

import pytest

from patchcert.data import DatasetSpec, registry


@pytest.fixture
def tiny(monkeypatch):
    """A registered dataset of three classes and 8x8 images; the registry forgets it afterwards."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    spec = DatasetSpec(
        name="tiny", description="for tests", class_names=("ant", "bee", "cow"), native_size=(8, 8), validation_size=5
    )
    return registry.register_dataset(spec)


@pytest.fixture(autouse=True)
def no_data_variable(monkeypatch):
    monkeypatch.delenv("PATCHCERT_DATA", raising=False)


SHARED = Path(os.environ.get("PATCHCERT_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


@pytest.fixture
def shared(monkeypatch):
    """Folder of the real images, or a skip."""
    if not SHARED.is_dir():
        pytest.skip(f"no real images at {SHARED}: set PATCHCERT_DATA")
    monkeypatch.setenv("PATCHCERT_DATA", str(SHARED))
    return SHARED


@pytest.fixture
def unprivileged():
    """Run as a user whom file permissions bind."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
