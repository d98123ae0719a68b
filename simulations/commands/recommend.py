"""Recommend commands: what a matching run's joint space is for: things that belong to a query, and classes by name.

in        what a person types after motet recommend or motet classify
out       tables or JSON on the terminal; exit code 1 with one clear error
relies on importing torch, and all that needs it, only in the commands that do
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from server.joint_space import JointSpace
    from server.naming import NamedClass, ShotScores

Run = Annotated[Path, typer.Argument(help="Folder of a run that has ended and matches pairs.")]
Text = Annotated[str | None, typer.Option("--text", help="The query, a text.")]
Image = Annotated[Path | None, typer.Option("--image", help="The query, a picture.")]
Audio = Annotated[Path | None, typer.Option("--audio", help="The query, a recording.")]
Value = Annotated[
    str | None, typer.Option("--value", metavar="MODALITY=FILE|TEXT", help="The query, of any modality by its name.")
]
Json = Annotated[bool, typer.Option("--json", help="Lines of JSON instead of a table.")]


def recommend(
    run: Run,
    catalogue: Annotated[
        Path, typer.Option("--catalogue", help="What may be recommended: a data folder (labels not needed), or files.")
    ],
    text: Text = None,
    image: Image = None,
    audio: Audio = None,
    value: Value = None,
    among: Annotated[
        str | None, typer.Option("--among", help="Modality to search; the other one than the query's if not given.")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, max=10_000, help="How many.")] = 10,
    json: Json = False,
) -> None:
    """Name the things of a catalogue that belong most with a text, a picture or a recording."""
    _refuse_but_one(text, image, audio, value)
    from server.catalogue import open_catalogue
    from server.catalogue import recommend as best_of

    space = _space(run)
    modality, given = _query(space, text=text, image=image, audio=audio, value=value)
    query = space.place(modality, given)
    opened = open_catalogue(space, catalogue, modality=among or space.other(modality))
    found = best_of(space, opened, query, top=top)
    if json:
        typer.echo("\n".join(each.model_dump_json() for each in found))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"{escape(opened.modality)} of {len(opened.entries):,}, by {space.task.score} score"
    table = Table("", "score", opened.modality, "where", "item", title=title, title_justify="left")
    for each in found:
        table.add_row(str(each.rank), f"{each.score:.3f}", escape(each.shown), each.name, escape(each.item or "–"))
    Console().print(table)


def classify(
    run: Run,
    folder: Annotated[
        Path | None, typer.Argument(help="A data folder to measure on; without one, a single value is named.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option("--classes", metavar="A,B,C", help="Names; with a folder, in the order of its values.")
    ] = None,
    template: Annotated[str, typer.Option("--template", help="Text of a class; {} stands for its name.")] = "{}",
    text: Text = None,
    image: Image = None,
    audio: Audio = None,
    value: Value = None,
    by: Annotated[str | None, typer.Option("--by", help="With a folder: the group column that is guessed.")] = None,
    modality: Annotated[str | None, typer.Option("--modality", help="With a folder: whose values are named.")] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=1, help="With a folder: examples of each class, in place of names.")
    ] = None,
    head: Annotated[Literal["mean", "logistic"], typer.Option("--head", help="With --shots.")] = "mean",
    draws: Annotated[int, typer.Option("--draws", min=1, max=1000, help="With --shots: how often drawn.")] = 10,
    seed: Annotated[int, typer.Option("--seed", min=0, help="With --shots: of the draws.")] = 0,
    json: Json = False,
) -> None:
    """Tell classes apart in the joint space: by their names alone, or by a few examples of each."""
    names = [name.strip() for name in classes.split(",")] if classes is not None else None
    if folder is None:
        _refuse_but_one(text, image, audio, value)
        if names is None or by is not None or modality is not None or shots is not None:
            raise typer.BadParameter("one value is named by --classes alone; --by, --modality, --shots need a FOLDER")
        _name_one(_space(run), names, template=template, text=text, image=image, audio=audio, value=value, json=json)
        return
    if any(each is not None for each in (text, image, audio, value)):
        raise typer.BadParameter("give a FOLDER, or one value; not both")
    if by is None:
        raise typer.BadParameter("name the group column that is guessed", param_hint="--by")
    if names is not None and shots is not None:
        raise typer.BadParameter("--classes or --shots; by names, or by examples")
    from server.naming import few_shot, read_labelled, zero_shot

    space = _space(run)
    chosen = modality or space.task.pair[0]
    labelled = read_labelled(space, folder, modality=chosen, column=by)
    if shots is not None:
        found = few_shot(space.task, labelled, shots=shots, head=head, draws=draws, seed=seed)
    else:
        found = zero_shot(space, labelled, modality=chosen, names=names or list(labelled.names), template=template)
    _show_scores(found, json=json)


def _name_one(
    space: "JointSpace",
    names: list[str],
    *,
    template: str,
    text: str | None,
    image: Path | None,
    audio: Path | None,
    value: str | None,
    json: bool,
) -> None:
    from server.naming import name_scores, named

    modality, given = _query(space, text=text, image=image, audio=audio, value=value)
    places = name_scores(space, modality, names, template=template)
    found = named(space.task, space.place(modality, given), places, names=names)
    if json:
        typer.echo("\n".join(each.model_dump_json() for each in found))
        return
    _show_classes(found)


def _show_classes(found: "list[NamedClass]") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("class", "score", "share")
    for each in found:
        table.add_row(escape(each.name), f"{each.score:.3f}", f"{each.probability:.3f}")
    Console().print(table)


def _show_scores(found: "ShotScores", *, json: bool) -> None:
    if json:
        typer.echo(found.model_dump_json())
        return
    accuracy, macro_f1 = (
        f"{value:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")
        for value, spread in ((found.accuracy, found.accuracy_spread), (found.macro_f1, found.macro_f1_spread))
    )
    tested = f"{found.num_classes} classes, {found.num_tested} values"
    if found.left_out:
        tested += f"; too few values: {', '.join(found.left_out)}"
    typer.echo(f"{found.way}: accuracy {accuracy}, macro-F1 {macro_f1} ({tested})")


def _space(run: Path) -> "JointSpace":
    from server.joint_space import JointSpace
    from server.trained import open_trained

    return JointSpace(open_trained(run))


def _refuse_but_one(*given: object) -> None:
    if sum(each is not None for each in given) != 1:
        raise typer.BadParameter("the query: give one of --text, --image, --audio, --value MODALITY=FILE|TEXT")


def _query(
    space: "JointSpace", *, text: str | None, image: Path | None, audio: Path | None, value: str | None
) -> tuple[str, Path | str]:
    """The query's modality, and its text or file."""
    if value is not None:
        modality, equals, given = value.partition("=")
        if not equals or not given:
            raise typer.BadParameter(f"{value!r}; allowed: MODALITY=FILE or MODALITY=TEXT", param_hint="--value")
        schema = space.trained.run.data.modalities.get(modality)
        return modality, given if schema is not None and schema.kind == "text" else Path(given)
    for kind, given_value in (("text", text), ("image", image), ("audio", audio)):
        if given_value is not None:
            return space.modality_of_kind(kind, option=f"--{kind}"), given_value
    raise AssertionError("a query was counted, and none is there")
