"""Tux Paint: one site a language, drawings held out whole."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from shared.card import find_card
from shared.check import check_folder
from shared.errors import ConfigError
from simulations.datasets import tuxpaint_source
from simulations.datasets.tuxpaint import build_tuxpaint
from simulations.datasets.tuxpaint_matching import build_tuxpaint_matching
from tests.shared.media_samples import audio_bytes
from tests.simulations.folders import digest_of, rows_of

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 5"><rect width="10" height="5" fill="#00f"/></svg>'


@pytest.fixture(name="package")
def _package(tmp_path: Path) -> Path:
    """A package in small: 12 drawings in each of two categories, 2 in a third, named in French, and in Danish too; half are spoken in Danish."""
    stamps = tmp_path / "package/usr/share/tuxpaint/stamps"
    for category, count, shade in (("animals", 12, 0), ("food", 12, 100), ("rare", 2, 200)):
        (stamps / category / "inner").mkdir(parents=True)
        for number in range(count):
            stem = stamps / category / "inner" / f"{category}{number}"
            names = f"A thing.\nfr.utf8=Chose {number}.\nda.utf8= Ting \nxx.utf8=no\n"
            stem.with_suffix(".txt").write_text(names, encoding="utf-8")
            if number == 0:
                stem.with_suffix(".svg").write_text(SVG)
            else:
                Image.new("LA", (300, 200 + number), (shade + 4 * number, 128)).save(stem.with_suffix(".png"))
            if number != 1:
                stem.with_name(f"{stem.name}_desc_fr.ogg").write_bytes(f"fr {category}{number}".encode())
            if number % 2:
                stem.with_name(f"{stem.name}_desc_da.ogg").write_bytes(f"da {category}{number}".encode())
    (stamps / "food/inner/food1.svg").write_text("<svg/>")
    (stamps / "food/inner/unnamed.png").write_bytes(b"never opened")
    copyright_file = tmp_path / "package/usr/share/doc/tuxpaint-stamps-default/copyright"
    copyright_file.parent.mkdir(parents=True)
    copyright_file.write_text("License: GPL-2\n")
    return tmp_path / "package"


def _build(target: Path, package: Path | None, *, seed: int = 0) -> Path:
    return build_tuxpaint(
        target, source=package, categories=2, validation_drawings=4, test_drawings=6, image_side_px=50, seed=seed
    ).folder


def test_sites_are_languages_and_no_drawing_is_both_held_out_and_at_a_site(package: Path, tmp_path: Path) -> None:
    folder = _build(tmp_path / "tux", package)
    held_out = {part: rows_of(folder / "held-out" / part) for part in ("validation", "test")}
    sites = {site.name: rows_of(site) for site in sorted((folder / "sites").iterdir())}

    assert list(sites) == ["da", "fr"]
    assert all({row["language"] for row in rows} == {site} for site, rows in sites.items())
    drawings = {name: {row["subject_id"] for row in rows} for name, rows in held_out.items()}
    assert {name: len(keys) for name, keys in drawings.items()} == {"validation": 4, "test": 6}
    at_sites = {row["subject_id"] for rows in sites.values() for row in rows}
    assert len(at_sites | drawings["validation"] | drawings["test"]) == 24
    assert len(at_sites) == 14
    assert sum(key.startswith("food/") for key in drawings["test"]) == 3
    assert sum(map(len, [*sites.values(), *held_out.values()])) == 24 + 24
    assert {row["label"] for row in sites["fr"]} == {"animals", "food"}


def test_a_row_holds_its_own_name_voice_and_drawing(package: Path, tmp_path: Path) -> None:
    folder = _build(tmp_path / "tux", package)
    for site in (folder / "sites").iterdir():
        for row in rows_of(site):
            number = int(re.sub(r"\D", "", row["subject_id"]))
            assert row["text"] == {"fr": f"Chose {number}.", "da": "Ting"}[site.name]
            assert row["english"] == "A thing."
            assert ("audio_file_name" in row) == (number != 1 if site.name == "fr" else number % 2 == 1)
            if "audio_file_name" in row:
                assert (site / row["audio_file_name"]).read_bytes() == f"{site.name} {row['label']}{number}".encode()
            with Image.open(io.BytesIO((site / row["image_file_name"]).read_bytes())) as image:
                assert (image.mode, max(image.size)) == ("RGB", 50)
                shade = {"animals": 0, "food": 100}[row["label"]] + 4 * number
                over_white = round((shade * 128 + 255 * 127) / 255)
                assert image.getpixel((10, 10)) == ((over_white,) * 3 if number else (0, 0, 255))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not(package: Path, tmp_path: Path) -> None:
    digests = [digest_of(_build(tmp_path / str(n), package, seed=seed)) for n, seed in enumerate((0, 0, 1))]
    assert digests[0] == digests[1] != digests[2]


def test_a_recording_of_two_drawings_is_at_a_site_once(package: Path, tmp_path: Path) -> None:
    inner = package / "usr/share/tuxpaint/stamps/food/inner"
    for number in range(2, 12):
        (inner / f"food{number}_desc_fr.ogg").write_bytes(b"the same")
    folder = _build(tmp_path / "tux", package)
    for part in (folder / "sites/fr", folder / "sites/da", folder / "held-out/test"):
        contents = [path.read_bytes() for path in (part / "audio").iterdir()]
        assert len(contents) == len(set(contents)), part
    rows = [row for row in rows_of(folder / "sites/fr") if row["subject_id"].startswith("food")]
    assert sum("audio_file_name" in row for row in rows if not row["subject_id"].endswith("food0")) == 1


def test_a_drawing_held_out_is_the_same_file_in_all_its_languages_and_passes_the_check(
    package: Path, tmp_path: Path
) -> None:
    for recording in package.rglob("*.ogg"):
        recording.unlink()
    (package / "usr/share/tuxpaint/stamps/food/inner/food3_desc_fr.ogg").write_bytes(audio_bytes(form="OGG"))
    part = _build(tmp_path / "tux", package) / "held-out/test"

    assert check_folder(part, schema=None).num_rows == 12
    pictures: dict[str, set[bytes]] = {}
    for row in rows_of(part):
        pictures.setdefault(row["subject_id"], set()).add((part / row["image_file_name"]).read_bytes())
    assert [len(contents) for contents in pictures.values()] == [1] * 6


def test_drawings_that_are_only_svg_can_be_rows_without_an_image(package: Path, tmp_path: Path) -> None:
    built = build_tuxpaint(
        tmp_path / "tux",
        source=package,
        svg="without-image",
        categories=2,
        validation_drawings=2,
        test_drawings=2,
    )
    rows = [row for folder in built.folder.glob("*/*") for row in rows_of(folder)]
    assert sorted({row["subject_id"] for row in rows if "image_file_name" not in row}) == [
        "animals/inner/animals0",
        "food/inner/food0",
    ]


def test_without_the_package_that_draws_svg_the_error_says_what_to_do(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ConfigError, match="needs the package resvg-py; install it"):
        _build(tmp_path / "tux", package)


def test_svg_drawings_can_be_left_out(package: Path, tmp_path: Path) -> None:
    built = build_tuxpaint(
        tmp_path / "tux", source=package, svg="leave-out", categories=2, validation_drawings=2, test_drawings=2
    )
    assert sum(built.site_rows.values()) + built.validation_rows + built.test_rows == 22 + 22


def test_the_readme_quotes_the_copyright_file(package: Path, tmp_path: Path) -> None:
    text = (_build(tmp_path / "tux", package) / "README.md").read_text("utf-8")
    assert "> License: GPL-2" in text
    assert "2 are there only as SVG: they were drawn with resvg" in text


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb, which Debian and Ubuntu have")
def test_a_deb_gives_the_same_as_the_folder_it_unpacks_to(package: Path, tmp_path: Path) -> None:
    control = package / "DEBIAN/control"
    control.parent.mkdir()
    control.write_text(
        "Package: tuxpaint-stamps-default\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    )
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-b", str(package), str(tmp_path / "tux.deb")],
        check=True,
        capture_output=True,
    )
    assert digest_of(_build(tmp_path / "a", tmp_path / "tux.deb")) == digest_of(_build(tmp_path / "b", package))


def test_without_a_source_and_without_apt_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuxpaint_source, "INSTALLED", tmp_path / "nowhere")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match=r"apt-get is not on this machine; give --from with the \.deb"):
        _build(tmp_path / "tux", None)


def test_a_folder_without_stamps_a_broken_deb_and_too_few_drawings_are_refused(package: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no stamps with spoken names"):
        _build(tmp_path / "tux", tmp_path / "package/usr/share/doc")
    (tmp_path / "x.deb").write_bytes(b"no")
    with pytest.raises(ConfigError, match="dpkg-deb"):
        _build(tmp_path / "tux", tmp_path / "x.deb")
    with pytest.raises(ConfigError, match="more drawings than the 200 held out"):
        build_tuxpaint(tmp_path / "tux", source=package)
    assert not (tmp_path / "tux").exists()


def test_for_matching_a_drawing_is_in_one_part_alone_with_all_its_names(package: Path, tmp_path: Path) -> None:
    stamps = package / "usr/share/tuxpaint/stamps"
    # the very same picture twice, as the three drawn from SVG are: one could be held out and another at a site
    (stamps / "food/inner/food5.png").write_bytes((stamps / "animals/inner/animals5.png").read_bytes())
    folder = build_tuxpaint_matching(
        tmp_path / "tux", source=package, validation_drawings=4, test_drawings=6, public_drawings=5, image_side_px=50
    ).folder
    parts = {
        "validation": rows_of(folder / "held-out/validation"),
        "test": rows_of(folder / "held-out/test"),
        "public": rows_of(folder / "public"),
        "sites": [row for site in (folder / "sites").iterdir() for row in rows_of(site)],
    }
    drawings = {name: {row["subject_id"] for row in rows} for name, rows in parts.items()}
    assert {name: len(keys) for name, keys in drawings.items()} == {
        "validation": 4,
        "test": 6,
        "public": 5,
        "sites": 8,
    }
    assert len(set().union(*drawings.values())) == 23
    for rows in parts.values():
        assert {row["language"] for row in rows} == {"da", "fr"}
        assert {row["english"] for row in rows} == {"A thing."}
        assert not any("label" in row for row in rows)
        assert all(row["category"] == row["subject_id"].partition("/")[0] for row in rows)
    card = find_card(folder / "public")
    assert card is not None
    assert (card.content.task, card.content.pair, card.content.item) == ("matching", ("image", "english"), "subject_id")
    for name, says in (("french", "allowed: 'english', or 'text'"), ("text", "23 drawings; allowed: more than the 90")):
        with pytest.raises(ConfigError, match=says):
            build_tuxpaint_matching(
                tmp_path / "other",
                source=package,
                name=name,
                public_drawings=10,
                validation_drawings=40,
                test_drawings=40,
            )
