"""The morning's page: from what real writers wrote down, and as a real Chromium shows it."""

from __future__ import annotations

import html
import json
import math
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from reports import MODEL, chain_of, live, realistic

from gati.promise.breaker import Alarm
from gati.promise.ledger import Event
from gati.repository.chain import chain_path
from gati.repository.workspace import workspace
from gati.telemetry.histogram import bucket
from gati.telemetry.minutes import Minute
from gati_export.commands.report import report as command
from gati_export.report.data import reports_folder, write
from gati_export.report.day import Day, latency, read_day
from gati_export.report.drawing import Scale
from gati_export.report.history import Turn, note, turns
from gati_export.report.hours import panels, time_ticks
from gati_export.report.lanes import lanes
from gati_export.report.morning import morning, short
from gati_export.report.page import page

NOW = datetime.now(UTC).replace(microsecond=0)
ALARM = Alarm(2, 310, 14, 0.0173)


def ago(hours: float, now: datetime = NOW) -> str:
    return (now - timedelta(hours=hours)).isoformat()


def minute(
    hours: float, release: int, wave: float, upper: float, closed: Sequence[int] = (), now: datetime = NOW
) -> Minute:
    """A minute with a hundred requests, of which a share misses."""
    chance = random.Random(hours)
    missed = round(20 + 15 * wave)
    hits = {0: 50, 2: 50 - missed} if not closed else {0: 50}
    lost = 100 - sum(hits.values())
    fast = Counter(bucket(chance.lognormvariate(math.log(0.0012), 0.3)) for _ in range(100 - lost))
    slow = Counter(bucket(chance.lognormvariate(math.log(0.0041), 0.2)) for _ in range(lost))
    agreed = 10 - (chance.random() < 0.05)
    times = dict(sorted((fast + slow).items()))
    return Minute(
        ago(hours, now), 60.0, release, tuple(closed), hits | {4: lost}, 10, agreed, 0.0, upper, times, dict(slow)
    )


def write_lines(repository: Path, what: str, replica: str, lines: Sequence[Minute | Event]) -> None:
    path = workspace(repository) / what / MODEL / f"{replica}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(asdict(line))}\n" for line in lines))


def fill(repository: Path, now: datetime = NOW) -> None:
    """Two replicas over a day: release 2 goes live 16 hours ago; exit 2 was closed before, and is again at the end."""
    for replica in ("triton-0-8001", "triton-1-8001"):
        minutes = []
        for hours in (i / 4 - 0.2 for i in range(110, 0, -1)):
            shut = (2,) if replica == "triton-1-8001" and hours < 3 else ()
            upper = min(1.0, 0.006 + 0.06 / (17 - hours % 16))
            minutes.append(minute(hours, 1 if hours > 16 else 2, math.sin(hours / 4), upper, shut, now))
        write_lines(repository, "minutes", replica, minutes)
    first, *rest = [
        Event(ago(60, now), 1, (), None),
        Event(ago(16, now), 2, (), None),
        Event(ago(12, now), 2, (), None),
    ]
    write_lines(repository, "breaker", "triton-0-8001", [first, *rest])
    closings = Event(ago(30, now), 1, (2,), ALARM), Event(ago(3, now), 2, (2,), ALARM)
    write_lines(repository, "breaker", "triton-1-8001", [first, closings[0], *rest, closings[1]])
    for hours, release in ((70, None), (60.1, 1), (40, None), (16.1, 2), (5, None)):
        why = "It is faster." if release else "It would not be faster: 1.92 ms a request, and 1.90 ms now."
        note(repository, MODEL, Turn(ago(hours, now), 60.0, 20_000, 1, release, why, 0.004, 0.002, 0.0019, 0.002))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    chain_path(folder, MODEL).parent.mkdir(parents=True)
    chain_path(folder, MODEL).write_text(chain_of(realistic()).to_json())
    write(folder, realistic())
    return folder


