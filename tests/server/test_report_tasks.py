"""Reports of many labels and of several tasks: every task is named, in the words that are true of it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from server.compare import compare_runs, result_lines
from server.evaluation import evaluate, score
from server.progress import headline
from server.records import RunRecord, SiteStatistics
from server.report.closing import closing_table
from server.report.html import read_record, render, write_report
from server.report.left import left_blocks
from server.report.numbers import in_order, metric_name
from server.report.privacy_words import read_privacy_words
from server.report.registry import registry_entry
from server.report.words import read_words
from server.tensorboard import round_scalars
from shared.model.multimodal import build_model
from shared.targets import count_names
from tests.server.made_records import build_record
from tests.server.test_scoring import answers, samples_of
from tests.shared.test_tasks import MULTI, RATING, SEVERAL, SINGLE, run_of

TASKS: dict[str, dict[str, object]] = {
    "multi-label": MULTI,
    "several": SEVERAL,
    "rating": RATING,
    "single-label": SINGLE,
}


def record_of(task: str) -> RunRecord:
    """A run of two rounds of this task, really measured, in a record that was made up."""
    made = build_record(modalities=("left", "right"), rounds=2, statistics=True)
    run = run_of(TASKS[task])
    run = run.model_copy(
        update={"privacy": made.run.privacy, "statistics": made.run.statistics, "federation": made.run.federation}
    )
    targets = answers(60)[1].targets
    columns = {
        "single-label": targets[:, 0].nan_to_num(1.0).long(),
        "multi-label": targets[:, 2:].nan_to_num(0.0),
        "rating": targets[:, 1].nan_to_num(0.5),
        "several": targets,
    }
    samples, model = samples_of(columns[task]), build_model(run)
    found = [
        evaluate(model, samples, run=run, part=part, bootstrap_samples=20, subsets=True, seed=1)
        for part in ("test", "validation")
    ]
    rounds = tuple(each.model_copy(update={"validation": score(model, samples, run=run)}) for each in made.rounds)
    counts = tuple(float(10 * number) for number in range(len(count_names(run.data))))
    told = tuple(SiteStatistics(site=site, counts=counts, noise_multiplier=3.0) for site in made.sites)
    changed = {"run": run, "test": found[0], "validation": found[1], "rounds": rounds, "statistics": told}
    return made.model_copy(update=changed)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            "several",
            (
                "answer 3 questions at once: feeling (one of joy, calm and fear), valence (a rating between -3 and 3)",
                "topics (any of war and love)",
                "Feeling: class by class",
                "Topics: label by label",
                "Feeling: which classes are taken for which",
                "valence: Closeness",
                "topics: All labels right",
                "always saying the middle reaches one half or more",
                "the best by Mean score",
            ),
        ),
        (
            "multi-label",
            ("say which of 2 labels fit (war and love)", "Label by label", "Label ranking precision", "Hamming loss"),
        ),
        ("rating", ("give a rating between -3 and 3", "Error by round", "Of a rating: loss is the mean squared error")),
        ("single-label", ("tell 3 classes apart (joy, calm and fear)", "Class by class", "count every class alike")),
    ],
)
def test_the_page_says_what_was_asked_and_what_was_reached(task: str, said: tuple[str, ...]) -> None:
    page = render(record_of(task))
    for words in said:
        assert words in page
    assert ("Which classes are taken for which" in page) == (task == "single-label")


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_record_comes_back_from_its_file_and_stands_beside_others(task: str, tmp_path: Path) -> None:
    record = record_of(task)
    (tmp_path / "run").mkdir()
    write_report(record, tmp_path / "run")
    assert read_record(tmp_path / "run").test == record.test
    screen = io.StringIO()
    Console(file=screen, width=200).print(compare_runs([tmp_path / "run"]))
    text = screen.getvalue()
    for name in record.test.overall.named:
        assert metric_name(name) in text
    (line,) = result_lines([tmp_path / "run"])
    assert all(f'"{name}"' in line for name in record.test.overall.named)


@pytest.mark.parametrize(
    ("task", "column", "progress"),
    [
        ("several", "Mean score", "validation mean score"),
        ("multi-label", "Micro-F1", "validation F1"),
        ("rating", "Mean absolute error", "validation MAE"),
        ("single-label", "Accuracy", "validation F1"),
    ],
)
def test_the_terminal_shows_the_number_that_the_model_is_chosen_by(task: str, column: str, progress: str) -> None:
    record, screen = record_of(task), io.StringIO()
    Console(file=screen, width=200).print(closing_table(record, folder=Path("run")))
    assert column in screen.getvalue()
    assert headline(record.rounds[0], run=record.run).startswith(progress)
    assert headline(record.rounds[0].model_copy(update={"validation": None}), run=record.run) == ""


def test_no_interval_is_cut_on_a_terminal_of_80_columns() -> None:
    screen = io.StringIO()
    Console(file=screen, width=80).print(closing_table(record_of("several"), folder=Path("run")))
    rows = [line for line in screen.getvalue().splitlines() if line.startswith("│")]
    assert all(line.endswith("│") and "…" not in line for line in rows)
    assert any("all" in line for line in rows)


def test_the_registry_says_what_the_model_learned() -> None:
    for task, said in (
        ("several", "answer 3 questions at once"),
        ("multi-label", "say which labels fit"),
        ("rating", "give ratings"),
        ("single-label", "tell classes apart"),
    ):
        entry = registry_entry(record_of(task))
        assert entry is not None
        assert said in entry.deployment.basic.description


def test_counts_of_many_answers_are_shown_as_rows_with_their_noise() -> None:
    """A row can be in four counts of these tasks, so each was sent as half a row."""
    blocks = left_blocks(record_of("several"), words=read_words(), sentences=read_privacy_words())
    table, words = blocks[-1], blocks[-2]
    assert table.kind == "table"
    assert table.head == ("Site", *count_names(run_of(SEVERAL).data))
    assert [cell.text for cell in table.rows[0]][1:4] == ["0.0", "20.0", "40.0"]
    assert words.kind == "words"
    assert "One row can be in 4 of them" in words.text
    assert "standard deviation of 6." in words.text
    single = left_blocks(record_of("single-label"), words=read_words(), sentences=read_privacy_words())
    assert single[-2].kind == "words"
    assert "standard deviation of 3." in single[-2].text
    assert "One row can be" not in single[-2].text


def test_each_tasks_scores_are_events_of_their_own() -> None:
    tags = round_scalars(record_of("several").rounds[0])
    assert {"validation/mean_score", "validation/feeling/macro_f1", "validation/valence/mae"} <= set(tags)


def test_metrics_stand_in_order_task_by_task() -> None:
    names = ["b/loss", "mean_score", "a/mae", "b/macro_f1", "a/closeness", "b/made_up"]
    assert in_order(names) == ["mean_score", "b/macro_f1", "b/loss", "b/made_up", "a/closeness", "a/mae"]
    assert metric_name("speaker_group/micro_f1") == "speaker group: Micro-F1"
