"""`gati bench`: how fast a chain is, measured on this machine beside what else one could serve."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from gati.inference.session import CPU, DEVICE, parse_device
from gati.options import OutputFile, checked, json_option, write_json
from gati.repository.chain import Mode, find_chains, read_chain
from gati_export.bench.page import page, sentence
from gati_export.bench.rows import AGAINST, ALLOWED, ORACLE, Result, answers_table, kept, loads_table
from gati_export.bench.traffic import WORKLOADS
from gati_export.commands.common import found_model, repository_option, results, shown_progress
from gati_export.report.page import write_page
from gati_export.samples.images import parse_decode

MODES = get_args(Mode)


def _list(each: Callable[[str], Any]) -> Callable[..., tuple]:
    """Reads an option's values, separated by commas; each counts once, and numbers rise."""

    def read(_context: click.Context, _option: click.Parameter, value: str | None) -> tuple:
        if value is None:
            return ()
        try:
            found = dict.fromkeys(each(word.strip()) for word in value.split(","))
            return tuple(found if any(isinstance(one, str) for one in found) else sorted(found))
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return read


def _positive(kind: type) -> Callable[[str], Any]:
    def read(word: str) -> Any:
        with suppress(ValueError):
            if 0 < (number := kind(word)) < math.inf:
                return number
        raise ValueError(f"{word!r} is no positive number; give some, such as 1,4,16.")

    return read


def _one_of(allowed: Sequence[str]) -> Callable[[str], str]:
    def read(word: str) -> str:
        if word not in allowed:
            raise ValueError(f"{word!r} is not one of {', '.join(allowed)}.")
        return word

    return read


@click.command("bench")
@click.argument("model", metavar="[MODEL]", required=False)
@repository_option
@click.option(
    "--data",
    metavar="SAMPLES",
    required=True,
    type=click.Path(path_type=Path),
    help="What requests are drawn from: .npz, .npy, Parquet, or a folder of it; best none that the chain has seen.",
)
@click.option(
    "--image",
    metavar="HOW",
    callback=checked(parse_decode),
    help="How encoded images become arrays; see gati export --help.",
)
@click.option(
    "--workload",
    type=click.Choice(WORKLOADS),
    default="iid",
    show_default=True,
    help="Samples in random order; of a few popular classes that change (hot); runs of 30 near-duplicates (frames).",
)
@click.option(
    "--against",
    metavar="LIST",
    callback=_list(_one_of(AGAINST)),
    default="plain",
    show_default=True,
    help=f"What else to measure, of {', '.join(AGAINST)}: backbone and chain in int8; Triton's response cache; "
    "the heads of GATI, SelfXit, BranchyNet and nearest neighbours.",
)
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    help="For peers: what their heads learn from, as in gati export; int8 is calibrated on it, too.",
)
@click.option(
    "--train-samples",
    "extra",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="For peers: more to train on, as in gati export.",
)
@click.option(
    "--modes",
    metavar="LIST",
    callback=_list(_one_of(MODES)),
    default="inline,bls",
    show_default=True,
    help="How the chain is run.",
)
@click.option(
    "--concurrency",
    metavar="LIST",
    callback=_list(_positive(int)),
    default="1,2,4,8,16",
    show_default=True,
    help="Requests in flight at a time.",
)
@click.option(
    "--rate",
    metavar="LIST",
    callback=_list(_positive(float)),
    help="Requests a second, with Poisson arrivals.  [default: 70 % of what the plain model takes]",
)
@click.option(
    "--requests",
    type=click.IntRange(20),
    default=300,
    show_default=True,
    help="Requests in each measurement; 16 for each in flight, or a second's at a rate, if that is more.",
)
@click.option(
    "--turns", type=click.IntRange(1), default=3, show_default=True, help="Times that each contender is measured."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the order of requests.")
@click.option(
    "--device",
    metavar="DEVICE",
    envvar=DEVICE,
    callback=checked(parse_device),
    default=str(CPU),
    show_default=True,
    help="Where the plain model and inline chains run: cpu, cuda or cuda:N.",
)
@click.option("--html", type=OutputFile(), help="Write a page with plots to this file.")
@json_option
def bench_command(
    model: str | None,
    repository: Path,
    data: Path,
    image: str | None,
    workload: str,
    against: tuple[str, ...],
    samples: Path | None,
    extra: Path | None,
    modes: tuple[Mode, ...],
    concurrency: tuple[int, ...],
    rate: tuple[float, ...],
    requests: int,
    turns: int,
    seed: int,
    device: str,
    html: Path | None,
    json_path: Path | None,
) -> None:
    """Measure a chain on this machine, beside the plain model, with NVIDIA's perf_analyzer.

    Starts a tritonserver of its own with copies of MODEL (the repository and its server are left alone), and asks all
    that is compared the same requests in turns. Besides the chain it measures where its time goes: mechanism (four
    segments with a tiny head each, all missing), all-miss (its own heads, forced to miss), bypassed (the same, left to
    go past its heads, as in service), hit-K (forced to hit at exit K), hits-80 (for 80 % of requests at the first
    exit), engine (ONNX Runtime without a server), oracle (leaves at the first exit whose head is right, at no cost) and
    allowed (leaves where its own heads hit, at no cost). Keep the machine otherwise idle.

    \b
    gati bench resnet18 --repository models --data test.npz
    gati bench resnet18 --repository models --data test.npz --workload hot --against int8,cache --json bench.json
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    from gati_export.bench.plan import BenchPlan
    from gati_export.bench.run import bench  # brings PyTorch, which takes seconds: not for those who ask how
    from gati_export.samples.samples import load_samples

    where = parse_device(device)
    os.environ[DEVICE] = device  # parts are measured there, too
    chain = read_chain(repository, found_model(repository, find_chains(repository), model))
    load = partial(load_samples, inputs=chain.inputs, decode=parse_decode(image) if image else None)
    plan = BenchPlan(
        repository,
        chain,
        load(data),
        workload,
        against,
        modes,
        concurrency,
        rate,
        requests,
        turns,
        seed,
        load(samples) if samples else None,
        load(extra) if extra else None,
        where,
    )
    with shown_progress() as progress:
        result = bench(plan, progress)
    _tell(result)
    _keep(result, json_path, html)


def _keep(result: Result, json_path: Path | None, html: Path | None) -> None:
    write_json(json_path, result.as_json())
    if html is not None:
        write_page(html, page(result))
        click.echo(f"The page is {html}.")


def _tell(result: Result) -> None:
    for load in result.loads():
        results.print(loads_table(result, load))
    results.print(answers_table(result))
    for note in result.notes:
        click.echo(note)
    click.echo(sentence(result))
    of_oracle, of_heads = kept(result, ORACLE), kept(result, ALLOWED)
    if of_oracle is not None:
        beside = "" if of_heads is None else f"; of what these save where they hit, lookups aside, {of_heads:.0%}"
        click.echo(f"Of the time that an oracle with the same heads would save, {of_oracle:.0%} is saved{beside}.")
    starts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.conditions["start_seconds"].items())
    click.echo(f"From the server's start to the first answer: {starts}.")
    if repeats := result.conditions["repeats"]:
        click.echo(
            f"{repeats:.0%} of the requests measured repeat an earlier one, which Triton's response cache could "
            "answer: give more samples."
        )