def run(repository: Path, *arguments: str) -> tuple[str, str]:
    """What the command says, and its page."""
    out = repository.parent / "page.html"
    result = CliRunner().invoke(command, [MODEL, "--repository", str(repository), "--out", str(out), *arguments])
    assert result.exit_code == 0, result.exception
    return result.output, out.read_text(encoding="utf-8")


def test_a_day_is_what_its_replicas_wrote_down(repository: Path) -> None:
    assert read_day(repository, MODEL, NOW) == Day(NOW, {}, {})
    fill(repository)
    day = read_day(repository, MODEL, NOW)
    minutes = day.all_minutes
    assert len(minutes) == 2 * 96, "older ones are another day's"
    assert sum(day.exits.values()) == 100 * len(minutes) == sum(sum(m.times.values()) for m in minutes)
    assert day.audits == (10 * len(minutes), sum(minute.agreed for minute in minutes))
    assert latency(minutes, 0.5) == pytest.approx(0.0013, rel=0.1)
    assert latency(minutes, 0.5, backbone=True) == pytest.approx(0.0041, rel=0.1)
    assert day.went_live == {1: NOW - timedelta(hours=60), 2: NOW - timedelta(hours=16)}
    assert {replica: event.at for replica, event in day.closed.items()} == {"triton-1-8001": ago(3)}
    assert [day.closed_exits(release) for release in (1, 2, 3)] == [[], [2], []]
    assert [happening.words for happening in day.happenings if happening.replica == "triton-1-8001"] == [
        f"Closed exit 2: {ALARM}.",
        "The server started again.",
        "Release 2 went live, and opened exit 2 again.",
        f"Closed exit 2: {ALARM}.",
        "Release 1 went live.",
    ]


def test_a_rollback_to_heads_that_stay_closed_opens_nothing(tmp_path: Path) -> None:
    events = [Event(ago(3), 2, (0, 1), ALARM), Event(ago(2), 4, (0, 1), ALARM), Event(ago(1), 5, (1,), ALARM)]
    words = [happening.words for happening in Day(NOW, {}, {"triton": events}).happenings]
    assert words[:2] == [
        "Release 5 went live, and opened exit 0 again, with exit 1 closed.",
        "Release 4 went live, with exits 0 and 1 closed.",
    ]


DAMAGE = b"\n".join([b"{", b"[]", b"\xff\xfe", b'{"at": "yesterday"}', b"[" * 100_000, b"3", b""])


def test_a_replica_that_is_gone_does_not_speak_for_now(tmp_path: Path) -> None:
    """In a cluster, each rollout gives replicas new names."""
    write_lines(tmp_path / "models", "minutes", "old", [minute(20, 1, 0.0, 0.02, (2,))])
    write_lines(tmp_path / "models", "breaker", "old", [Event(ago(21), 1, (), None), Event(ago(20.5), 1, (2,), ALARM)])
    write_lines(tmp_path / "models", "minutes", "new", [minute(hours, 2, 0.0, 0.006) for hours in (19, 0.3)])
    day = read_day(tmp_path / "models", MODEL, NOW)
    assert set(day.minutes) == {"old", "new"} and set(day.latest) == {"new"}
    assert day.bounds == (0.0, 0.006) and not day.closed and day.closed_exits(1) == []
    found = morning(day, live(), [], {})
    assert found.sentence.startswith("The promise is kept") and not found.bad
    assert "not yet on" not in found.more
    alone = read_day(tmp_path / "models", MODEL, NOW - timedelta(hours=19.5))
    assert set(alone.closed) == {"old"}, "it was the last that was heard of"


def test_exits_are_drawn_closed_until_their_replica_was_last_heard_of(tmp_path: Path) -> None:
    closing = [Event(ago(21), 1, (), None), Event(ago(20.5), 1, (2,), ALARM)]
    write_lines(tmp_path / "models", "minutes", "new", [minute(hours, 2, 0.0, 0.006) for hours in (19, 0.3)])
    for replica, last in (("damaged", 2), ("gone", 20), ("here", 0.2)):
        write_lines(tmp_path / "models", "minutes", replica, [minute(last, 1, 0.0, 0.02, (2,))])
        write_lines(tmp_path / "models", "breaker", replica, closing if replica != "damaged" else [])
    day = read_day(tmp_path / "models", MODEL, NOW)
    assert day.events["damaged"] == []
    drawn = [
        [float(x) for x in re.findall(r'x[12]="([\d.]+)"', line)]
        for line in re.findall(r"<line[^>]*closed[^>]*>", str(lanes(day, [], live())))
    ]
    (begin, end), (same, now) = drawn
    assert begin == same and now - begin == pytest.approx(41 * (end - begin), rel=0.05)


