"""Server commands: a deployment's server set up, its sites let in and out, and the server itself.

in        what a person types after motet server
out       a deployment's folder; a server that runs until it is ended
relies on server/deployment/, imported only in the command that needs it
"""

from pathlib import Path
from typing import Annotated

import typer

from shared.supervise import is_supervised
from simulations.commands.options import log_to_terminal

app = typer.Typer(help="The server of a deployment: set it up, let sites in, keep it running.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DEPLOYMENT", envvar="MOTET_DEPLOYMENT", help="The server's folder.")]
On = Annotated[Path, typer.Option("--on", metavar="DEPLOYMENT", envvar="MOTET_DEPLOYMENT", help="The server's folder.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DEPLOYMENT", help="Folder to make.")],
    host: Annotated[str, typer.Option(help="The name or address by which sites reach this machine.")],
    port: Annotated[int, typer.Option(help="The one port that is open to the network.")] = 8000,
    listen: Annotated[str, typer.Option(help="Address of this machine to listen on; all, if not given.")] = "0.0.0.0",  # noqa: S104
    monitor_port: Annotated[
        int | None, typer.Option(help="On loopback: /health and /metrics for Prometheus; none, if not given.")
    ] = None,
) -> None:
    """Make a server's folder: certificate authority, server certificate, keys, settings."""
    from server.deployment.setup import make_deployment
    from shared.keys import certificate_fingerprint

    made = make_deployment(folder, host=host, port=port, listen=listen, monitor_port=monitor_port)
    typer.echo(
        f"made: {folder}\n"
        f"authority: {certificate_fingerprint(made.tls.ca)}\n"
        "next:\n"
        f"  - give {made.tls.ca} to every site, and that fingerprint by another way\n"
        f"  - take {made.certificates}/ca.key away; it is needed only to renew the certificate\n"
        f"  - for each site: motet server enrol NAME.pub --on {folder}\n"
        f"  - motet server start {folder}"
    )


@app.command()
def enrol(
    public_key: Annotated[Path, typer.Argument(metavar="SITE.pub", help="The public key that a site handed over.")],
    on: On,
    name: Annotated[str | None, typer.Option(help="The site's name; the one in the file if not given.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="After which the key expires; deployment.toml's.")] = None,
) -> None:
    """Let a site in: its key is known from now on. Compare the fingerprint with the one that its owner reads to you."""
    from server.deployment.settings import open_deployment
    from server.enrolment import crowding
    from server.enrolment import enrol as enrol_key

    deployment = open_deployment(on)
    made = enrol_key(public_key, folder=deployment.enrolled, days=days or deployment.settings.key_days, name=name)
    typer.echo(f"enrolled: {made.name}\nfingerprint: {made.fingerprint}\nuntil: {made.expires or 'no end'}")
    if told := crowding(deployment.enrolled):
        typer.echo(told, err=True)
    if not is_supervised(deployment.state):
        typer.echo(f"next: motet server start {on}")
        return
    node_id = _registered(made.name, folder=deployment.enrolled)
    if node_id is None:
        typer.echo(f"not registered yet; see what `motet server start {on}` says", err=True)
        raise typer.Exit(1)
    typer.echo(f"registered: the site can connect now (motet node start); see it with: motet status {on}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")],
    on: On,
) -> None:
    """Let a site out: its key is worth nothing from now on, and can never come back."""
    from server.deployment.settings import open_deployment
    from server.enrolment import revoke as revoke_key

    deployment = open_deployment(on)
    gone = revoke_key(name, folder=deployment.enrolled)
    when = "within seconds" if is_supervised(deployment.state) else "when the server is started"
    typer.echo(
        f"revoked: {gone.name}, {gone.fingerprint}\nno introduction with this key is accepted from now on; its node is "
        f"turned away {when}"
    )


@app.command()
def certificate(folder: Folder) -> None:
    """Renew the server's certificate, by the same authority; sites change nothing."""
    from server.deployment.certificates import expires
    from server.deployment.settings import open_deployment
    from server.deployment.setup import renew_certificate

    deployment = open_deployment(folder)
    renew_certificate(deployment)
    until = expires(deployment.tls.certificate)
    typer.echo(f"renewed until {until:%Y-%m-%d}\nnext: start the server again: motet server start {folder}")


@app.command()
def start(folder: Folder) -> None:
    """Run the server until it is ended; what ends by itself is started again."""
    from server.deployment.serving import run_server
    from server.deployment.settings import open_deployment

    log_to_terminal()
    run_server(open_deployment(folder))


def _registered(name: str, *, folder: Path, within_s: float = 60.0) -> str | None:
    """Waits for the server that runs to have told Flower."""
    import time

    from server.enrolment import read_enrolment

    deadline = time.monotonic() + within_s
    while (found := read_enrolment(folder, name=name).node_id) is None and time.monotonic() < deadline:
        time.sleep(0.2)
    return found
