"""What can go wrong, as a hierarchy.

    GatiError
    ├── RequestError       a client's request can't be answered as asked
    ├── UnavailableError   a server, or a model on it, does not answer
    │   └── NotLoadedError   the server has not loaded a model, or has it no longer
    ├── RepositoryError    the model repository is damaged or not one of gati's
    │   └── ReleaseRefused   a release does not fit its chain; the one before goes on serving
    │       └── IncompleteError   not all of its files are there, or not yet
    ├── PublishError       a release could not be made live
    ├── BackboneError      this network can't be cut, or not served as it is
    ├── AgreementError     what counts as the same answer is not said in a way that can be judged
    ├── SamplesError       the samples don't fit the model, or are too few
    ├── FamilyError        a family of heads does not keep to what all of them must
    └── BenchError         something could not be measured

Every message is one sentence for the person who can act on it. Commands print it and exit with 1; the
backend sends it to the client with `status`. Anything outside this hierarchy is a bug: it goes to the log
with its traceback, and the client is told only that the request failed.
"""


class GatiError(Exception):
    """Anything that gati expects can go wrong."""

    status = "INTERNAL"
    """Name of the code in `pb_utils.TritonError` that a client gets."""


class RequestError(GatiError):
    """A request is not one that this model can answer; the client should change it."""

    status = "INVALID_ARG"


class UnavailableError(GatiError):
    """A server, or a model on it, does not answer; trying again later may help."""

    status = "UNAVAILABLE"


class NotLoadedError(UnavailableError):
    """The server has not loaded a model yet, or has unloaded it."""


class RepositoryError(GatiError):
    """A model repository is damaged, or not one that gati wrote."""


class ReleaseRefused(RepositoryError):
    """A release is incomplete, damaged, or was trained behind other segments."""

    status = "UNSUPPORTED"


class IncompleteError(ReleaseRefused):
    """Not all files of a release are there: whoever writes or copies it may be at work."""


class PublishError(GatiError):
    """A release could not be written, or the server did not take it."""


class BackboneError(GatiError):
    """A backbone can't be read, cut, or served as it is."""


class AgreementError(GatiError):
    """An agreement is not one that gati knows, or can't judge the answers that it is given."""


class SamplesError(GatiError):
    """Samples can't be read, don't fit the model's inputs, or are too few."""


class FamilyError(GatiError):
    """The code of a family of heads failed, or does otherwise than `gati_export.families.family` asks."""


class BenchError(GatiError):
    """A benchmark could not measure something."""


def first_line(error: BaseException | str) -> str:
    """An error's first line: engines put whole stacks into their messages."""
    return printable(str(error).strip().split("\n", 1)[0][:300])


def printable(text: str) -> str:
    """Text that can be sent and logged: a file can name a character that is none, half of a surrogate pair, in JSON."""
    return text.encode(errors="backslashreplace").decode()