def test_a_replica_whose_clock_is_ahead_is_heard_and_makes_nobody_else_be_gone(tmp_path: Path) -> None:
    ahead, closing = -1 / 6, Event(ago(-0.2), 1, (2,), ALARM)
    write_lines(tmp_path / "models", "minutes", "ahead", [minute(ahead, 1, 0.0, 0.02, (2,))])
    write_lines(tmp_path / "models", "breaker", "ahead", [Event(ago(ahead), 1, (), None), closing])
    write_lines(tmp_path / "models", "minutes", "right", [minute(0.4, 1, 0.0, 0.006)])
    day = read_day(tmp_path / "models", MODEL, NOW)
    assert set(day.latest) == {"ahead", "right"} and day.closed == {"ahead": closing}
    assert day.closed_exits(1) == [2] and len(panels(day, live())) == 3
    assert not read_day(tmp_path / "models", MODEL, NOW - timedelta(hours=1)).minutes


def test_on_a_quiet_day_a_replica_that_is_long_gone_does_not_speak_for_now(repository: Path) -> None:
    closing, other = Event(ago(90 * 24), 1, (2,), ALARM), Event(ago(12 * 24), 5, (0,), replace(ALARM, exit=0))
    write_lines(repository, "breaker", "pod-of-june", [Event(ago(91 * 24), 1, (), None), closing])
    assert run(repository)[0].startswith(
        "No request of the last 24 hours is written down; servers write once a minute."
    )
    write_lines(repository, "breaker", "pod-of-today", [Event(ago(13 * 24), 5, (), None), other])
    assert read_day(repository, MODEL, NOW, release=5).closed == {"pod-of-today": other}, "it may be idle"
    assert read_day(repository, MODEL, NOW, release=5).closed_exits(5) == [0]
    assert not read_day(repository, MODEL, NOW, release=6).closed
    assert "pod-of-june" in read_day(repository, MODEL, NOW - timedelta(days=88)).closed, "it was of late then"


def test_minutes_of_a_chain_that_had_the_name_before_are_left_out(tmp_path: Path) -> None:
    before, after = replace(minute(3, 1, 0.0, 0.02), backbone=8), replace(minute(1, 1, 0.0, 0.02), backbone=4)
    write_lines(tmp_path / "models", "minutes", "one", [before, after, minute(0.5, 1, 0.0, 0.02)])
    assert len(read_day(tmp_path / "models", MODEL, NOW).all_minutes) == 3
    assert [m.backbone for m in read_day(tmp_path / "models", MODEL, NOW, cuts=4).all_minutes] == [4, -1]


def test_damaged_lines_are_passed_over(repository: Path) -> None:
    fill(repository)
    day = read_day(repository, MODEL, NOW)
    for path in workspace(repository).glob(f"*/{MODEL}/*.jsonl"):
        content = path.read_bytes()
        undated = re.sub(rb'"at": "[^"]*"', b'"at": "yesterday"', content.splitlines()[0])
        path.write_bytes(DAMAGE + undated + b"\n" + content + content[:20])
    assert read_day(repository, MODEL, NOW) == day


def told(lower: float, upper: float, **changes: Any) -> str:
    at = replace(minute(0.1, 2, 0.0, upper), lower=lower, **changes)
    day = Day(NOW, {"a": [at]}, {"a": [Event(ago(2), 2, (), None)]})
    said = morning(day, live(), (), {})
    assert said.bad == (lower > 0.01)
    return f"{said.sentence} {said.more}"


