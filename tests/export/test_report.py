"""Reports: their files, their page, their command."""

from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner, Result
from drafts import marked_head, place, release_files
from handmade import WINDOW
from hypothesis import given
from hypothesis import strategies as st
from reports import FAMILIES, MODEL, SAVES, SLOWER, chain_of, realistic, refused, without_heads

from gati.errors import GatiError, RepositoryError
from gati.repository.chain import chain_path, read_chain
from gati.repository.release import ROLLBACK, head_path
from gati_export.commands.report import report as command
from gati_export.releases.publish import Draft
from gati_export.report.curve import agreement_curve, covered
from gati_export.report.data import Cut, ParetoPoint, Report, numbers, read, reports_folder, write
from gati_export.report.drawing import Scale, spread
from gati_export.report.history import Turn
from gati_export.report.live import ELSEWHERE
from gati_export.report.page import page
from gati_export.report.plots import PANEL, curves
from gati_export.report.table import OF_ENGINE
from gati_export.report.units import duration, percent, size


class Text(HTMLParser):
    """A page's text, and its tags, as a browser would have them; fails on tags that don't match."""

    EMPTY = frozenset({"meta", "br", "line", "circle", "polyline", "img"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.EMPTY:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.words.append(data)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A model repository that holds a chain, as far as the report looks at it."""
    folder = tmp_path / "models"
    for name in (MODEL, "other"):
        chain_path(folder, name).parent.mkdir(parents=True)
        chain_path(folder, name).write_text(chain_of(replace(realistic(), model=name)).to_json())
    return folder


def run(repository: Path, *arguments: str, model: str = MODEL) -> Result:
    return CliRunner().invoke(command, [model, "--repository", str(repository), *arguments])


# --- files


def test_a_report_survives_its_file(repository: Path) -> None:
    for written in (realistic(), without_heads()):
        path = write(repository, written)
        assert path.parent == reports_folder(repository) / MODEL
        assert read(repository, MODEL, written.number) == written
    assert sorted(p.name for p in path.parent.iterdir()) == ["0.json", "2.json"]


@pytest.mark.parametrize(
    ("gap", "says"), [(None, ""), (0.0, "Proved: with these heads"), (0.0367, "would take at most 3.7% less time.")]
)
def test_how_good_the_choice_of_heads_is_stands_beside_other_promises(
    repository: Path, gap: float | None, says: str
) -> None:
    report = replace(realistic(), gap=gap)
    assert says in report.proof and bool(report.proof) == bool(says)
    write(repository, report)
    assert read(repository, MODEL) == report
    told = Text(page(report)).text
    assert report.proof in told and ("With these heads" in told or "with these heads" in told) == bool(says)


def test_the_newest_release_is_read_by_number_not_by_name(repository: Path) -> None:
    for number in (9, 10, 2):
        write(repository, realistic(release=number))
    (reports_folder(repository) / MODEL / "notes.json").write_text("mine")
    write(repository, without_heads())
    assert numbers(repository, MODEL) == [0, 2, 9, 10]
    assert read(repository, MODEL).release == 10


def test_a_report_with_a_number_that_json_does_not_have_is_not_written(repository: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write(repository, replace(realistic(), speedup=float("inf")))
    assert numbers(repository, MODEL) == []


def test_what_a_later_version_adds_is_passed_over_and_what_it_may_leave_out_is_not_missed() -> None:
    fields = json.loads(realistic().to_json())
    fields["new"] = 1
    for option in fields["cuts"][0]["options"]:
        del option["covered"]
    report = Report.from_json(json.dumps(fields))
    assert report.cuts[0].options[0].covered is None
    assert "<circle" not in curves(report, report.cuts[0])  # where the threshold is on the curve is not known


def changed(*path: str | int, to: Any) -> str:
    """A report's text with one thing changed; `...` takes it away."""
    fields = json.loads(realistic().to_json())
    place = fields
    for step in path[:-1]:
        place = place[step]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return json.dumps(fields)


DAMAGES = {
    "nothing": ("", "Expecting value"),
    "cut in half": (realistic().to_json()[:5000], r"Expecting|delimiter|Unterminated"),
    "no object": ("[1, 2]", "format"),
    "another's": ('{"format": 2}', "format"),
    "nested deeply": ("[" * 100_000, "nested"),
    "a field gone": (changed("cuts", 1, "options", 0, "why", to=...), r"cuts\[1\]\.options\[0\]\.why is missing"),
    "a text for a number": (changed("speedup", to="2"), "speedup is not a number"),
    "true for a number": (changed("epsilon", to=True), "epsilon is not a number"),
    "a text that no file can hold": (changed("sentence", to="\ud800"), "sentence is not Unicode"),
    "a number that is none": (changed("oracle_speedup", to=float("nan")), "oracle_speedup is not finite"),
    "a huge number": (changed("backbone_seconds", to=10**400), "too large"),
    "a fraction for a count": (changed("certificate", "n", to=2.5), "certificate.n is not a whole number"),
    "a threshold of no cut": (changed("certificate", "thresholds", "a", to=0.5), "numbers for keys"),
    "no list": (changed("cuts", to={}), "cuts is not a list"),
    "a pair of three": (changed("pareto", 0, "heads", to=[[0, "pooled", 1]]), "has 3 entries, not 2"),
    "a share above 1": (changed("cuts", 0, "share", to=1.2), "cut point 0: a share"),
    "exits of another chain": (changed("exits", to=[0.5, 0.5]), "exits"),
    "exits that don't add up": (changed("exits", 0, to=0.9), "exits"),
    "cut points in disorder": (changed("cuts", 0, "index", to=7), "not in order"),
    "a head that was not tried": (changed("cuts", 0, "used", to="magic"), "the one option"),
    "a curve of one side": (changed("cuts", 0, "options", 0, "agrees", to=[]), "curve of pooled"),
    "a date that is none": (changed("created", to="yesterday"), "isoformat"),
    "no speed-up": (changed("speedup", to=0), "not above 0"),
}


@pytest.mark.parametrize(("text", "reason"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_report_is_refused_in_a_sentence(text: str, reason: str, repository: Path) -> None:
    with pytest.raises(RepositoryError, match=reason):
        Report.from_json(text)
    write(repository, realistic()).write_text(text)
    result = run(repository)
    assert result.exit_code == 1
    assert isinstance(result.exception, GatiError)
    said = str(result.exception)
    assert "2.json is damaged" in said
    assert re.search(reason, said)
    assert "\n" not in said


def test_a_report_that_is_no_text_or_was_moved_is_refused(repository: Path) -> None:
    path = write(repository, realistic())
    path.rename(path.with_name("3.json"))
    with pytest.raises(RepositoryError, match="is the report of release 2"):
        read(repository, MODEL)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RepositoryError, match="damaged"):
        read(repository, MODEL, 2)
    path.unlink()
    path.mkdir()
    with pytest.raises(RepositoryError, match="can't be read"):
        read(repository, MODEL, 2)


# --- the page


def test_the_page_says_what_was_promised_learned_and_refused() -> None:
    report = realistic()
    source = page(report)
    text = Text(source).text
    body = text[text.index("gati report") :]
    assert body.index(report.sentence) < body.index("Expected speed-up") < body.index("Where requests are answered")
    c = report.certificate
    assert c is not None
    for said in (
        f"{report.speedup:.2f}×",
        "2,412",
        "1,876",
        "0.84% of answers differ",
        "ε = 1%",
        "95% (δ = 5%)",
        c.method,
        c.fingerprint,
        "top-1",
        "exit 0: 0.875, exit 2: 0.895",
        SAVES,
        SLOWER,
        "412 kB",
        "21.0 µs",
        "68.0 kB",
        f"oracle {report.oracle_speedup:.2f}×",
        f"this release: {report.speedup:.2f}×",
        *(cut.tensor for cut in report.cuts),
        *(f"exit {cut.index} {percent(cut.hits)}" for cut in report.cuts if cut.hits),
        f"backbone {percent(report.exits[-1])}",
    ):
        assert said in text, said
    assert (
        text.count(SLOWER) == 12
    )  # twelve heads were tried, two are used; and the best of each of two unused cut points


def test_the_page_needs_no_network_and_runs_no_script() -> None:
    parsed = Text(page(realistic()))
    assert not {"script", "link", "iframe", "object", "img"} & set(parsed.tags)
    assert not re.search(r"https?://(?!www\.w3\.org)|url\(|@import", page(realistic()))


def test_the_page_is_drawn_for_light_and_dark() -> None:
    style = page(realistic()).partition("<style>")[2].partition("</style>")[0]
    light, _, dark = style.partition("prefers-color-scheme: dark")
    names = set(re.findall(r"(--\w+):", light)) - {"--c", "--depth"}
    assert names == set(re.findall(r"(--\w+): #", dark)) > {"--f0", "--f7", "--paper", "--ink"}


@pytest.mark.parametrize("bad", ['<img src=x onerror="alert(1)">', "</title><script>alert(1)</script>", "a & b <i>"])
def test_names_are_no_html(bad: str) -> None:
    report = realistic()
    option = replace(report.cuts[0].options[0], family=bad, why=bad)
    cut = replace(report.cuts[0], tensor=bad, used=bad, options=(option, *report.cuts[0].options[1:]))
    certificate = replace(report.certificate, method=bad, fingerprint=bad, agreement=bad)  # type: ignore[type-var]
    report = replace(
        report,
        model=bad,
        sentence=bad,
        cuts=(cut, *report.cuts[1:]),
        certificate=certificate,
        pareto=(ParetoPoint(0.01, 2.0, ((0, bad),)),),
    )
    source = page(report)
    parsed = Text(source)
    assert not {"script", "img", "i"} & (set(parsed.tags) - set(Text(page(realistic())).tags))
    assert bad not in source
    assert parsed.text.count(" ".join(bad.split())) >= 10
    assert html.escape(bad) in source or bad.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in source


def test_a_report_without_heads_says_why() -> None:
    why = "No threshold is safe."
    text = Text(page(replace(without_heads(why), sentence="Nothing is promised."))).text
    assert "Nothing is promised." in text
    assert f"the backbone answers every request: {why}" in text
    assert "none yet" in text
    assert "None was tried." in text
    assert "No other promise was tried." in text
    once = Text(page(without_heads(why))).text.partition("The evidence")[0]
    assert once.count(why) == 1  # the sentence says it already


def test_heads_that_were_refused_are_shown_all_the_same() -> None:
    report = refused()
    text = Text(page(report)).text
    cuts, _, tried = text.partition("All heads tried")
    assert cuts.count("none; pooled agrees most") == len(report.cuts)
    assert cuts.count("No threshold is safe.") == 1
    assert tried.count("none in use, 3 tried") == len(report.cuts)
    assert "ε = 1%: no heads" in tried
    assert "this release:" not in tried


def test_a_backbone_that_could_not_be_cut_has_a_page() -> None:
    text = Text(page(replace(without_heads(), cuts=(), exits=(1.0,)))).text
    assert "no place for a head" in text


# --- the plots


def svg(report: Report, cut: Cut) -> ElementTree.Element:
    return ElementTree.fromstring(curves(report, cut))


def test_only_the_head_in_use_is_bold_and_its_threshold_marked() -> None:
    report = realistic()
    for cut in report.cuts:
        drawn = svg(report, cut)
        kinds = [element.get("class", "") for element in drawn.iter("polyline")]
        assert sum(kind.startswith("curve") for kind in kinds) == len(FAMILIES[:3])
        assert sum(kind.endswith("used") for kind in kinds) == (cut.used is not None)
        assert len(list(drawn.iter("circle"))) == (cut.used is not None)
        said = [element.text for element in drawn.iter("text")]
        assert set(FAMILIES[:3]) <= set(said)


def test_the_mark_is_where_the_threshold_is() -> None:
    report = realistic()
    option = report.cuts[0].options[0]
    (dot,) = svg(report, report.cuts[0]).iter("circle")
    # from the axis' own ticks
    ticks = {
        t.text: float(t.get("x", 0))
        for t in svg(report, report.cuts[0]).iter("text")
        if t.get("text-anchor") == "middle"
    }
    assert option.covered is not None
    wanted = ticks["0"] + option.covered * (ticks["100"] - ticks["0"])
    assert float(dot.get("cx", 0)) == pytest.approx(wanted, abs=0.2)


def test_twelve_cut_points_with_six_families_stay_readable() -> None:
    report = realistic(cuts=12, families=6)
    parsed = Text(page(report))
    assert parsed.tags.count("figure") == 13
    assert parsed.tags.count("details") == 12
    assert "<details open" not in page(report)
    for cut in report.cuts:
        labels = [t for t in svg(report, cut).iter("text") if t.get("class") in ("name", "strong")]
        assert len(labels) == 6
        assert_apart([(float(t.get("x", 0)), float(t.get("y", 0)), t.text or "") for t in labels])


def assert_apart(labels: list[tuple[float, float, str]]) -> None:
    """Labels of one column don't touch, and stay inside the panel."""
    heights = sorted(y for _, y, _ in labels)
    assert min(np.diff(heights)) >= 11.9
    assert heights[0] > 8 and heights[-1] < PANEL[1]
    assert all(x + 6 * len(words) < PANEL[0] for x, _, words in labels)


def test_a_family_with_a_long_name_is_cut_short_in_plots_only() -> None:
    name = "a-family-with-a-very-long-name"
    report = realistic()
    cut = replace(report.cuts[1], options=(replace(report.cuts[1].options[0], family=name),))
    labels = [t for t in svg(replace(report, cuts=(cut,)), cut).iter("text") if t.get("class") == "name"]
    assert [t.text for t in labels] == ["a-family-w…"]
    assert [title.text for t in labels for title in t] == [name]


@pytest.mark.parametrize("factor", [1.2, 40.0], ids=["near", "far above"])
def test_the_oracle_is_drawn_inside_the_plot(factor: float) -> None:
    report = realistic()
    report = replace(report, oracle_speedup=report.speedup * factor)
    picture = re.findall(r"<svg.*?</svg>", page(report), re.DOTALL)[-1]
    (line,) = (e for e in ElementTree.fromstring(picture).iter("line") if e.get("class") == "oracle")
    assert 20 <= float(line.get("y1", 0)) <= 200
    assert ("far above" in picture) == (factor > 2)


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=8),
    st.floats(1, 12),
)
def test_labels_spread_out_in_order(wanted: list[float], gap: float) -> None:
    places = spread(wanted, gap, 0, 100)
    assert all(-1e-6 <= place <= 100 + 1e-6 for place in places)
    ordered = [place for _, place in sorted(zip(wanted, places, strict=True))]
    assert all(b - a >= gap - 1e-6 for a, b in pairwise(ordered))


@given(st.floats(1e-4, 100), st.floats(1.001, 1000), st.booleans())
def test_ticks_are_round_and_on_the_axis(low: float, ratio: float, log: bool) -> None:
    scale = Scale(low, low * ratio, 0, 300, log)
    ticks = scale.ticks(5)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= 20
    assert log or len(ticks) >= 2
    for tick in ticks:
        assert -1e-6 <= scale(tick) <= 300 + 1e-6


# --- curves


@given(
    st.lists(
        st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, float("nan")]), st.booleans()), min_size=1, max_size=40
    ),
    st.integers(2, 70),
)
def test_a_curve_is_what_its_thresholds_would_give(samples: list[tuple[float, bool]], points: int) -> None:
    scores = np.array([score for score, _ in samples], np.float32)
    agree = np.array([right for _, right in samples])
    coverage, agrees = agreement_curve(scores, agree, points)
    reached = sorted({score for score, _ in samples if score >= 0}, reverse=True)
    wanted = [(np.mean(scores >= s), np.mean(agree[scores >= s])) for s in reached]
    got = list(zip(coverage, agrees, strict=True))
    assert len(got) == min(points, len(wanted))
    assert all(any(pair == pytest.approx(other, abs=1e-5) for other in wanted) for pair in got)
    if wanted:
        assert got[-1] == pytest.approx(wanted[-1], abs=1e-5)  # all that it ever answers
        assert covered(scores, reached[-1]) == pytest.approx(coverage[-1], abs=1e-5)


