"""Where this machine's Triton is, and a folder of backends that it can serve gati's repositories with.

NVIDIA's container has `tritonserver` on PATH, and its C++ ONNX Runtime backend. The pip wheel `nvidia-pytriton` has
the same server with the Python backend alone, so that gati's stand-in for `onnxruntime` is put beside it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gati.errors import UnavailableError

CONTAINER_BACKENDS = Path("/opt/tritonserver/backends")


@dataclass(frozen=True)
class Triton:
    """A Triton that can be started.

    Attributes:
        executable: The `tritonserver`.
        backends: Backends that came with it.
        stub: The Python backend's stub for this interpreter, where it doesn't lie beside its backend already.
        libraries: Folder of shared libraries that it needs, or None.
    """

    executable: Path
    backends: Path
    stub: Path | None = None
    libraries: Path | None = None

    @property
    def caches(self) -> Path:
        """Response caches that came with it: a server looks for them elsewhere, unless it is told."""
        return self.backends.with_name("caches")

    def prepare(self, folder: Path) -> None:
        """Fills an empty folder with the backends, as links: those that came with it, and gati's.

        Args:
            folder: Handed to the server as `--backend-directory`.
        """
        for backend in self.backends.iterdir():
            (folder / backend.name).symlink_to(backend)
        _link(folder, "gati", Path(__file__).parents[1])
        if self.stub is not None:
            (folder / "python").unlink()
            shutil.copytree(self.backends / "python", folder / "python", symlinks=True)
            shutil.copy2(self.stub, folder / "python")
            _own_libpython(folder / "python")
        if not (folder / "onnxruntime").exists():
            _link(folder, "onnxruntime", _stand_in())

    def environment(self, folder: Path) -> dict[str, str]:
        """This process's environment, changed so that the server finds its libraries and this interpreter.

        Args:
            folder: The one that was prepared.
        """
        environment = dict(os.environ)
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        if self.libraries is not None:
            paths = [str(folder / "python"), str(self.libraries), environment.get("LD_LIBRARY_PATH", "")]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(p for p in paths if p)
        return environment


def _link(folder: Path, name: str, target: Path) -> None:
    link = folder / name
    link.unlink(missing_ok=True)
    link.symlink_to(target, target_is_directory=True)


def _own_libpython(folder: Path) -> None:
    """Links this interpreter's libpython into a folder, where it has one.

    The stub takes the first that the loader finds. Into an older patch release's, this interpreter's `ssl` can't be
    loaded, and so no sample store with TLS.
    """
    name, home = sysconfig.get_config_var("INSTSONAME"), sysconfig.get_config_var("LIBDIR")
    if name and home and sysconfig.get_config_var("Py_ENABLE_SHARED") and (Path(home) / name).exists():
        (folder / name).symlink_to(Path(home) / name)


def _stand_in() -> Path:
    """The folder of gati's own backend `onnxruntime`."""
    spec = importlib.util.find_spec("gati_onnxruntime")
    if spec is None or not spec.submodule_search_locations:
        raise UnavailableError("gati's stand-in for the ONNX Runtime backend is not installed; reinstall gati.")
    return Path(next(iter(spec.submodule_search_locations)))


def find_triton() -> Triton:
    """The tritonserver on PATH, else the one in the pip wheel.

    Raises:
        UnavailableError: If there is neither, or the wheel's can't run beside what is installed.
    """
    on_path = shutil.which("tritonserver")
    if on_path:
        return Triton(Path(on_path), CONTAINER_BACKENDS)
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise UnavailableError(
            "No tritonserver found: run inside NVIDIA's Triton container, or "
            "`pip install --no-deps nvidia-pytriton==0.7.0` for the server alone."
        )
    root = Path(spec.origin).parent / "tritonserver"
    stub = root / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    if not stub.exists():
        raise UnavailableError(
            f"The pip wheel's Triton has no stub for Python {sys.version_info[0]}.{sys.version_info[1]}."
        )
    if int(np.__version__.split(".", maxsplit=1)[0]) >= 2:
        # Its stub was built against NumPy 1: with NumPy 2 every tensor that leaves it has zero bytes.
        raise UnavailableError(f"The pip wheel's Triton needs NumPy 1, not {np.__version__}: pip install 'numpy<2'.")
    return Triton(
        root / "bin" / "tritonserver",
        root / "backends",
        stub / "triton_python_backend_stub",
        root.parent.parent / "nvidia_pytriton.libs",
    )