def test_the_first_sentence_says_no_more_than_is_known() -> None:
    assert told(0.0, 0.008).startswith("The promise is kept: at most 0.8% of answers differ (promised: 1%).")
    assert told(0.002, 0.03).startswith("Nothing speaks against the promise of 1%: audits show so far")
    assert "too few answers were audited" in told(0.0, 1.0, audited=0, agreed=0)
    assert told(0.02, 0.04).startswith("The promise is broken: more than 2.0% of answers differ (promised: 1%).")
    assert "Of 100 requests written down in the last 24 hours, half took at most 1." in told(0.0, 0.008)
    assert f"Release 2 serves since {NOW - timedelta(hours=2):%-d %b %H:%M} UTC." in told(0.0, 0.008)
    assert "Release 2 is the newest; when last heard of, " in told(0.0, 0.008, release=1)
    assert told(0.0, 1.0, release=0).endswith("replicas served the backbone alone.")
    bare = morning(Day(NOW, {"a": [minute(0.1, 0, 0.0, 1.0)]}, {}), replace(live(), published=None), (), {})
    assert "No release is live: the backbone answers." in bare.more
    assert told(0.0, 0.02, held=20).endswith(
        "While audits were in doubt about heads, 20.0% of requests were left to the backbone."
    )
    assert told(0.0, 0.02, bypassed=50).endswith(
        "Heads took more time than they saved while 50.0% of requests went past them."
    )
    nothing = morning(Day(NOW, {}, {"a": [Event(ago(50), 2, (), None)]}), live(), (), {})
    assert nothing.sentence == "No request of the last 24 hours is written down; servers write once a minute."
    assert not nothing.tiles and not nothing.panels


def test_a_sentence_names_times_in_utc_whatever_zone_they_were_written_down_in() -> None:
    for at in ("2026-11-29T10:00:00+01:00", "2026-11-29T09:00:00+00:00", "2026-11-29T09:00:00"):
        assert short(at) == "29 Nov 09:00 UTC"


@pytest.mark.parametrize(
    ("hour", "minute", "names"),
    [
        (4, 0, ["06:00", "12:00", "18:00", "00:00"]),
        (5, 50, ["", "12:00", "18:00", "00:00"]),
        (6, 0, ["", "12:00", "18:00", "00:00", ""]),
        (6, 10, ["12:00", "18:00", "00:00", ""]),
        (8, 0, ["12:00", "18:00", "00:00", "06:00"]),
    ],
)
def test_a_time_at_an_end_of_an_axis_has_a_line_and_no_name(hour: int, minute: int, names: list[str]) -> None:
    until = datetime(2026, 11, 24, hour, minute, tzinfo=UTC)
    across = Scale((until - timedelta(days=1)).timestamp(), until.timestamp(), 40, 318)
    assert [name for _, name in time_ticks(across, 5)] == names


def test_a_chain_that_was_never_served_has_no_morning(repository: Path) -> None:
    said, source = run(repository)
    assert said.startswith(realistic().sentence)
    assert "last 24 hours" not in source


def test_a_day_without_a_report_is_shown_all_the_same(repository: Path) -> None:
    fill(repository, datetime.now(UTC))
    (reports_folder(repository) / MODEL / "2.json").unlink()
    said, source = run(repository)
    assert said.startswith("Exit 2 is closed on triton-1-8001 since")
    assert "No release is live: the backbone answers every request." in said
    assert "The last 24 hours" in source and "What refreshes decided" in source and "Cut points" not in source
    told = page(live(), (), morning(read_day(repository, MODEL, NOW), live(), (), {}))
    assert "expected of release 2: " in told and "What release 2 promises, of 2026-01-01 00:00 UTC" in told


def test_a_server_that_says_nothing_is_on_the_page_as_that(repository: Path) -> None:
    said, source = run(repository, "--metrics", "127.0.0.1:1")
    assert said.startswith("No request of the last 24 hours is written down; servers write once a minute.")
    assert "No Triton metrics answer on 127.0.0.1:1" in source