# --- numbers


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        pytest.param(percent(0.7123), "71.2%", id="share"),
        pytest.param(percent(0.9996), "99.96%", id="nearly all is not all"),
        pytest.param(percent(0.0004), "0.04%", id="few is not none"),
        pytest.param(percent(1.0), "100.0%", id="all"),
        pytest.param(percent(None), "—", id="unknown"),
        pytest.param(duration(2.14e-5), "21.4 µs", id="microseconds"),
        pytest.param(duration(0.9996e-3), "1.00 ms", id="rounded up into the next unit"),
        pytest.param(duration(0.0402), "40.2 ms", id="milliseconds"),
        pytest.param(duration(1.5), "1.50 s", id="seconds"),
        pytest.param(size(0), "0 B", id="nothing"),
        pytest.param(size(412_000), "412 kB", id="kilobytes"),
        pytest.param(size(44_700_000), "44.7 MB", id="megabytes"),
    ],
)
def test_numbers_have_units(said: str, wanted: str) -> None:
    assert said == wanted


# --- the command


def test_the_command_prints_the_sentence_and_the_table_and_writes_the_page(repository: Path, tmp_path: Path) -> None:
    report = realistic()
    write(repository, report)
    written = tmp_path / "results" / "report.json"
    result = run(repository, "--json", str(written))
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == report.sentence
    assert f"Expected speed-up {report.speedup:.2f}{OF_ENGINE}." in lines
    path = reports_folder(repository) / f"{MODEL}-2.html"
    assert result.output.replace("\n", "").endswith(f"Page: {path}")
    for cut in report.cuts:
        assert re.search(rf"{cut.index} +.*{percent(cut.share, 0)} +{cut.used or 'none'}", result.output)
    assert f"No head at 1, 3 (pooled): {SLOWER}" in lines
    assert path.read_text(encoding="utf-8") == page(report)
    assert list(path.parent.glob(".*")) == []
    fields = json.loads(written.read_text())
    assert fields.pop("page") == str(path)
    assert Report.from_json(json.dumps(fields)) == report


