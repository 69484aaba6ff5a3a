"""Stores that an fsspec URL names: folders of this machine, or an object store such as S3 (`s3://bucket/folder`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gati.errors import GatiError, UnavailableError

OBJECT_STORES = ("s3://", "s3a://", "gs://", "gcs://", "az://", "abfs://", "abfss://")
"""Where a file is put whole or not at all, and nothing can be renamed."""
PATIENCE = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 0}}
"""How long S3 may take: s3fs tries again by itself, and botocore's own minutes would only make it look hung."""
SECRETS = re.compile(r"(?<=://)[^\s/@]*@|[?][^\s\"']*")


def is_object_store(url: str) -> bool:
    """Whether a URL is one of an object store."""
    return url.startswith(OBJECT_STORES)


def open_store(url: str) -> tuple[Any, str]:
    """A store's file system, and the path of the URL in it. Others write there too: no listing is remembered."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False}
    if url.startswith(("s3://", "s3a://")):
        options["config_kwargs"] = PATIENCE
    return fsspec.core.url_to_fs(url, **options)


def public(text: str) -> str:
    """A URL, or what was said of one, without the credentials that it may carry."""
    return SECRETS.sub("", text)


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Makes one sentence of whatever a store raises: each kind has exceptions of its own.

    Raises:
        UnavailableError: If the store does not do what it is asked.
    """
    try:
        yield
    except GatiError:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UnavailableError(f"{public(url)} can't be used: {public(reason)}.") from error
