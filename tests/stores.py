"""An S3 server on loopback (moto's), which can go away and come back with all it holds."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

import fsspec
from moto.server import ThreadedMotoServer

from gati.triton.ports import HOST

SECRET = "never-to-be-seen"
KEY = "KEYNEVERTOBESEEN"


class Store:
    """The server with a bucket, `bucket`; use as a context manager."""

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._port = 0

    @property
    def environment(self) -> dict[str, str]:
        """What its clients need."""
        return {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{self._port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    @property
    def files(self) -> Any:
        """The file system of what it holds."""
        return fsspec.filesystem("s3", use_listings_cache=False)

    def come(self) -> None:
        """Starts it, at the second time where it was."""
        self._server = ThreadedMotoServer(HOST, self._port, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]

    def go(self) -> None:
        """Ends it: nobody answers there."""
        self._server.stop()

    def __enter__(self) -> Store:
        self.come()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go()
