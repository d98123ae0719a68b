"""A site's folder: settings that are read back, a key in the form of the SuperNode, and nothing for the node's user."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from client.node import setup
from client.node.serving import program, run_node
from client.node.settings import read_node
from client.node.setup import NewSite, count_rows, make_site, new_site_key, rounded
from client.site import read_site
from server.deployment.certificates import make_authority
from shared.errors import ConfigError
from shared.keys import fingerprint, read_private, read_public, write_secret
from tests.tiny import CARD, write_folder

IS_ROOT = os.geteuid() == 0


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data", rows=37, modalities=("left", "right"), seed=5)
    (tmp_path / "dataset.toml").write_text(CARD, encoding="utf-8")
    return tmp_path / "data"


def new(data: Path, **fields: object) -> NewSite:
    return NewSite(**{"name": "clinic-a", "server": "motet.example.org:8000", "data": data, "size": 30, **fields})  # type: ignore[arg-type]


def test_what_is_made_is_read_back_and_permits_as_little_as_can_be(tmp_path: Path, data: Path) -> None:
    make_site(tmp_path / "site", new(data))
    site = read_site(tmp_path / "site" / "site.toml")
    assert (site.name, site.nominal_size, site.nominal_subjects) == ("clinic-a", 30, None)
    assert site.modalities == ("left", "right")
    assert (site.data, site.data_set) == (data, "clinic-a: Tiny")
    assert (site.privacy.epsilon, site.privacy.delta) == (8.0, 1e-5)
    privacy = site.privacy
    assert (privacy.allow_non_private, privacy.trust_server, privacy.reproducible_noise) == (False, False, False)
    assert site.agent.key == tmp_path / "site" / "agent" / "key"
    node = read_node(tmp_path / "site" / "node.toml")
    assert (node.server, node.agent) == ("motet.example.org:8000", site.agent.socket)
    assert node.key == tmp_path / "site" / "node" / "key"


@pytest.mark.parametrize(("size", "delta"), [(30, 1e-5), (10_000, 1e-5), (10_001, 1e-6), (5_000_000, 1e-8)])
def test_delta_is_well_below_one_over_the_size(tmp_path: Path, data: Path, size: int, delta: float) -> None:
    make_site(tmp_path / "site", new(data, size=size))
    assert read_site(tmp_path / "site" / "site.toml").privacy.delta == pytest.approx(delta)


def test_the_key_is_in_the_form_of_the_supernode_and_the_public_half_has_the_name(tmp_path: Path, data: Path) -> None:
    public, mark = make_site(tmp_path / "site", new(data))
    key, name = read_public(public)
    assert (name, fingerprint(key)) == ("clinic-a", mark)
    for place in ("agent", "node"):
        path = tmp_path / "site" / place / "key"
        assert fingerprint(read_private(path).public_key()) == mark
        load_ssh_private_key(path.read_bytes(), None)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_new_key_takes_the_place_of_the_old_in_both(tmp_path: Path, data: Path) -> None:
    _, before = make_site(tmp_path / "site", new(data))
    public, after = new_site_key(tmp_path / "site", name="clinic-a")
    assert after != before
    assert fingerprint(read_public(public)[0]) == after
    for place in ("agent", "node"):
        assert fingerprint(read_private(tmp_path / "site" / place / "key").public_key()) == after


def test_a_public_number_is_round_and_never_above_the_true_one() -> None:
    assert [rounded(number) for number in (0, 1, 9, 10, 37, 999, 1000, 1999)] == [1, 1, 9, 10, 30, 900, 1000, 1000]


def test_rows_and_people_are_counted_for_the_owner(data: Path) -> None:
    assert count_rows(data).rows == 37


def test_no_count_is_written_unasked(tmp_path: Path, data: Path) -> None:
    """With nobody at a terminal, and no --size, nothing is made."""
    done = subprocess.run(
        [sys.executable, "-m", "motet", "site", "init", str(tmp_path / "site"), "--name", "a", "--server", "h:1",
         "--data", str(data)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        cwd=Path(__file__).resolve().parents[3], env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 1
    assert "there are 37 records (only you see this)" in done.stderr
    assert "--size 30" in done.stderr
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "../a"}, "name"),
        ({"name": "a b"}, "name"),
        ({"server": "host"}, "server"),
        ({"server": "https://host:1"}, "server"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"delta": 0.5}, "delta"),
        ({"unit": "subject"}, "nominal_subjects"),
        ({"node_user": "nobody-of-this-name"}, "no user of this machine"),
    ],
)
def test_a_wrong_value_makes_nothing(tmp_path: Path, data: Path, fields: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_site(tmp_path / "site", new(data, **fields))
    assert not (tmp_path / "site").exists()


def test_a_folder_that_is_missing_or_holds_all_sites_is_refused_with_the_one_that_may_be_meant(
    tmp_path: Path, data: Path
) -> None:
    with pytest.raises(ConfigError, match="no such folder; --data names"):
        make_site(tmp_path / "site", new(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"no metadata.jsonl, .csv or .parquet in it$"):
        make_site(tmp_path / "site", new(tmp_path))
    (tmp_path / "sites").mkdir()
    data.rename(tmp_path / "sites" / "north")
    for asked in (lambda: make_site(tmp_path / "site", new(tmp_path)), lambda: count_rows(tmp_path)):
        with pytest.raises(ConfigError, match=r"did you mean .*/sites/north\?"):
            asked()
    write_folder(tmp_path / "sites" / "west", rows=3, modalities=("left",), seed=5)
    with pytest.raises(ConfigError, match=r"did you mean .*/sites/NAME\?"):
        count_rows(tmp_path)
    assert not (tmp_path / "site").exists()


def test_a_folder_without_the_agreed_card_is_refused(tmp_path: Path, data: Path) -> None:
    (tmp_path / "dataset.toml").unlink()
    (data / "dataset.toml").unlink(missing_ok=True)
    with pytest.raises(ConfigError, match="put the one that all sites agreed on"):
        make_site(tmp_path / "site", new(data))


@pytest.mark.skipif(not IS_ROOT, reason="only root can hand a folder to another user")
def test_the_nodes_user_reaches_its_own_files_and_the_socket_and_nothing_else(tmp_path: Path, data: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    data.chmod(0o700)
    make_site(tmp_path / "site", new(data, node_user="nobody"))
    site = tmp_path / "site"
    assert read_site(site / "site.toml").agent.allowed_users == ("nobody",)

    def can(test: str, path: Path) -> bool:
        return subprocess.run(["/usr/bin/test", test, str(path)], user="nobody", check=False).returncode == 0

    for path in (site / "node.toml", site / "node" / "key"):
        assert can("-r", path)
    assert can("-w", site / "node")
    assert can("-x", site / "socket")
    for path in (site, site / "socket", site / "site.toml", site / "agent", site / "agent" / "key", data, data / "x"):
        assert not can("-r", path)
    for path in (site, site / "socket", site / "agent"):
        assert not can("-w", path)


def test_a_node_without_the_servers_authority_says_where_to_put_it(tmp_path: Path, data: Path) -> None:
    make_site(tmp_path / "site", new(data))
    with pytest.raises(ConfigError, match=r"node/ca.crt: not there; put the server's ca.crt there"):
        run_node(tmp_path / "site")


def test_the_supernode_is_told_of_the_agents_socket_and_of_nothing_private(tmp_path: Path, data: Path) -> None:
    make_site(tmp_path / "site", new(data))
    found = program(read_node(tmp_path / "site" / "node.toml"))
    words = " ".join([*found.command, *found.environment.values()])
    assert f'agent="{tmp_path}/site/socket/agent"' in words
    for private in (str(data), "site.toml", "ledger"):
        assert private not in words


@pytest.mark.skipif(not IS_ROOT, reason="only root can hand a file over")
def test_a_link_in_the_nodes_folder_hands_nothing_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root makes a new key while delivered code, whose folder it is, puts a link in its place."""
    victim, folder = tmp_path / "ledger.sqlite", tmp_path / "site"
    victim.touch()
    for name in ("agent", "node"):
        (folder / name).mkdir(parents=True)
    os.chown(folder / "node", 65534, 65534)

    def replaced(path: Path, text: bytes) -> None:
        write_secret(path, text)
        if path.parent.name == "node":
            path.unlink()
            path.symlink_to(victim)

    monkeypatch.setattr(setup, "write_secret", replaced)
    new_site_key(folder, name="clinic-a")
    assert victim.stat().st_uid == os.geteuid()
    assert (folder / "node" / "key").lstat().st_uid == 65534


@pytest.mark.parametrize(("text", "said"), [(None, "cannot be read"), ("not a certificate", "no certificate")])
def test_an_authority_that_is_none_makes_nothing(tmp_path: Path, data: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "ca.crt").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        make_site(tmp_path / "site", new(data, ca=tmp_path / "ca.crt"))
    assert not (tmp_path / "site").exists()


@pytest.mark.skipif(not IS_ROOT, reason="only root can be the wrong user and read the key all the same")
def test_root_does_not_start_the_node_of_another_user(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.node.serving.Supervisor.run", lambda _: pytest.fail("it was started"))
    make_authority(tmp_path)
    make_site(tmp_path / "site", new(data, node_user="nobody", ca=tmp_path / "ca.crt"))
    with pytest.raises(ConfigError, match="root started it"):
        run_node(tmp_path / "site")
    assert not (tmp_path / "site" / "node" / "flower").exists()
