"""The benchmark of missing modalities: which runs it makes, that none is made twice, and what its table says."""

from pathlib import Path

import pytest

from simulations.bench import missing
from simulations.bench.missing import CASES, RATES, Job, Outcome, grid, stored, table, words_of
from simulations.scenario import find_scenario


def _outcome(job: Job, macro_f1: float) -> Outcome:
    return Outcome(
        job=job,
        macro_f1=(macro_f1, 0.0, 1.0),
        validation_macro_f1=0.5,
        accuracy=0.5,
        by_modalities={},
        present={},
        epsilon=None,
        settings="",
        commit="",
    )


def _job(missing_rate: float, *, seed: int = 0, data: str = "moods") -> Job:
    return Job(data=data, by="site", missing=missing_rate, privacy="none", seed=seed)


def test_every_rate_is_run_with_and_without_privacy_and_the_whole_data_once() -> None:
    jobs = list(grid(data=list(CASES), by=("site", "row"), seeds=(0, 1, 2)))
    assert len(jobs) == len({job.model_dump_json() for job in jobs}) == 4 * 2 * 3 * (len(RATES) + len(RATES) - 1)
    assert all(find_scenario(case.scenario).is_file() for case in CASES.values())


def test_private_and_other_runs_of_a_cell_see_the_same_losses() -> None:
    words = [
        words_of(Job(data="mosi", by="row", missing=0.3, privacy=p, seed=2), source=Path("x"), out=Path("y"))
        for p in ("none", "epsilon 8")
    ]
    of_data = [sorted(word for word in some if word.startswith("source.")) for some in words]
    assert of_data[0] == of_data[1]
    assert of_data[0] == ["source.missing=0.3", "source.missing_by=row", "source.missing_seed=2", "source.seed=2"]
    assert "run.privacy=none" in words[0]
    assert "run.privacy=none" not in words[1]


def test_a_stored_run_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Job] = []

    def run(job: Job, *, source: Path | None) -> Outcome:
        del source
        ran.append(job)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return _outcome(job, 0.9)

    monkeypatch.setattr(missing, "run", run)
    words = ["--data", "moods", "--by", "site", "--seeds", "0", "--out", str(tmp_path / "missing.jsonl")]
    with pytest.raises(KeyboardInterrupt):
        missing.main(words)
    assert len(stored(tmp_path / "missing.jsonl")) == 2
    missing.main(words)
    done = [each.job for each in stored(tmp_path / "missing.jsonl")]
    assert done == list(grid(data=["moods"], by=["site"], seeds=[0]))
    assert "moods site 50% epsilon 8 seed 0: 0.900" in capsys.readouterr().out


def test_a_cell_says_how_many_seeds_it_is_of_and_shows_no_spread_of_one() -> None:
    some = [_outcome(_job(0.0, seed=seed), value) for seed, value in enumerate((0.9, 0.92, 0.94))]
    some += [_outcome(_job(0.5), 0.8), _outcome(_job(0.3), 0.85), _outcome(_job(0.3, seed=1), 0.87)]
    assert table(some, by="site")[2:] == ["| `moods` | none | .920 ± .020 |  | .860 ± .014 (2) | .800 (1) |"]
    assert table(some, by="row")[2:] == ["| `moods` | none | .920 ± .020 |  |  |  |"]
