"""Publishing on disk: whole or not at all, whoever dies, races, or runs out of space; no server is needed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import MODEL, Exported
from drafts import ALWAYS, DAMAGES, Damage, damaged, marked_draft, place, release_files, with_models
from publishers import publish_changes, publish_limited, publish_until, race, run
from running import gati

from gati.errors import PublishError, ReleaseRefused, UnavailableError
from gati.repository import lock, release
from gati.repository.chain import Chain
from gati.repository.release import Release, head_folder, head_path, numbers_on_disk, read_release, valid_releases
from gati.repository.workspace import workspace
from gati.triton import quarantine, tryout
from gati.triton.tryout import check_release
from gati_export.releases.publish import KEPT, OvertakenError, earlier, publish, withdraw
from gati_export.releases.repository import head_config, read_config, write_config
from gati_export.releases.rollout import publish_to

STEPS = ["clear", "stage", "write 0", "write 2", "check", "rename 0", "rename 2", "prune", "done"]
FILES = ("model.onnx", "release.json")
TWO_HEADS = {0: ALWAYS, 2: ALWAYS}


@pytest.fixture
def repository(exported: Exported, tmp_path: Path) -> Path:
    return exported.copy(tmp_path)


@pytest.fixture
def chain(exported: Exported) -> Chain:
    return exported.chain


def live(repository: Path, chain: Chain) -> Release:
    return next(valid_releases(repository, chain))


def staged(repository: Path) -> list[Path]:
    return sorted((workspace(repository) / "staging").rglob("*"))


def folders(repository: Path) -> set[str]:
    """Every version folder of every head."""
    return {str(path.relative_to(repository)) for path in repository.glob(f"{MODEL}-head-*/*") if path.is_dir()}


def put(repository: Path, chain: Chain, mark: int, thresholds: dict[int, float] | None = None) -> Release:
    return publish(repository, chain, marked_draft(chain, mark, thresholds))


def spoil(repository: Path, chain: Chain, number: int) -> None:
    """Puts a release whose manifest is in order, whose files are those that it lists, and that can't be opened."""
    files = release_files(chain, number, marked_draft(chain, number))
    place(repository, chain, number, with_models(chain, number, files, lambda model: b"no head" + model))


def heads(repository: Path) -> set[str]:
    """The heads that have a folder; a Triton that loads all that lies there takes each of them for a model."""
    return {path.name for path in repository.glob(f"{MODEL}-head-*")}


# A head's folder


def test_a_heads_folder_comes_with_its_first_version_and_goes_with_its_last(repository: Path, chain: Chain) -> None:
    one, *others = (chain.head_model(index) for index in chain.heads)
    put(repository, chain, 2)
    withdraw(repository, chain, 1)
    assert heads(repository) == {one}
    put(repository, chain, 3, {chain.heads[1]: ALWAYS})
    assert heads(repository) == {one, others[0]}
    assert read_config(repository, others[0]) == head_config(chain, chain.heads[1])
    withdraw(repository, chain, 2)
    withdraw(repository, chain, 3)
    assert heads(repository) == set()


def test_a_folder_that_has_no_version_goes_with_the_next_release(repository: Path, chain: Chain) -> None:
    withdraw(repository, chain, 1)
    for index in chain.heads:
        write_config(repository, head_config(chain, index))
    tuned = read_config(repository, chain.head_model(chain.heads[0]))
    tuned.instance_group[0].count = 2
    write_config(repository, tuned)
    put(repository, chain, 2)
    assert heads(repository) == {tuned.name}
    assert read_config(repository, tuned.name) == tuned, "what an operator tuned stays"


def test_what_others_put_into_a_heads_folder_stays(repository: Path, chain: Chain) -> None:
    (repository / chain.head_model(0) / "notes").write_text("why")
    withdraw(repository, chain, 1)
    assert heads(repository) == {chain.head_model(0)}


def test_a_head_whose_configuration_is_missing_gets_it_with_the_next_release(repository: Path, chain: Chain) -> None:
    (repository / chain.head_model(0) / "config.pbtxt").unlink()
    ahead = time.time() + 3600
    os.utime(head_folder(repository, chain, 0, 1), (ahead, ahead))
    put(repository, chain, 2)
    assert head_folder(repository, chain, 0, 2).stat().st_mtime > ahead, "or Triton would pass over it"
    assert read_config(repository, chain.head_model(0)) == head_config(chain, 0)


