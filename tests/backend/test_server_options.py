"""What tritonserver is started with."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Exported

from gati.triton.options import OWN, check_handed_on, own_options
from gati.triton.ports import HOST, Ports

SHARED = {"--cache-directory", "--metrics-config"}
"""Options that gati gives, and that users may give too."""


def test_what_gati_gives_itself_is_not_handed_on(exported: Exported) -> None:
    given = own_options(exported.repository, Path("b"), Path("c"), ["m"], host=HOST, ports=Ports(), token="t")
    for option in {option.partition("=")[0] for option in given} - SHARED:
        assert option.removeprefix("--") in OWN
        with pytest.raises(ValueError, match=f"gets {option} from"):
            check_handed_on(["--log-verbose", "1", option, "1"])


def test_all_else_is() -> None:
    options = ["--log-verbose", "1", *(f"{option}=x" for option in SHARED)]
    assert check_handed_on(options) == options
