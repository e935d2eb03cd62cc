import pytest
from studies import simulated


@pytest.fixture(scope="session")
def column_study():
    return simulated.column_study()


@pytest.fixture(scope="session")
def crop_study():
    return simulated.crop_study()


@pytest.fixture(scope="session")
def results(tmp_path_factory, column_study, crop_study):
    """Result folders of both studies; tests only read them."""
    folder = tmp_path_factory.mktemp("studies")
    return [simulated.write(column_study, folder / "column"), simulated.write(crop_study, folder / "crop")]
