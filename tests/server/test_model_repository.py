"""The chain that lies in the project serves as it lies there."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from conftest import Serve

from gati.repository.chain import read_chain
from gati.repository.release import valid_releases
from gati_client import Client
from gati_export.demo import digits
from gati_export.releases.repository import configs, read_config

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def test_it_answers_early_and_mostly_as_its_backbone(serve: Serve, tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY, tmp_path / "models")  # a server writes beside its repository
    served = serve(tmp_path / "models", GATI_STORE="none")
    _, pool = digits.pools()
    views = digits.views(pool, np.arange(64), seed=5)
    with Client(served.grpc, "digits") as client:
        parts = [(client.infer(view), client.infer(view, exact=True)) for view in np.split(views, 4)]
    exits = np.concatenate([cached.exit for cached, _ in parts])
    agree = np.concatenate([cached.output.argmax(1) == exact.output.argmax(1) for cached, exact in parts])
    assert (exits == 0).any()
    assert agree.mean() >= 0.9
    assert all((exact.release == 0).all() for _, exact in parts)


def test_it_has_two_releases_to_go_back_between_and_names_no_place() -> None:
    chain = read_chain(REPOSITORY, "digits")
    releases = list(valid_releases(REPOSITORY, chain))
    assert [release.number for release in releases] == [2, 1]
    assert not any(release.window.source.startswith("/") for release in releases)


def test_its_configurations_are_those_that_an_export_writes() -> None:
    for config in configs(read_chain(REPOSITORY, "digits")):
        assert read_config(REPOSITORY, config.name) == config
