"""Run: the service in a process of its own, until it is stopped.

in        a TrainedModel, an address
out       a listening HTTP server
relies on uvicorn; nothing of a request is logged, not even that it came
"""

import ipaddress

import typer

from server.service.app import LOOPBACK, make_app
from server.trained import TrainedModel


def serve(trained: TrainedModel, *, host: str, port: int) -> None:
    """Answers requests until the process is interrupted."""
    import uvicorn

    if is_loopback(host):
        hosts: tuple[str, ...] = (*LOOPBACK, host)
    else:
        hosts = ("*",)
        typer.secho(
            f"WARNING: {host} can be reached by others. Whoever reaches it may ask the model; there is no "
            "password and no encryption. Put a reverse proxy with TLS and access control in front of it.",
            fg=typer.colors.RED,
            err=True,
        )
    app = make_app(trained, hosts=hosts)
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"{trained.run.name}: http://{shown}:{port}/ (stop with Ctrl-C)")
    uvicorn.run(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False, date_header=False
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
