"""What a request's parameters may say."""

from __future__ import annotations

import pytest

from gati.errors import RequestError
from gati.serving.wire import parse_parameters


@pytest.mark.parametrize(
    ("parameters", "found"),
    [
        (None, ("cached", 0)),
        ("{}", ("cached", 0)),
        ('{"gati_mode": "exact"}', ("exact", 0)),
        ('{"gati_mode": "probe", "gati_release": 7}', ("probe", 7)),
    ],
)
def test_a_mode_and_a_release_are_read(parameters: str | None, found: tuple[str, int]) -> None:
    assert parse_parameters(parameters) == found


@pytest.mark.parametrize("release", ["true", "false", "1.0", '"1"', "null"])
def test_a_release_is_a_whole_number(release: str) -> None:
    with pytest.raises(RequestError, match="is the number of a release"):
        parse_parameters(f'{{"gati_mode": "probe", "gati_release": {release}}}')


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(RequestError, match="is 'cached', 'exact' or 'probe'"):
        parse_parameters('{"gati_mode": "fast"}')
