"""release.json, and what makes a release on disk complete and valid."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import Exported
from handmade import draft, sure_head, toy_chain, toy_release
from hypothesis import given
from hypothesis import strategies as st

from gati.errors import ReleaseRefused
from gati.inference.head import SEGMENTS_KEY
from gati.repository.release import (
    LARGEST_FILE,
    ROLLBACK,
    Release,
    head_folder,
    head_path,
    numbers_on_disk,
    read_release,
    valid_releases,
)
from gati.triton.quarantine import clear
from gati.triton.tryout import check_release
from gati_export.releases.publish import publish

TEXT = toy_release(toy_chain()).to_json()
CERTIFICATE = json.loads(TEXT)["certificate"]
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.integers(1, 1000), st.booleans())
def test_what_is_written_is_read_again(number: int, back: bool) -> None:
    release = toy_release(toy_chain(), number, f"{ROLLBACK}{(number + 1) // 2}" if back else "refresh")
    read = Release.from_json(release.to_json())
    assert read == release
    assert read.origin == ((number + 1) // 2 if back else number)


@given(st.integers(0, len(TEXT) - 3))
def test_a_text_cut_short_is_damaged(length: int) -> None:
    with pytest.raises(ReleaseRefused, match=r"release\.json is damaged"):
        Release.from_json(TEXT[:length])


@given(st.sampled_from(sorted(json.loads(TEXT))), values)
def test_a_field_that_holds_anything_is_read_or_refused(field: str, value: Any) -> None:
    try:
        release = Release.from_json(json.dumps(json.loads(TEXT) | {field: value}))
    except ReleaseRefused:
        return
    assert isinstance(release.origin, int)
    assert all(isinstance(head.index, int) for head in release.heads)


@pytest.mark.parametrize("format_", [1, 3])
def test_a_manifest_of_another_version_is_told_from_a_damaged_one(format_: int) -> None:
    with pytest.raises(ReleaseRefused, match="written by another version of gati"):
        Release.from_json(json.dumps(json.loads(TEXT) | {"format": format_}))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"reason": "rollback to the roots"}, id="rollback to no number"),
        pytest.param({"reason": "rollback to 7"}, id="rollback to the future"),
        pytest.param({"heads": [{"index": [0], "sha256": ""}]}, id="index that is none"),
        pytest.param({"heads": 7}, id="no heads"),
        pytest.param({"certificate": {}}, id="empty certificate"),
        pytest.param({"certificate": CERTIFICATE | {"thresholds": [0.5]}}, id="thresholds of no cut points"),
        pytest.param({"certificate": CERTIFICATE | {"thresholds": {"x": 0.5}}}, id="threshold of no cut point"),
        pytest.param({"certificate": CERTIFICATE | {"thresholds": {"0": "high"}}}, id="threshold that is none"),
        pytest.param({"certificate": CERTIFICATE | {"threshold": 0.5}}, id="certificate with more"),
        pytest.param({"certificate": CERTIFICATE | {"n": "a"}}, id="count that is a text"),
        pytest.param({"certificate": CERTIFICATE | {"epsilon": "e"}}, id="promise that is a text"),
        pytest.param({"certificate": CERTIFICATE | {"bound": float("nan")}}, id="bound that is no number"),
        pytest.param({"certificate": CERTIFICATE | {"errors": True}}, id="count that is a truth"),
        pytest.param({"number": "3"}, id="number that is a text"),
        pytest.param({"number": 3.0}, id="number that is a fraction"),
        pytest.param({"segments": "abc"}, id="segments that are a text"),
        pytest.param({"created": 7}, id="time that is a number"),
        pytest.param({"window": {"source": "store", "samples": "500"}}, id="window that counts no samples"),
        pytest.param({"surplus": 1}, id="unknown field"),
        pytest.param({"certificate": CERTIFICATE | {"together": 0.5}}, id="less than one sample in a scene"),
        pytest.param({"certificate": CERTIFICATE | {"together": float("nan")}}, id="samples in a scene that are none"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_damaged(change: dict[str, Any]) -> None:
    with pytest.raises(ReleaseRefused, match=r"release\.json is damaged"):
        Release.from_json(json.dumps(json.loads(TEXT) | change))


def test_samples_are_their_own_scenes_where_a_certificate_does_not_say() -> None:
    fields = json.loads(TEXT)
    for later in ("together", "agreement", "parts"):
        del fields["certificate"][later]
    fields["certificate"]["hits"] = 1
    certificate = Release.from_json(json.dumps(fields)).certificate
    assert (certificate.together, certificate.agreement, certificate.parts, certificate.hits) == (1, "", "", 1)


def test_thresholds_are_by_cut_point() -> None:
    release = toy_release(toy_chain())
    assert CERTIFICATE["thresholds"] == {"0": 0.9, "1": 0.8}
    assert Release.from_json(TEXT).certificate.thresholds == release.certificate.thresholds == {0: 0.9, 1: 0.8}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {},
            "At most 1.00% of answers name another class than the backbone's, with 95% confidence: "
            "0 of 500 held-out samples did (",
        ),
        ({"observations": 40}, "0 of 500 held-out samples did, 40 independent ones among them (upper bound 0.60%)."),
        ({"agreement": "top-3"}, "of answers name a class that is not among the backbone's 3 best, with 95%"),
        ({"agreement": "within 0.2"}, "of answers differ from the backbone's by more than 0.2, with 95%"),
    ],
)
def test_a_certificate_is_said_in_one_sentence(change: dict[str, Any], says: str) -> None:
    said = str(replace(toy_release(toy_chain()).certificate, **change))
    assert says in said and said.endswith(".") and "\n" not in said


@pytest.fixture
def three(exported: Exported, tmp_path: Path) -> Path:
    """The exported repository with three releases; the second and third have heads on cut points 0 and 1."""
    repository = exported.copy(tmp_path)
    heads = {index: sure_head(exported.chain, index, 3) for index in (0, 1)}
    for _ in range(2):
        publish(repository, exported.chain, draft(heads))
    return repository


def test_the_highest_complete_release_comes_first(exported: Exported, three: Path) -> None:
    assert [release.number for release in valid_releases(three, exported.chain)] == [3, 2, 1]


@pytest.mark.parametrize(
    "harm", ["head gone", "head cut", "manifest gone", "manifest cut", "manifests differ", "moved"]
)
def test_a_damaged_release_is_refused_and_the_one_before_is_found(exported: Exported, three: Path, harm: str) -> None:
    chain = exported.chain
    model, manifest = head_path(three, chain, 1, 3), head_folder(three, chain, 1, 3) / "release.json"
    if harm == "head gone":
        model.unlink()
    elif harm == "head cut":
        model.write_bytes(model.read_bytes()[:-9])
    elif harm == "manifest gone":
        for index in (0, 1):
            (head_folder(three, chain, index, 3) / "release.json").unlink()
    elif harm == "manifest cut":
        for index in (0, 1):
            (head_folder(three, chain, index, 3) / "release.json").write_text(manifest.read_text()[:99])
    elif harm == "manifests differ":
        manifest.write_text(manifest.read_text().replace("refresh", "export"))
    else:
        for index in (0, 1):
            shutil.rmtree(head_folder(three, chain, index, 3))
            shutil.copytree(head_folder(three, chain, index, 2), head_folder(three, chain, index, 3))
    with pytest.raises(ReleaseRefused):
        read_release(three, chain, 3)
    assert [release.number for release in valid_releases(three, chain)] == [2, 1]


def test_a_release_for_other_segments_is_refused(exported: Exported, three: Path) -> None:
    for index in (0, 1):
        path = head_folder(three, exported.chain, index, 3) / "release.json"
        path.write_text(path.read_text().replace(exported.chain.segments[0].sha256, "0" * 64))
    with pytest.raises(ReleaseRefused, match="trained behind other segments"):
        read_release(three, exported.chain, 3)


@pytest.mark.parametrize("digests", [b"[" * 200_000, b"\xff\xfe", b"[]"], ids=["endless", "no text", "others"])
def test_a_head_that_does_not_say_what_it_was_trained_behind_is_moved_out(
    exported: Exported, three: Path, digests: bytes
) -> None:
    chain = exported.chain
    model = onnx.load_model(head_path(three, chain, 0, 3))
    del model.metadata_props[:]
    model.metadata_props.add(key=SEGMENTS_KEY, value="?" * len(digests))  # protobuf itself writes text alone
    content = model.SerializeToString().replace(b"?" * len(digests), digests)
    head_path(three, chain, 0, 3).write_bytes(content)
    manifest = head_folder(three, chain, 0, 3) / "release.json"
    fields = json.loads(manifest.read_text())
    for head in fields["heads"]:
        if head["index"] == 0:
            head["sha256"] = hashlib.sha256(content).hexdigest()
    for index in (0, 1):
        (head_folder(three, chain, index, 3) / "release.json").write_text(json.dumps(fields))
    with pytest.raises(ReleaseRefused, match="trained behind other segments"):
        check_release(three, chain, 3)
    assert clear(three, chain)
    assert not head_folder(three, chain, 0, 3).exists()


@pytest.mark.parametrize("name", ["model.onnx", "release.json"])
@pytest.mark.parametrize("kind", ["oversized", "pipe", "device", "folder"])
def test_what_is_no_plain_file_of_some_size_is_refused_at_once(
    exported: Exported, three: Path, kind: str, name: str
) -> None:
    path = head_folder(three, exported.chain, 0, 3) / name
    path.unlink()
    if kind == "oversized":
        path.touch()
        os.truncate(path, LARGEST_FILE + 1)  # takes no room on the disk
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    before = os.listdir("/proc/self/fd")
    with pytest.raises(ReleaseRefused, match=f"{name} is no plain file of at most"):
        read_release(three, exported.chain, 3)
    assert os.listdir("/proc/self/fd") == before, "a file stays open"
    assert [release.number for release in valid_releases(three, exported.chain)] == [2, 1]


def test_a_manifest_that_is_nested_without_end_is_damaged() -> None:
    with pytest.raises(ReleaseRefused, match=r"release\.json is damaged"):
        Release.from_json("[" * 100_000)


def test_only_folders_that_are_numbers_are_releases(exported: Exported, three: Path) -> None:
    for name in ("007", "9.tmp", "staging-8", "x"):
        (three / exported.chain.head_model(2) / name).mkdir(parents=True)
    assert numbers_on_disk(three, exported.chain) == [3, 2, 1]