# --- in Chromium

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
WIDTHS = (360, 1200)
PROBE = """<!doctype html><body>{frames}<pre id="found"></pre><script>
onload = () => {{
  const found = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, inside = frame.contentWindow;
    page.querySelectorAll("details").forEach(one => one.open = true);
    const box = text => text.getBoundingClientRect();
    const above = (a, b) => a.bottom - 3 <= b.top, before = (a, b) => a.right <= b.left;
    const apart = (a, b) => above(a, b) || above(b, a) || before(a, b) || before(b, a);
    const over = [...page.querySelectorAll("figure svg")].flatMap(svg => {{
      const texts = [...svg.querySelectorAll("text")].filter(text => text.textContent);
      return texts.flatMap((a, i) => texts.slice(i + 1).filter(b => !apart(box(a), box(b)))
        .map(b => a.textContent + " over " + b.textContent).concat(
          box(a).left < box(svg).left || box(a).right > box(svg).right ? a.textContent + " cut off" : []));
    }});
    return {{width: page.documentElement.scrollWidth, text: page.body.innerText, over,
      asked: inside.performance.getEntriesByType("resource").map(entry => entry.name)}};
  }});
  document.getElementById("found").textContent = JSON.stringify(found);
}};
</script></body>"""


def in_chromium(sources: Sequence[str], folder: Path) -> tuple[list[dict[str, Any]], str]:
    """What a real browser makes of pages, each at each of `WIDTHS`, and what its console says."""
    shown = [(html.escape(source), width) for source in sources for width in WIDTHS]
    frames = "".join(
        f'<iframe style="width: {width}px; border: 0" srcdoc="{inside}"></iframe>' for inside, width in shown
    )
    probe = folder / "probe.html"
    probe.write_text(PROBE.format(frames=frames), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=10000"]
    browser = [CHROMIUM, *options, f"--user-data-dir={folder}/home", "--dump-dom", str(probe)]
    done = subprocess.run(browser, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    return json.loads(html.unescape(found[1])), "\n".join(re.findall(r".*CONSOLE.*", done.stderr))


needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine")


@needs_chromium
def test_a_browser_shows_the_page_on_a_phone_and_asks_the_network_for_nothing(repository: Path) -> None:
    fill(repository, datetime.now(UTC))
    _, source = run(repository, "--metrics", "127.0.0.1:1")
    found, console = in_chromium([source], repository.parent)
    assert console == ""
    for width, shown in zip(WIDTHS, found, strict=True):
        assert shown["width"] <= width
        assert shown["asked"] == []
        assert shown["over"] == []
        text = " ".join(shown["text"].split())
        for said in (
            "Exit 2 is closed on triton-1-8001 since",
            "audits show that more than 1.7% of answers differ (promised: 1%).",
            "where the backbone had to answer, 4.10 ms",
            "Release 2 serves since",
            "of 19,200 requests",
            "Release 2 went live, and opened exit 2 again.",
            "The server started again.",
            "It would not be faster: 1.92 ms a request",
            "No Triton metrics answer on 127.0.0.1:1",
            realistic().sentence,
        ):
            assert said in text, said
        assert text.index("is closed on") < text.index("The last 24 hours") < text.index("What happened")
        assert text.index("What happened") < text.index("What refreshes decided") < text.index("Cut points")


def page_at(repository: Path, now: datetime) -> str:
    fill(repository, now)
    past, day = turns(repository, MODEL), read_day(repository, MODEL, now)
    return page(realistic(), past, morning(day, live(), past, {}))


@needs_chromium
def test_times_on_axes_stand_clear_of_all_else_whatever_the_time_of_day(repository: Path) -> None:
    edges = [datetime(2026, 11, day, hour, tzinfo=UTC) for day, hour in ((24, 6), (25, 0))]
    times = [edge + timedelta(minutes=m) for edge in edges for m in (-30, -12, -5, 0, 1, 5, 12, 20, 40)]
    found, console = in_chromium([page_at(repository, now) for now in times], repository.parent)
    assert console == ""
    assert len(found) == len(times) * len(WIDTHS)
    assert [shown["over"] for shown in found] == [[]] * len(found)