def test_a_release_and_a_place_can_be_chosen(repository: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        write(repository, replace(realistic(release=number), sentence=f"Promise {number}."))
    out = tmp_path / "new" / "folder" / "x.html"
    result = run(repository, "--release", "1", "--out", str(out))
    assert (result.exit_code, result.output.splitlines()[0]) == (0, "Promise 1.")
    assert "Promise 1." in out.read_text(encoding="utf-8")
    assert not list(reports_folder(repository).glob("*.html"))


def test_an_export_that_led_to_no_release_can_be_shown(repository: Path) -> None:
    report = replace(without_heads("Too few samples."), sentence="Nothing is promised.")
    write(repository, report)
    result = run(repository)
    assert result.exit_code == 0
    assert result.output.startswith("Nothing is promised.\nNo head serves: Too few samples.\n")
    assert (reports_folder(repository) / f"{MODEL}-0.html").exists()
    write(repository, refused("Too few."))
    assert "No head at" not in run(repository).output  # the reason is said once, above
    write(repository, report)
    write(repository, realistic())
    assert run(repository, "--release", "0").output.startswith("Nothing is promised.")
    assert run(repository).output.startswith("At most")


def publish_by_hand(repository: Path, number: int, reason: str = "refresh") -> None:
    chain = read_chain(repository, MODEL)
    certificate = realistic().certificate
    assert certificate is not None
    draft = Draft({0: marked_head(chain, 0, number)}, certificate, WINDOW, reason)
    place(repository, chain, number, release_files(chain, number, draft))


def test_a_repository_without_reports_tells_what_it_knows(repository: Path, tmp_path: Path) -> None:
    nothing = run(repository)
    said = "No release is live: the backbone answers every request."
    path = reports_folder(repository) / f"{MODEL}-0.html"
    assert (nothing.exit_code, nothing.output.replace("\n", "")) == (0, f"{said}Page: {path}")
    assert said in path.read_text(encoding="utf-8")
    publish_by_hand(repository, 2)
    written = tmp_path / "report.json"
    for arguments in ([], ["--release", "2"]):
        said = run(repository, "--json", str(written), *arguments).output
        assert said.splitlines()[:2] == [realistic().sentence, ELSEWHERE]
    text = Text((reports_folder(repository) / f"{MODEL}-2.html").read_text(encoding="utf-8")).text
    assert f"{MODEL} · release 2 · 2026-01-01 00:00 UTC {realistic().sentence} {ELSEWHERE} The evidence" in text
    assert "9f2c9f2c" in text
    fields = json.loads(written.read_text())
    assert (fields["release"], fields["certificate"]["n"], fields["epsilon"]) == (2, 2412, 0.01)
    refused = run(repository, "--release", "1")
    assert "There is no report of 'resnet18'" in str(refused.exception)


def test_the_report_is_of_the_live_release_and_not_of_the_newest(repository: Path) -> None:
    for number in (1, 2):
        write(repository, replace(realistic(release=number), sentence=f"Promise {number}."))
        publish_by_hand(repository, number)
    assert run(repository).output.startswith("Promise 2.")
    publish_by_hand(repository, 3, f"{ROLLBACK}1")
    for arguments in ([], ["--release", "3"]):
        said = run(repository, *arguments).output
        assert said.startswith("Release 3 is release 1 again. Promise 1.")
    assert (reports_folder(repository) / f"{MODEL}-3.html").exists()
    assert run(repository, "--release", "2").output.startswith("Promise 2.")
    head = head_path(repository, read_chain(repository, MODEL), 0, 3)
    head.write_bytes(head.read_bytes()[:-5])
    assert run(repository).output.startswith("Promise 2.")


def test_names_in_square_brackets_are_no_markup_on_the_terminal(repository: Path) -> None:
    report = realistic()
    cut = replace(report.cuts[0], tensor="[b]x[/i]")
    write(repository, replace(report, cuts=(cut, *report.cuts[1:]), sentence="[bold]Yes."))
    result = run(repository)
    assert result.exit_code == 0, result.exception
    assert "[b]x[/i]" in result.output
    assert "[bold]Yes." in result.output


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        pytest.param(MODEL, ["--release", "1"], "There is no report of 'resnet18'", id="none at all"),
        pytest.param(
            "other", ["--release", "5"], r"no report of release 5 of 'other' \(there are: 1, 2\)", id="number"
        ),
        pytest.param("resnet", [], r"no chain resnet \(there are: other, resnet18\)", id="no such model"),
        pytest.param("../models/other", [], "no chain", id="a path for a model"),
    ],
)
def test_a_missing_report_is_said_in_a_sentence(model: str, arguments: list[str], said: str, repository: Path) -> None:
    for number in (1, 2):
        write(repository, replace(realistic(release=number), model="other"))
    result = run(repository, *arguments, model=model)
    assert result.exit_code == 1
    assert isinstance(result.exception, GatiError)
    assert re.search(said, str(result.exception))
    assert not list(reports_folder(repository).glob("*.html"))


