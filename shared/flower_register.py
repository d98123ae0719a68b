"""Flower register: many sites' keys made known to a SuperLink by one process; run as a program, by flower_commands.py.

in        on stdin a line of JSON for each key: name and public key as PEM; FLWR_HOME with Flower's config.toml
out       on stdout a line of JSON for each, in that order: the name, and the id of its node or why there is none
relies on Flower 1.41: what `flwr supernode register` does with one key, which takes seconds to start for each

Nothing of Motet is imported here: it is started by its path.
"""

import json
import sys


def main() -> None:
    """From the command line; the name of the SuperLink in config.toml is the only argument."""
    from flwr.cli.flower_config import read_superlink_connection
    from flwr.cli.utils import init_http_client_from_connection
    from flwr.proto.control_pb2 import RegisterNodeRequest

    client = init_http_client_from_connection(read_superlink_connection(sys.argv[1]))
    try:
        for line in sys.stdin:
            asked = json.loads(line)
            told: dict[str, object] = {"name": asked["name"]}
            try:
                request = RegisterNodeRequest(public_key=asked["key"].encode(), name=asked["name"])
                told["node-id"] = str(client.RegisterNode(request=request).node_id)
            except Exception as error:  # noqa: BLE001  one key's fault holds up no other
                told["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            print(json.dumps(told), flush=True)
    finally:
        client.close()


if __name__ == "__main__":
    main()
