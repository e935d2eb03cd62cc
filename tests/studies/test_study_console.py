import io

from rich.console import Console

from patchcert.studies import combine, console_table


def printed(table):
    console = Console(file=io.StringIO(), width=160)
    console.print(table)
    return console.file.getvalue()


def test_table_shows_first_settings_in_percent_with_intervals(results):
    text = printed(console_table(results[0].answers))
    row = results[0].answers.query("certificate == 'placement' and patch == '5x5' and vote_threshold == 0.3").iloc[0]
    interval = f"[{100 * row['certified_low']:.1f}, {100 * row['certified_high']:.1f}]"
    (line,) = [line for line in text.splitlines() if "5x5" in line and "placement" in line]
    assert f"{100 * row['certified_accuracy']:.1f} {interval}" in line and "deterministic" in line
    assert "300 test images of cifar10" in text and "36 more rows in answers.csv" in text


def test_table_names_defenses_heuristics_and_what_is_infeasible(results):
    text = printed(console_table(combine([result.answers for result in results]), every_setting=True))
    assert "column4-cifar10" in text and "crop10-cifar10" in text and "more rows" not in text
    infeasible = [line for line in text.splitlines() if "512 without repl." in line and "p_c as reported" in line]
    assert len(infeasible) == 8 and all("heuristic" in line and "infeasible" in line for line in infeasible)
