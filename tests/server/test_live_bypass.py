"""On a server whose traffic is not what its heads know, requests go past them, and it says so."""

from __future__ import annotations

from pathlib import Path

from conftest import MODEL, Exported, Serve
from drafts import closed_heads
from handmade import draft, sure_head
from running import eventually, started

from gati_client import Client
from gati_export.releases.publish import publish
from gati_export.releases.rollout import publish_to
from gati_export.report.day import read_day


def test_heads_that_do_not_pay_are_bypassed_until_the_next_release(
    exported: Exported, serve: Serve, tmp_path: Path
) -> None:
    repository, chain = exported.copy(tmp_path, plain=True), exported.chain
    publish(repository, chain, draft(closed_heads(repository, chain)))
    running = started(exported, serve, tmp_path, "inline", repository, GATI_BYPASS="1", GATI_REPLICA="here")
    last = chain.backbone_exit

    def exits(times: int) -> set[int]:
        with Client(running.served.grpc, MODEL) as client:
            return {int(client.infer(image[None]).exit[0]) for image in exported.images[:times]}

    def bypassed() -> bool:
        assert exits(400) == {last}
        return running.reading().bypassed > 100

    assert eventually(bypassed)
    assert eventually(lambda: "take more time than they save now: most requests go past them" in running.log())
    publish_to(repository, chain, draft({0: sure_head(chain, 0, 3)}), running.served.grpc)
    assert exits(20) == {0}
    running.served.server.stop()
    minute = read_day(repository, MODEL).latest["here"]
    assert 100 < minute.bypassed < minute.exits[last]
