"""`integrity graph`."""

from __future__ import annotations

import json

import pytest

from integrity.cli.shell import main


@pytest.mark.parametrize(
    ("options", "first"),
    [([], "account ("), (["--format", "mermaid"], "flowchart LR"), (["--format", "dot"], "digraph")],
)
def test_graph_of_the_shipped_rules_is_printed(
    options: list[str], first: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["graph", *options, "rules"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(first)
    assert "parcel.scans" in out


def test_graph_as_json_holds_nodes_edges_and_cycles(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "--json", "rules"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"nodes", "edges", "cycles"}
    [parcel] = [node for node in document["nodes"] if node["entity"] == "parcel"]
    assert (parcel["store"], parcel["level"], parcel["topics"]) == ("post_db", 1, [])
    [scans] = [edge for edge in document["edges"] if edge["id"] == "parcel.scans"]
    assert scans["ways"] == ["transaction"]


def test_faulty_rules_have_no_graph(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "a.yaml").write_text("version: 1\nparent: order\ndependents: []\n")
    assert main(["graph", str(tmp_path)]) == 2
    assert "unnamed_entity" in capsys.readouterr().err
