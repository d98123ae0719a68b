"""The bundle that Flower delivers to sites holds what runs there and at the server, and nothing else."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from shared.version import VERSION

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 10 * 1024 * 1024
PACKAGES = ("client", "server", "shared")
DATA_SUFFIXES = {".toml", ".html", ".css", ".js", ".json", ".svg", ".txt", ".jinja", ".j2"}
"""files beside the code that it might open; one of them that the bundle leaves out is a fault"""


def tracked() -> list[str]:
    """Files of the packages that git knows or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *PACKAGES],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy that also has tests, documents and simulations in it."""
    folder = tmp_path_factory.mktemp("build")
    app = folder / "motet"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (app / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, app / name)
    (app / "client" / "test_left_here.py").write_text("", encoding="utf-8")
    done = subprocess.run(
        [str(Path(sys.executable).with_name("flwr")), "build", "--app", str(app)],
        cwd=folder, env={"PATH": "/usr/bin:/bin", "FLWR_HOME": str(folder / "home"), "FLWR_TELEMETRY_ENABLED": "0"},
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.fab")
    return built


def names(bundle: Path) -> set[str]:
    with zipfile.ZipFile(bundle) as opened:
        return set(opened.namelist()) - {".info/CONTENT", "pyproject.toml"}


def test_the_bundle_holds_exactly_the_code_of_client_server_and_shared_and_what_it_opens(bundle: Path) -> None:
    wanted = {name for name in tracked() if Path(name).suffix == ".py" or Path(name).suffix in DATA_SUFFIXES}
    assert names(bundle) == wanted
    assert {"client/app.py", "server/app.py", "shared/wire.py", "server/report/page.toml"} <= names(bundle)


def test_nothing_of_tests_simulations_or_documents_is_in_the_bundle(bundle: Path) -> None:
    assert {name.split("/")[0] for name in names(bundle)} == set(PACKAGES)
    assert not [name for name in names(bundle) if Path(name).name.startswith("test_") or name.endswith("_test.py")]


def test_no_module_has_a_name_that_flower_leaves_out_of_bundles() -> None:
    assert not [name for name in tracked() if Path(name).name.startswith("test_") or name.endswith("_test.py")]


def test_the_bundle_is_below_flowers_limit(bundle: Path) -> None:
    assert bundle.stat().st_size < MAX_BYTES


def test_the_version_that_flower_reads_is_the_one_that_reports_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == VERSION


def test_the_run_settings_that_the_apps_read_are_declared() -> None:
    """`flwr run` refuses a key that is not."""
    from server.app import RUN_FOLDER_KEY

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["flwr"]["app"]["config"]) == {RUN_FOLDER_KEY}
