"""Pretrain command: encoders learn from public values before a run, and are kept for it to begin with.

in        what a person types after motet pretrain
out       a file of weights, and what to write into the scenario; exit code 1 with one clear error
relies on importing torch, and all that needs it, only when it runs
"""

from pathlib import Path
from typing import Annotated

import typer

from simulations.commands.options import Parts, Set


def pretrain(
    scenario: Annotated[
        str, typer.Argument(help="The run whose encoders learn: a shipped scenario's name, or a path.")
    ],
    public: Annotated[Path, typer.Option(help="A data folder that is nobody's; answers in it are not looked at.")],
    out: Annotated[Path, typer.Option(help="File for the weights, ending in .safetensors; not there yet.")],
    how: Annotated[str, typer.Option(help="contrastive or autoencoder.")] = "contrastive",
    steps: Annotated[int, typer.Option(help="Steps of Adam.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Rows in a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    changes: Set = None,
    parts: Parts = None,
) -> None:
    """Let a run's encoders learn from public values without answers, for the run to begin with (`model.start`)."""
    if out.exists() or out.suffix != ".safetensors":
        raise typer.BadParameter(f"{out}: allowed: a new file ending in .safetensors", param_hint="--out")
    from server.checkpoint import save_model
    from server.warm_start import WarmStartSettings, warm_start
    from shared.model.registry import load_extensions
    from shared.settings import parse_settings
    from simulations.scenario import find_scenario, motet_home, read_scenario

    table = {"how": how, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate}
    settings = parse_settings(WarmStartSettings, table, place="motet pretrain")
    for extension in parts or []:
        load_extensions(extension)
    read, _ = read_scenario(find_scenario(scenario), changes=changes or [], home=motet_home())
    found = warm_start(read.run, public=public, settings=settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_model(found.weights, path=out, run_digest=read.run.digest)
    typer.echo(f"{found.num_rows} public rows; loss on a tenth kept aside: {found.losses[0]:.3f} before, ", nl=False)
    typer.echo(f"{found.losses[1]:.3f} after {steps} steps")
    typer.echo(f'{out}: weights of the encoders; begin with them: --set run.model.start.path="{out.resolve()}"')