# A publisher that dies


def test_the_steps_of_the_protocol_are_known(repository: Path, chain: Chain) -> None:
    seen: list[str] = []
    publish(repository, chain, marked_draft(chain, 2, TWO_HEADS), seen.append)
    assert seen == STEPS


@pytest.mark.parametrize("step", STEPS)
def test_a_publisher_killed_at_a_step_leaves_the_old_release_or_the_new_one(
    repository: Path, chain: Chain, step: str
) -> None:
    assert run(publish_until, repository, chain, marked_draft(chain, 2, TWO_HEADS), None, step) == -signal.SIGKILL
    used = numbers_on_disk(repository, chain)
    assert live(repository, chain).number == (2 if step in ("prune", "done") else 1)
    release = put(repository, chain, 3, TWO_HEADS)
    assert release.number > max(used)
    assert live(repository, chain) == release
    assert not staged(repository)
    assert numbers_on_disk(repository, chain) == [r.number for r in valid_releases(repository, chain)]


def test_a_publisher_killed_before_any_change_it_makes_to_the_disk_leaves_the_old_release_or_the_new_one(
    repository: Path, chain: Chain
) -> None:
    """One repository for all: each publisher finds what those before it left, and in time has releases to prune."""
    ever: set[int] = {1}
    for changes in range(200):
        before = live(repository, chain)
        code = run(publish_changes, repository, chain, marked_draft(chain, changes, TWO_HEADS), changes)
        after = live(repository, chain)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert after == before or after.number not in ever
        ever |= set(numbers_on_disk(repository, chain))
        release = put(repository, chain, changes, TWO_HEADS)
        assert release.number > max(ever)
        ever.add(release.number)
        assert not staged(repository)
    assert after.number > before.number
    assert changes > KEPT, "nothing was left to prune"
    assert len(list(valid_releases(repository, chain))) == KEPT


# Publishers at once


def test_two_publishers_at_once_both_land_under_growing_numbers(repository: Path, chain: Chain, tmp_path: Path) -> None:
    first, second = race(repository, chain, marked_draft(chain, 2, TWO_HEADS), None, 4, tmp_path)
    assert sorted(first + second) == list(range(2, 10))
    assert first == sorted(first) and second == sorted(second)
    assert [r.number for r in valid_releases(repository, chain)] == list(range(9, 0, -1))


