"""Options that say what heads are to keep to, and how they are found."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce, wraps
from typing import Any

import click

from gati.options import checked
from gati.repository.agreement import DEFAULT, parse_agreement
from gati_export.commands.budget import MemorySize, parse_size
from gati_export.families import AUTO, FAMILIES, named_families
from gati_export.terms import ENOUGH, Terms

SHARE = click.FloatRange(0, 1, min_open=True, max_open=True)

OPTIONS = (
    click.option(
        "--epsilon",
        type=SHARE,
        default=0.01,
        show_default=True,
        help="Share of answers that may differ from BACKBONE's.",
    ),
    click.option("--delta", type=SHARE, default=0.05, show_default=True, help="1 - confidence of that promise."),
    click.option(
        "--agreement",
        metavar="RULE",
        callback=checked(parse_agreement),
        default=DEFAULT,
        show_default=True,
        help="When answers agree: 'top-1' (same best class), 'top-K' (the best class is among BACKBONE's K best), "
        "'within X' (each number is, for regression), or package.module:function, which the server can import, too.",
    ),
    click.option(
        "--families",
        metavar="NAMES",
        callback=checked(named_families),
        default=AUTO,
        show_default=True,
        help=f"Heads to try, with commas between: {', '.join(FAMILIES)}. 'auto': those that have paid most.",
    ),
    click.option(
        "--budget-memory",
        metavar="SIZE",
        callback=lambda _ctx, _param, value: None if value is None else parse_size(value),
        help="Most memory for all heads together: '5%' of BACKBONE, or '2MB'.  [default: any]",
    ),
    click.option(
        "--budget-p99",
        metavar="MS",
        type=click.FloatRange(0, min_open=True),
        help="Most time in the engine for 99 % of requests, at batch 1.  [default: any]",
    ),
    click.option(
        "--views",
        metavar="N",
        type=click.IntRange(0),
        default=ENOUGH,
        show_default=True,
        help="Images to train on. If there are fewer, shifted and mirrored ones are added: as many as BACKBONE can "
        "answer in a minute or two, and as fit into 2 GiB.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Seed of the training; same seed, same heads."),
)


def terms_options(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command these options; it gets `terms`, and `memory_share` where a budget is a share of the backbone."""

    @wraps(command)
    def with_terms(
        *,
        epsilon: float,
        delta: float,
        agreement: str,
        families: str,
        budget_memory: MemorySize | None,
        budget_p99: float | None,
        views: int,
        seed: int,
        **others: Any,
    ) -> None:
        terms = Terms(
            epsilon=epsilon,
            delta=delta,
            agreement=agreement,
            families=families,
            memory=budget_memory.size if budget_memory else None,
            p99=budget_p99 / 1e3 if budget_p99 else None,
            views=views,
            seed=seed,
        )
        command(terms=terms, memory_share=budget_memory.share if budget_memory else None, **others)

    return reduce(lambda function, option: option(function), reversed(OPTIONS), with_terms)