@pytest.mark.parametrize(
    "arguments",
    [["--release", "-1"], ["--release", "two"], ["--out", "."], ["--json", "."]],
    ids=["negative release", "release that is no number", "page that is a folder", "json that is a folder"],
)
def test_wrong_use_is_told_from_failure(arguments: list[str], repository: Path) -> None:
    write(repository, realistic())
    assert run(repository, *arguments).exit_code == 2


def turn(at: int, live: float | None, new: float | None, release: int | None, why: str = "It is faster.") -> Turn:
    return Turn(f"2026-03-{at:02}T12:00:00+00:00", 60.0, 20_000, at, release, why, 0.004, live, new, 0.002)


def test_the_page_shows_what_refreshes_decided_newest_first() -> None:
    said = [
        turn(1, 0.003, 0.002, 2),
        turn(2, 0.002, 0.0021, None, "It would not be <faster>."),
        turn(3, None, None, None, "Too few."),
    ]
    source = page(realistic(), said)
    text = Text(source).text
    assert text.index("Too few.") < text.index("It would not be <faster>.") < text.index("It is faster.")
    pictures = re.findall(r"<svg.*?</svg>", source, re.DOTALL)
    drawn = ElementTree.fromstring(next(picture for picture in pictures if "refreshes" in picture))
    dots = [dot.get("class") for dot in drawn.iter("circle")]
    assert dots == ["mark f1", "point f1"]
    assert "refreshes decided" not in page(realistic())
    assert len(re.findall("<svg", page(realistic(), said[2:]))) == len(re.findall("<svg", page(realistic())))
