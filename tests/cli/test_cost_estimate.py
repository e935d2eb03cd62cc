from .conftest import SMALL


def test_dry_run_says_what_voting_costs_before_anything_is_there(ray_cluster, here):
    out, err = here("vote", "column4-digits", "--dry-run", *SMALL)
    assert "150 images x 32 views = 4,800 views" in out
    assert "15 to compute, 0 there already" in out and "core-hours" in out and "views a second and worker" in out
    assert "not prepared yet" in out and "start weights" in out
    assert "Nothing was written" in err
    assert not (here.folder / "work").exists()
