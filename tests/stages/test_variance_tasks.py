import pandas as pd
from studies import simulated

from patchcert.geometry import CropViews
from patchcert.studies.config import VarianceConfig
from patchcert.studies.variance import VarianceAccumulator, draw_part, draw_questions


def test_tasks_of_any_size_over_parts_of_any_size_draw_the_same(ray_cluster, tmp_path):
    """Real tasks over a real table: tasks that share parts, parts that share tasks, and one process without Ray."""
    from patchcert.stages.variance import draw_repeatedly

    views = CropViews(image_size=(12, 12), crop_size=4)
    part = simulated.simulated_part(views, 50, num_classes=4, seed=5)
    config = VarianceConfig(repeats=20, num_draws=(16, 32), patches=("1x1",))
    asked = draw_questions(config, views)
    here = VarianceAccumulator(asked)
    here.add(draw_part(part, config, asked))
    subject = simulated.subject_of(views, part)
    expected = here.tables(subject)
    for name, borders, images_per_task in (
        ("few", [(0, 45), (45, 50)], 20),
        ("many", [(start, start + 5) for start in range(0, 50, 5)], 17),
    ):
        table, seen = simulated.write_table(tmp_path / name, views, part, borders), []
        drawn = draw_repeatedly(table, config, asked, on_images=seen.append, images_per_task=images_per_task)
        tables = drawn.tables(subject)
        assert sum(seen) == 50
        pd.testing.assert_frame_equal(tables.repeats, expected.repeats, check_exact=True)
        pd.testing.assert_frame_equal(tables.summary, expected.summary, check_exact=True)
        assert tables.per_image.equals(expected.per_image)
