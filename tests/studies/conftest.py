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
    studies = {"column": column_study, "crop": crop_study}
    return [simulated.write(study, folder / name, drawn=True) for name, study in studies.items()]


@pytest.fixture
def blank_figures():
    """Reports of this test are written with blank figures."""
    with simulated.blank_figures():
        yield