def test_a_publisher_that_waits_too_long_says_so_in_one_sentence(
    repository: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LOCK_SECONDS", 0.2)
    before = folders(repository)
    with (
        lock.publisher_lock(repository),
        pytest.raises(PublishError, match=r"^Another publisher has been at work on .* for 0\.2 s\.$"),
    ):
        put(repository, chain, 2)
    assert folders(repository) == before
    assert put(repository, chain, 2).number == 2


def test_the_lock_of_a_killed_publisher_is_free(repository: Path, chain: Chain) -> None:
    run(publish_until, repository, chain, marked_draft(chain, 2), None, "check")
    with lock.publisher_lock(repository):
        pass


# A full disk, and drafts that are no releases


@pytest.mark.parametrize("full", ["at once", "within a head", "within a manifest"])
def test_a_full_disk_is_one_sentence_and_nothing_changes(
    repository: Path, chain: Chain, tmp_path: Path, full: str
) -> None:
    draft = marked_draft(chain, 2, TWO_HEADS, reason="a long one " * 50)  # only the manifest has it
    publish(repository, chain, draft)
    head, manifest = (head_path(repository, chain, 0, 2).with_name(n).stat().st_size for n in FILES)
    assert head < manifest, "or it would be the head that does not fit"
    size = {"at once": 0, "within a head": head // 2, "within a manifest": manifest - 10}[full]
    before, said = folders(repository), tmp_path / "said"
    assert run(publish_limited, repository, chain, draft, size, said) == 0
    assert said.read_text() == "The release could not be written (File too large); nothing changed."
    assert folders(repository) == before
    assert not staged(repository)
    assert put(repository, chain, 3).number == 3


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no other file system here")
def test_what_is_staged_on_another_file_system_is_not_published(repository: Path, chain: Chain) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        workspace(repository).symlink_to(elsewhere)
        if Path(elsewhere).stat().st_dev == repository.stat().st_dev:
            pytest.skip("it is the same file system")
        with pytest.raises(PublishError, match="staging must be on the same file system as"):
            put(repository, chain, 2)
    assert live(repository, chain).number == 1


def test_a_draft_without_heads_is_refused(repository: Path, chain: Chain) -> None:
    draft = marked_draft(chain, 2)
    draft.heads.clear()
    with pytest.raises(PublishError, match="at least one head"):
        publish(repository, chain, draft)
    assert not staged(repository)


@pytest.mark.parametrize("content", [b"", b"garbage"], ids=["empty", "garbage"])
def test_a_draft_whose_head_can_not_be_read_is_refused(repository: Path, chain: Chain, content: bytes) -> None:
    draft = marked_draft(chain, 2)
    draft.heads[0] = content
    before = folders(repository)
    with pytest.raises(ReleaseRefused, match="head 0"):
        publish(repository, chain, draft)
    assert folders(repository) == before
    assert not staged(repository)


def test_nothing_is_published_to_a_server_that_is_not_there(repository: Path, chain: Chain) -> None:
    before = folders(repository)
    with pytest.raises(UnavailableError, match=r"^No Triton server answers gRPC on 127\.0\.0\.1:1\.$"):
        publish_to(repository, chain, marked_draft(chain, 2), "127.0.0.1:1")
    assert folders(repository) == before


# What others put into the repository


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_a_release_with_damage_is_not_live_and_is_moved_out_by_the_next_publisher(
    repository: Path, chain: Chain, damage: Damage
) -> None:
    place(repository, chain, 7, damaged(chain, 7, damage))
    if not damage.deep:
        with pytest.raises(ReleaseRefused, match=damage.reason):
            read_release(repository, chain, 7)
    with pytest.raises(ReleaseRefused, match=damage.reason):
        check_release(repository, chain, 7)
    release = put(repository, chain, 8)
    assert release.number == 8, "a number that was seen is never used again"
    assert numbers_on_disk(repository, chain) == [8, 1]
    assert list((workspace(repository) / "refused" / MODEL / "7").iterdir())


@pytest.mark.parametrize("name", ["9.tmp", "99999999999999999999", "5-copy"])
def test_a_folder_that_triton_takes_for_a_version_is_moved_out(repository: Path, chain: Chain, name: str) -> None:
    (repository / chain.head_model(0) / name).mkdir()
    assert put(repository, chain, 2).number == 2
    assert f"{chain.head_model(0)}/{name}" not in folders(repository)


@pytest.mark.parametrize("name", ["staging-9", "notes", ".hidden", "007"])
def test_a_folder_that_triton_passes_over_stays(repository: Path, chain: Chain, name: str) -> None:
    (repository / chain.head_model(0) / name).mkdir()
    assert put(repository, chain, 2).number == 2
    assert f"{chain.head_model(0)}/{name}" in folders(repository)


def test_a_folder_of_a_head_that_is_not_part_of_its_release_is_moved_out_alone(repository: Path, chain: Chain) -> None:
    place(repository, chain, 5, release_files(chain, 5, marked_draft(chain, 5, TWO_HEADS)))
    spare = next(index for index in chain.heads if index not in TWO_HEADS)
    (repository / chain.head_model(spare) / "5").mkdir(parents=True)
    assert put(repository, chain, 6).number == 6
    assert [r.number for r in valid_releases(repository, chain)] == [6, 5, 1]
    assert f"{chain.head_model(spare)}/5" not in folders(repository)


def test_a_release_placed_by_hand_that_is_good_is_live(repository: Path, chain: Chain) -> None:
    place(repository, chain, 5, release_files(chain, 5, marked_draft(chain, 5, TWO_HEADS)))
    assert live(repository, chain).number == 5
    assert put(repository, chain, 6).number == 6


def test_a_publisher_opens_no_head_twice_but_for_another_chain_or_after_others(
    repository: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_head = list[str](), tryout.open_head

    def noted(model: bytes, of: Chain, index: int) -> Any:
        properties = onnx.ModelProto.FromString(model).metadata_props
        opened.append(next(one.value for one in properties if one.key == "gati.release"))
        return open_head(model, of, index)

    monkeypatch.setattr(tryout, "_opened", {})
    monkeypatch.setattr(tryout, "open_head", noted)
    of_first = len(live(repository, chain).heads)
    for mark in (2, 3, 4):
        put(repository, chain, mark, TWO_HEADS)
    assert opened == ["1"] * of_first + ["2", "2", "3", "3", "4", "4"]

    opened.clear()
    tryout.check_release(repository, replace(chain, max_batch=chain.max_batch + 1), 4)
    assert opened == ["4", "4"]

    monkeypatch.setattr(tryout, "REMEMBERED", 1)
    put(repository, chain, 5)
    opened.clear()
    tryout.check_release(repository, chain, 5)
    assert not opened
    tryout.check_release(repository, chain, 4)
    assert opened == ["4", "4"]


# Numbers, pruning, going back


def test_the_newest_releases_are_kept_and_no_number_comes_again(repository: Path, chain: Chain) -> None:
    for number in range(2, KEPT + 5):
        assert put(repository, chain, number).number == number
    there = [r.number for r in valid_releases(repository, chain)]
    assert there == numbers_on_disk(repository, chain) == list(range(KEPT + 4, 4, -1))
    assert not staged(repository)


def test_releases_that_are_refused_again_and_again_push_nothing_off_the_disk(repository: Path, chain: Chain) -> None:
    """As when one replica takes none of them: the others have to be given the heads before under a higher number."""
    for mark in (2, 3):
        put(repository, chain, mark)
    highest = 0
    for mark in range(KEPT + 2):
        highest = put(repository, chain, mark).number
        again = withdraw(repository, chain, highest, again=True)
        assert again is not None and again.reason == "rollback to 3"
    there = numbers_on_disk(repository, chain)
    assert len(there) == KEPT and {1, 2, 3, highest + 1} <= set(there)
    assert earlier(repository, chain).reason == "rollback to 2"
    moved = {int(folder.name) for folder in quarantine.refused(repository, chain).iterdir()}
    assert len(moved) <= quarantine.REFUSED_KEPT + 1 and highest in moved


def test_of_what_was_refused_the_highest_number_stays_however_old(repository: Path, chain: Chain) -> None:
    place(repository, chain, 99, {(0, "notes.txt"): b"?"})
    assert put(repository, chain, 2).number == 100
    moved = quarantine.refused(repository, chain)
    os.utime(moved / "99", (0, 0))
    for number in range(3, quarantine.REFUSED_KEPT + 5):
        (moved / str(number)).mkdir()
    put(repository, chain, 3)
    assert sorted(int(folder.name) for folder in moved.iterdir()) == [*range(5, quarantine.REFUSED_KEPT + 5), 99]


def test_the_heads_that_were_gone_back_to_stay_before_newer_ones(repository: Path, chain: Chain) -> None:
    for mark in range(2, KEPT + 1):
        put(repository, chain, mark)
    for number in (1, 2, 1):
        publish(repository, chain, earlier(repository, chain, number))
    put(repository, chain, 0)
    assert numbers_on_disk(repository, chain) == [KEPT + 4, KEPT + 3, KEPT + 2, *range(KEPT, 3, -1), 2, 1]


def test_a_withdrawn_release_is_not_live_and_its_number_is_spent(repository: Path, chain: Chain) -> None:
    withdraw(repository, chain, put(repository, chain, 2, TWO_HEADS).number)
    assert live(repository, chain).number == 1
    assert put(repository, chain, 3).number == 3


def test_going_back_again_and_again_goes_further_back(repository: Path, chain: Chain) -> None:
    for mark in (2, 3):
        put(repository, chain, mark)
    origins = []
    for _ in range(2):
        release = publish(repository, chain, earlier(repository, chain))
        origins.append((release.number, release.reason, release.origin))
    assert origins == [(4, "rollback to 2", 2), (5, "rollback to 1", 1)]
    with pytest.raises(
        PublishError, match="no release before 1, which 5 is again, to go back to; of 5, 4, 3, 2, 1, name one"
    ):
        earlier(repository, chain)


def test_going_back_brings_the_old_heads_and_their_certificate(repository: Path, chain: Chain) -> None:
    original = live(repository, chain)
    put(repository, chain, 2)
    release = publish(repository, chain, earlier(repository, chain))
    assert (release.certificate, release.window) == (original.certificate, original.window)
    assert [h.index for h in release.heads] == [h.index for h in original.heads]


def test_a_refresh_after_going_back_goes_back_to_what_served_before_it(repository: Path, chain: Chain) -> None:
    put(repository, chain, 2)  # this was bad
    publish(repository, chain, earlier(repository, chain))
    put(repository, chain, 4)  # and so is this
    assert earlier(repository, chain).reason == earlier(repository, chain, 3).reason == "rollback to 1"
    assert earlier(repository, chain, 2).reason == "rollback to 2"


def test_going_back_passes_over_what_can_not_be_opened_and_was_never_served(repository: Path, chain: Chain) -> None:
    put(repository, chain, 2)
    spoil(repository, chain, 3)
    assert live(repository, chain).number == 3
    assert earlier(repository, chain).reason == "rollback to 1"
    with pytest.raises(PublishError, match="no release 3 to go back to; of 2, 1, name one"):
        earlier(repository, chain, 3)


def test_what_servers_go_on_to_when_a_release_is_withdrawn_can_be_opened(repository: Path, chain: Chain) -> None:
    number = publish(repository, chain, marked_draft(chain, 3), least=3).number
    spoil(repository, chain, 2)
    again = withdraw(repository, chain, number, again=True)
    assert again is not None and again.reason == "rollback to 1"


def test_a_number_that_a_server_serves_is_not_used_though_it_is_not_on_disk(repository: Path, chain: Chain) -> None:
    assert publish(repository, chain, marked_draft(chain, 2), least=7).number == 7
    again = withdraw(repository, chain, 11, again=True)
    assert again is not None and (again.number, again.origin) == (12, 7)


def test_what_was_compared_with_another_release_is_not_published(repository: Path, chain: Chain) -> None:
    draft = marked_draft(chain, 2)
    assert publish(repository, chain, replace(draft, compared=1)).number == 2
    before = folders(repository)
    with pytest.raises(OvertakenError, match="Release 2 was published meanwhile"):
        publish(repository, chain, replace(draft, compared=1))
    assert folders(repository) == before and not staged(repository)


def test_a_release_that_can_not_be_opened_was_published_by_nobody_meanwhile(repository: Path, chain: Chain) -> None:
    """Its manifest is in order, and what it lists is there: whoever refreshes has compared with the one before it."""
    spoil(repository, chain, 2)
    assert live(repository, chain).number == 2
    assert publish(repository, chain, replace(marked_draft(chain, 3), compared=1)).number == 3
    assert numbers_on_disk(repository, chain) == [3, 1]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_can_not_be_read_for_a_moment_is_no_damage(
    repository: Path, chain: Chain, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(repository, chain, 2)
    before = folders(repository)
    stale = OSError(errno.ESTALE, "Stale file handle")
    if what == "file":
        monkeypatch.setattr(release, "_read", failing(release._read, stale))
    else:
        monkeypatch.setattr(Path, "iterdir", failing(Path.iterdir, stale))
    with pytest.raises((OSError, PublishError), match="Stale file handle"):
        put(repository, chain, 3)
    assert folders(repository) == before
    assert put(repository, chain, 3).number == 3


def failing(function: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """A function that fails the first time."""
    errors = [error]

    def fail(*arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return function(*arguments)

    return fail


# The commands


def test_rollback_to_a_release_is_written_and_said(
    repository: Path, chain: Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(repository, chain, 2)
    put(repository, chain, 3)
    result = tmp_path / "result.json"
    assert gati("rollback", MODEL, "--repository", repository, "--to", 1, "--json", result) == 0
    assert "Release 4 of digits is written: rollback to 1." in capsys.readouterr().out
    fields = json.loads(result.read_text())
    assert fields.pop("replicas") == []
    assert Release.from_json(json.dumps({"format": 2, **fields})) == live(repository, chain)
    assert head_path(repository, chain, 0, 4).exists()


def test_rollback_waits_for_no_pytorch(repository: Path, chain: Chain) -> None:
    put(repository, chain, 2)
    code = (
        "import sys; from gati.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print([m for m in ('torch', 'onnx_ir', 'onnxscript') if m in sys.modules], file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "rollback", MODEL, "--repository", str(repository)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "[]")
    assert live(repository, chain).reason == "rollback to 1"


@pytest.mark.parametrize("arguments", [[], ["--to", "9"]], ids=["nothing to go back to", "no such release"])
def test_rollback_to_nothing_is_one_sentence(
    repository: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = folders(repository)
    assert gati("rollback", MODEL, "--repository", repository, *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: 'digits' has no release") and error.count("\n") == 1
    assert folders(repository) == before


def test_refresh_without_samples_is_one_sentence(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gati("refresh", MODEL, "--repository", repository) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: No samples of 'digits' are recorded") and error.count("\n") == 1
