"""What takes less than going from stage to head to stage, and what rows cost that leave at each exit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Exported
from drafts import closed_heads
from handmade import draft, sure_head

from gati.inference import shortcuts
from gati.inference.cascade import Cascade
from gati.inference.inline import InlineEngine
from gati.inference.loaded import stage_of
from gati.serving.flight import Answer, Request
from gati.serving.live import LiveRelease
from gati.serving.orchestrator import Orchestrator
from gati.serving.watch import ReleaseWatch
from gati_export.releases.publish import publish


class Silent:
    """An observer that is not interested."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def live(repository: Path, exported: Exported, recorded: tuple[int, ...] = ()) -> LiveRelease:
    engine = InlineEngine(repository, exported.chain, recorded=recorded, warn=pytest.fail)
    told = lambda *_: None, lambda _: None
    watch = ReleaseWatch(repository, exported.chain, engine, *told, None, recorded, bypasses=True)
    for _ in range(3):  # it is taken, gets its shortcuts, and is measured
        watch.look()
    return watch.live


def closed(exported: Exported, folder: Path) -> Path:
    """A repository with heads that hit nothing."""
    repository, chain = exported.copy(folder), exported.chain
    publish(repository, chain, draft(closed_heads(repository, chain)))
    return repository


def costs(release: LiveRelease) -> dict[int, float]:
    assert release.heads is not None
    found = release.heads.load_shortcuts().costs
    assert found is not None
    for _ in range(5):  # others may be at work
        found.measure()
    return found.measure()


def test_the_backbone_whole_says_what_its_stages_say(exported: Exported) -> None:
    release, images = live(exported.repository, exported), exported.images[:50]
    assert release.whole is not None
    values: dict = {exported.chain.inputs[0].name: images}
    found = np.asarray(release.whole.run(values))
    for stage in release.stages:
        name = exported.chain.segments[stage.last].output.name
        values[name] = stage.run({read: values[read] for read in stage.inputs})
    np.testing.assert_allclose(found, values[exported.chain.output.name], rtol=1e-4, atol=1e-4)


def test_the_deeper_the_exit_the_more_a_row_costs_and_most_where_nothing_hits(
    exported: Exported, tmp_path: Path
) -> None:
    release = live(closed(exported, tmp_path), exported)
    found = costs(release)
    last = len(exported.chain.segments) - 1
    heads = [*release.state]
    assert [*found] == [*heads, last]
    assert 1 < found[last] <= 1.5, "lookups cost something"
    for place, exit_ in enumerate(heads, 1):
        share = exported.chain.segments[exit_].share
        assert found[exit_] == pytest.approx(share + (found[last] - 1) * place / len(heads))


def test_where_hidden_state_is_recorded_only_costs_are_known(exported: Exported, tmp_path: Path) -> None:
    release = live(closed(exported, tmp_path), exported, recorded=(0,))
    assert release.joined is None and release.whole is None
    assert costs(release)[len(exported.chain.segments) - 1] >= 1


def test_a_backbone_that_says_something_else_whole_is_not_used(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*what) -> object:
        stage = stage_of(*what)
        return type(stage)(stage.last, stage.inputs, lambda feeds: np.asarray(stage.run(feeds)) + 1)

    monkeypatch.setattr(shortcuts, "stage_of", other)
    said: list[str] = []
    engine = InlineEngine(exported.repository, exported.chain, warn=said.append)
    watch = ReleaseWatch(exported.repository, exported.chain, engine, lambda *_: None, lambda _: None)
    watch.look()
    watch.look()
    assert watch.live.whole is None and watch.live.joined is not None
    (why,) = said
    assert why.endswith("take longer than they need to: as one, stages answer otherwise than one by one")


def test_heads_that_never_hit_are_bypassed_and_those_of_the_next_release_asked(
    exported: Exported, tmp_path: Path
) -> None:
    repository, chain = closed(exported, tmp_path), exported.chain
    release = live(repository, exported)
    orchestrator = Orchestrator(chain, lambda: release, Silent(), lambda _: None)  # type: ignore[arg-type]

    def asked(times: int) -> list[int]:
        exits: list[Answer] = []
        for image in np.resize(exported.images[:50], (times, *exported.images.shape[1:])):
            request = Request({chain.inputs[0].name: image[None]}, False, lambda answer, _: exits.append(answer))
            orchestrator.serve([request])
        return [answer.exit.item() for answer in exits]

    last = len(chain.segments) - 1
    assert {*asked(600)} == {last}
    assert release.bypass.active
    publish(repository, chain, draft({0: sure_head(chain, 0, 3)}))
    release = live(repository, exported)
    assert asked(10) == [0] * 10


def test_releases_of_the_same_cut_points_share_the_backbone(exported: Exported, tmp_path: Path) -> None:
    repository, chain = exported.copy(tmp_path), exported.chain
    watch = ReleaseWatch(repository, chain, InlineEngine(repository, chain), lambda *_: None, lambda _: None)
    whole = []
    for mark in (1, 2):
        publish(repository, chain, draft({0: sure_head(chain, 0, mark)}))
        watch.look()
        watch.look()
        whole.append(watch.live.whole)
    assert whole[0] is not None and whole[0] is whole[1]


def test_where_a_row_of_nan_can_not_be_run_an_ordinary_one_is_measured(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    release, run = live(exported.repository, exported), Cascade.run

    def picky(self: Cascade, inputs: dict, *rest: Any) -> list:
        if any(np.isnan(values).any() for values in inputs.values()):
            raise RuntimeError("indices element out of data bounds")
        return run(self, inputs, *rest)

    monkeypatch.setattr(Cascade, "run", picky)
    assert costs(release)[len(exported.chain.segments) - 1] > 1
