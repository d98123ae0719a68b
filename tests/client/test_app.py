"""The delivered client app: an empty query is a hello, one with a header asks for counts, anything else is refused."""

from pathlib import Path

import pytest
from flwr.app import ConfigRecord, MessageType, RecordDict

from client import agent
from client.app import app
from shared.messages import PROTOCOL_VERSION, Hello, Refusal, StatisticsHeader, StatisticsReply
from shared.wire import decode_hello, decode_statistics, encode_statistics_request
from simulations.engine.local import LocalGrid
from tests.client.asking import rows_of, site_file
from tests.tiny import tiny_config

COUNTING = StatisticsHeader(
    protocol_version=PROTOCOL_VERSION,
    run=tiny_config(private=True, statistics={"noise_multiplier": 2.0}),
    run_id="r",
    planned_rounds=3,
)


def asked(path: Path, content: RecordDict) -> RecordDict:
    grid = LocalGrid(app, sites=[path])
    (node,) = grid.get_node_ids()
    (reply,) = grid.send_and_receive([grid.create_message(content, MessageType.QUERY, node, "1")])
    return reply.content


@pytest.fixture(autouse=True)
def _cold() -> None:
    agent._loaded_samples.cache_clear()


def test_an_empty_query_is_a_hello_and_costs_nothing(tmp_path: Path) -> None:
    said = decode_hello(asked(site_file(tmp_path), RecordDict()))
    assert isinstance(said, Hello)
    assert (said.site, said.nominal_size) == ("north", 40)
    assert not (tmp_path / "ledger.sqlite").exists()


def test_a_query_with_a_header_asks_for_counts(tmp_path: Path) -> None:
    said = decode_statistics(asked(site_file(tmp_path), encode_statistics_request(COUNTING)), num_counts=3)
    assert isinstance(said, StatisticsReply)
    assert len(rows_of(tmp_path)) == 1


def test_a_query_that_is_neither_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    path, more = site_file(tmp_path), encode_statistics_request(COUNTING)
    more["rows"] = ConfigRecord({"which": "all"})
    for content in (more, RecordDict({"header": ConfigRecord({"json": "{}"})}), RecordDict({"rows": ConfigRecord()})):
        assert decode_statistics(asked(path, content), num_counts=3) == Refusal("message-invalid")
    old = encode_statistics_request(COUNTING.model_copy(update={"protocol_version": 1}))
    assert decode_statistics(asked(path, old), num_counts=3) == Refusal("message-invalid")
    assert not (tmp_path / "ledger.sqlite").exists()
