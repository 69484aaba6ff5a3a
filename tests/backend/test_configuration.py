"""What a chain's configuration must not say."""

from __future__ import annotations

import json

import pytest

from gati.errors import RepositoryError
from gati.repository.configuration import check_configuration


def test_what_gati_writes_is_taken() -> None:
    group = {"name": "digits_0", "kind": "KIND_CPU", "count": 1, "gpus": []}
    check_configuration(json.dumps({"name": "digits", "instance_group": [group], "response_cache": {"enable": False}}))
    check_configuration(json.dumps({"name": "digits", "model_warmup": []}))
    check_configuration(json.dumps({"name": "digits"}))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"response_cache": {"enable": True}}, "digits: Triton's response cache does not tell exact requests"),
        (
            {"model_warmup": [{"name": "zeros"}]},
            "digits: Triton's warm-up is recorded and audited as clients' requests",
        ),
        ({"instance_group": [{"count": 2}]}, "digits: 2 instances would not know of each other's audits"),
        ({"instance_group": [{"count": 1}, {"count": 1}]}, "digits: 2 instances"),
        ({"instance_group": [{"count": 1, "gpus": [0, 1]}]}, "digits: 2 instances"),
    ],
)
def test_what_would_break_the_promise_is_refused(said: dict, why: str) -> None:
    with pytest.raises(RepositoryError, match=why):
        check_configuration(json.dumps({"name": "digits", **said}))
