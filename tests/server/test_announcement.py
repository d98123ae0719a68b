"""What a run says of itself before it begins: true of every site whose owner allows it."""

from server.announcement import announcement
from server.plan import Plan, make_plan
from shared.config import RunConfig
from shared.messages import PROTOCOL_VERSION, Hello
from shared.model.multimodal import build_model
from shared.privacy.accountant import MechanismUse, calibrate_noise, spent_epsilon
from tests.tiny import PRIVACY, tiny_config


def planned(run: RunConfig, sizes: tuple[int, ...] = (40, 400)) -> Plan:
    sites = [
        Hello(protocol_version=PROTOCOL_VERSION, site=f"s{size}", modalities=("left", "right"), nominal_size=size)
        for size in sizes
    ]
    return make_plan(sites, run=run, model=build_model(run))


def test_the_announced_noise_is_what_a_site_needs_for_the_whole_run() -> None:
    run = tiny_config(private=True)

    said = announcement(planned(run), run=run, central=None)

    noise = calibrate_noise(epsilon=8.0, delta=1e-3, sample_rate=0.5, steps=6, accountant="pld")
    assert said == [
        "plan: 2 sites, 3 rounds, each asked 3 times",
        f"each record: epsilon 8 at delta 0.001; noise {noise:.3g} or more, rate 0.5, 6 steps",
    ]
    assert spent_epsilon([MechanismUse(noise, 0.5, 6)], delta=1e-3, accountant="pld") <= 8.0


def test_a_single_round_is_asked_for_one_time() -> None:
    run = tiny_config(private=True, federation={"rounds": 1})
    assert announcement(planned(run), run=run, central=None)[0] == "plan: 2 sites, 1 round, each asked 1 time"


def test_sites_of_different_sizes_are_announced_as_a_range() -> None:
    run = tiny_config(
        private=True,
        training={"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 20, "local_epochs": 1.0},
    )

    said = announcement(planned(run), run=run, central=None)[1]

    assert "rate 0.05 to 0.5, 6 to 60 steps" in said


def test_counts_that_are_asked_for_ask_for_more_noise() -> None:
    plain, counting = tiny_config(private=True), tiny_config(private=True, statistics={"noise_multiplier": 2.0})

    assert announcement(planned(plain), run=plain, central=None) != announcement(
        planned(counting), run=counting, central=None
    )


def test_a_run_without_privacy_says_so_and_a_secret_draw_too() -> None:
    run = tiny_config(private=False)
    assert announcement(planned(run), run=run, central=None)[-1] == "NOT PRIVATE: no update will be protected"

    secret = tiny_config(
        private=True,
        site_privacy={**PRIVACY, "unit": "site", "trust": "server"},
        federation={"rounds": 3, "site_sample_rate": 0.5},
    )
    assert announcement(planned(secret), run=secret, central=None)[0].endswith("each drawn in secret, round by round")
