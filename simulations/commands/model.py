"""Model commands: using what a run has trained: predictions, an exported model, a small service.

in        what a person types after motet predict, export or serve
out       tables or JSON on the terminal, files where they are asked for; exit code 1 with one clear error
relies on importing torch, and all that needs it, only in the commands that do
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from server.prediction import Prediction
    from server.trained import TrainedModel
    from shared.config import RunConfig

Run = Annotated[Path, typer.Argument(help="Folder of a run that has ended.")]
Given = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FOLDER|FILE...",
        help="A data folder, labelled or not; or the files of one sample, by their endings or as MODALITY=FILE.",
    ),
]


def predict(
    run: Run,
    given: Given = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="The sample's text; MODALITY=TEXT where there are several.")
    ] = None,
    image: Annotated[Path | None, typer.Option("--image", help="The sample's picture.")] = None,
    audio: Annotated[Path | None, typer.Option("--audio", help="The sample's recording.")] = None,
    signal: Annotated[Path | None, typer.Option("--signal", help="The sample's sensor recording.")] = None,
    json: Annotated[bool, typer.Option("--json", help="A line of JSON a sample instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option("--out", help="File for a line of JSON a sample; not there yet.")] = None,
) -> None:
    """Say what a trained model makes of samples: labels, probabilities, and what each modality brought to them."""
    by_kind = {"image": image, "audio": audio, "signal": signal}
    files = [*(given or []), *(str(path) for path in by_kind.values() if path is not None)]
    if not files and not text:
        raise typer.BadParameter("nothing to predict from; give a FOLDER, FILES, --text, --image, --audio or --signal")
    folders = [Path(name) for name in given or [] if Path(name).is_dir()]
    if folders and (len(files) > 1 or text):
        raise typer.BadParameter(f"{folders[0]} is a folder; give one folder, or the files of one sample")
    if out is not None and out.exists():
        raise typer.BadParameter(f"{out} is there already; name another file", param_hint="--out")
    from server.prediction import Predictor

    predictor = Predictor(_opened(run))
    if folders:
        predictions = list(predictor.of_folder(folders[0]))
    else:
        settings = predictor.trained.run
        values = _values(given or [], run=settings, texts=text or [], by_kind=by_kind)
        predictions = [predictor.of_values(values)]
    _show(predictions, json=json, out=out)


def export(
    run: Run,
    to: Annotated[Literal["onnx", "torch-export"], typer.Option("--to", help="What kind of file.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder for it; RUN/export if not given.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="With --to onnx: also a file with weights of 8 bits, and what that costs.")
    ] = False,
) -> None:
    """Write a trained model as one file for machines without Motet, checked against the model it was made from."""
    from rich.console import Console

    from server.export import export as write
    from server.export import export_table

    exported = write(_opened(run), to=to, out=out or run / "export", int8=int8)
    Console().print(export_table(exported))


def serve(
    run: Run,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen at; this machine alone if not given.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65_535)] = 8000,
) -> None:
    """Answer over HTTP what a trained model makes of a sample, with a page to try it."""
    from server.service.run import serve as listen

    listen(_opened(run), host=host, port=port)


def _opened(run: Path) -> "TrainedModel":
    """The run's model; where sites kept parts of theirs to themselves, whoever uses it is told what stands there."""
    from server.trained import open_trained

    trained = open_trained(run)
    kept = trained.run.model.personal
    if kept:
        typer.secho(
            f"the run left {', '.join(kept)} with the sites: this model has their first weights, which nobody trained",
            fg=typer.colors.YELLOW,
            err=True,
        )
    return trained


def _values(
    files: Sequence[str], *, run: "RunConfig", texts: Sequence[str], by_kind: Mapping[str, Path | None]
) -> dict[str, Path | str]:
    """Modality -> the file or text that was given for it, each once."""
    from server.given import modality_for

    values: dict[str, Path | str] = {}

    def put(modality: str, value: Path | str, *, hint: str) -> None:
        if modality in values:
            raise typer.BadParameter(f"{modality} is given twice; one value a modality", param_hint=hint)
        values[modality] = value

    for kind, path in by_kind.items():
        if path is not None:
            put(_only(kind, run=run), path, hint=f"--{kind}")
    for text in texts:
        name, equals, rest = text.partition("=")
        if equals and name in run.modalities and run.data.modalities[name].kind == "text":
            put(name, rest, hint="--text")
        else:
            put(_only("text", run=run), text, hint="--text")
    for file in files:
        name, equals, rest = file.partition("=")
        if equals and name in run.modalities:
            put(name, Path(rest), hint="FILE")
        elif equals and Path(rest).exists() and not Path(file).exists():
            allowed = ", ".join(run.modalities)
            raise typer.BadParameter(f"{name!r} is no modality of the model; allowed: {allowed}", param_hint="FILE")
        else:
            put(modality_for(file, run=run, taken=tuple(values)), Path(file), hint="FILE")
    return values


def _only(kind: str, *, run: "RunConfig") -> str:
    """The model's one modality of a kind."""
    names = [name for name in run.modalities if run.data.modalities[name].kind == kind]
    if len(names) == 1:
        return names[0]
    had = ", ".join(f"{name} ({run.data.modalities[name].kind})" for name in run.modalities)
    if not names:
        raise typer.BadParameter(f"the model has no modality of this kind; it has {had}", param_hint=f"--{kind}")
    form = "TEXT" if kind == "text" else "FILE"
    raise typer.BadParameter(
        f"the model has {len(names)} of this kind; say which: {names[0]}={form}", param_hint=f"--{kind}"
    )


def _show(predictions: "Sequence[Prediction]", *, json: bool, out: Path | None) -> None:
    lines = "\n".join(each.model_dump_json(exclude_defaults=True) for each in predictions)
    if out is not None:
        from server.settings import write_atomically

        write_atomically(out, (lines + "\n").encode())
    if json:
        typer.echo(lines)
        return
    from rich.console import Console

    from server.prediction import prediction_table

    console = Console()
    console.print(prediction_table(predictions))
    if out is not None:
        typer.echo(f"written: {out}, {len(predictions)} samples; it is as private as they are")
