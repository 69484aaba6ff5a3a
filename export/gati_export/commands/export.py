"""`gati export`: a backbone in, a model repository out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gati.errors import RepositoryError
from gati.options import checked, json_option, write_json
from gati.repository.chain import NAME, Engine, Mode
from gati_export.commands.common import device_option, results, shown_progress
from gati_export.commands.terms import terms_options
from gati_export.report.table import OF_ENGINE, cuts_table
from gati_export.samples.images import parse_decode

if TYPE_CHECKING:
    from gati_export.export import Exported, ExportPlan
    from gati_export.releases.deployed import Deployed
    from gati_export.report.data import Report
    from gati_export.terms import Terms


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise RepositoryError(f"{name!r} can't be a model's name (letters, digits, '_', '-' and '.' can); see --name.")
    return name


@click.command()
@click.argument("backbone", metavar="BACKBONE")
@click.option(
    "--samples", required=True, type=click.Path(path_type=Path), help=".npz, .npy, Parquet, or a folder of it."
)
@click.option(
    "--repository",
    metavar="DIR",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Model repository to put the chain into; made if it does not exist.",
)
@click.option(
    "--name",
    callback=checked(_checked_name),
    help="The model's name on the server.  [default: after BACKBONE]",
)
@click.option(
    "--outputs",
    metavar="NAMES",
    help="Which of BACKBONE's outputs to serve, with commas between.  [default: all]",
)
@click.option(
    "--image",
    metavar="HOW",
    callback=checked(parse_decode),
    help="How encoded images become arrays: '[WxH] rgb|gray [mean=..] [std=..] [chw|hwc]', or package.module:function "
    "that takes the encoded bytes.",
)
@terms_options
@click.option(
    "--train-samples",
    "extra",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="More samples, only to train on and never to certify with, such as BACKBONE's own training data.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Say why each head that was tried is used or not, and search up to 20 s for a better choice.",
)
@click.option(
    "--mode",
    type=click.Choice(["auto", "inline", "bls"]),
    default="auto",
    show_default=True,
    help="Run the chain in one process (inline) or as Triton models (bls). auto: bls if that is clearly faster here.",
)
@click.option(
    "--engine",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="What runs the segments. tensorrt: on a GPU, in mode bls; as plans if this machine can make them.",
)
@click.option(
    "--engines",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder on the server's machine for engines that TensorRT builds.  [default: DIR.gati]",
)
@device_option
@click.option(
    "--cut-points",
    type=click.IntRange(1, 12),
    default=6,
    show_default=True,
    help="Most cut points. More may answer sooner, and take longer to train.",
)
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    help="Largest batch of a request.  [default: what a Triton repository says of BACKBONE, or 32]",
)
@click.option(
    "--model-config-name",
    "config_name",
    metavar="NAME",
    help="Of a model in a Triton repository, read configs/NAME.pbtxt where there is one, as a tritonserver with this "
    "option does.",
)
@click.option("--plain", is_flag=True, help="Also write NAME-plain, the unmodified backbone, to compare with.")
@json_option
def export(
    backbone: str,
    samples: Path,
    repository: Path,
    name: str | None,
    outputs: str | None,
    image: str | None,
    terms: Terms,
    memory_share: float | None,
    extra: Path | None,
    explain: bool,
    mode: str,
    engine: str,
    engines: Path | None,
    cut_points: int,
    max_batch: int | None,
    config_name: str | None,
    plain: bool,
    json_path: Path | None,
) -> None:
    """Cut BACKBONE into segments, train heads on its own answers to SAMPLES, and write a model repository.

    BACKBONE is an ONNX file, a torch.export program (.pt2), a TorchScript program (.pt), package.module:callable that
    returns an nn.Module, or a model's folder in a Triton repository. In the last case the chain can take that model's
    place for all clients: it has the same names, batches and labels. BACKBONE computes scores, [batch, classes], and
    perhaps outputs that follow from these alone, such as a label.

    SAMPLES are arrays, or Parquet columns, with the names of its inputs. No labels are needed. Rows may differ in
    shape, as texts do, if BACKBONE takes that.

    Served answers differ from BACKBONE's on at most a share --epsilon of requests like SAMPLES, with confidence
    1 - --delta. With the defaults, that takes 299 samples that are held out: give 1,400 or more.

    \b
    gati export resnet18.onnx --samples images.npz --repository models
    gati export production/resnet18 --samples images.npz --repository models
    gati export my.package:build --samples text.parquet --repository models --name intents
    gati export net.pt2 --samples photos.parquet --image "224x224 rgb mean=.485,.456,.406 std=.229,.224,.225" \\
        --repository models
    """  # noqa: D301  # \b is click's mark for text that is not to be wrapped
    # it brings PyTorch, which takes seconds: not for those who ask how
    from gati_export.export import ExportPlan, export_chain

    way, kind = _run_by(mode, engine)
    deployed = _deployed(backbone, config_name)
    served = deployed.signature.outputs if deployed else ()
    plan = ExportPlan(
        backbone=str(deployed.path) if deployed else backbone,
        samples=samples,
        repository=repository,
        name=_checked_name(_default_name(backbone, deployed)) if name is None else name,
        decode=parse_decode(image) if image else None,
        outputs=tuple(name.strip() for name in outputs.split(",")) if outputs else tuple(served),
        terms=replace(terms, proof=explain),
        memory_share=memory_share,
        extra=extra,
        mode=way,
        cut_points=cut_points,
        max_batch=max_batch or (deployed and deployed.max_batch) or 32,
        plain=plain,
        engine=kind,
        engines=engines,
        deployed=deployed,
    )
    with shown_progress() as progress:
        exported = export_chain(plan, progress)
    _tell(exported, plan, explain)
    write_json(json_path, exported.as_json())


def _run_by(mode: str, engine: str) -> tuple[Mode | None, Engine]:
    """What --mode and --engine ask for; no mode: the faster one."""
    modes: dict[str, Mode] = {"inline": "inline", "bls": "bls"}
    if engine != "tensorrt":
        return modes.get(mode), "onnxruntime"
    if mode == "inline":
        raise click.UsageError("--engine tensorrt is for Triton models: leave --mode out, or say bls.")
    return "bls", "tensorrt"


def _deployed(backbone: str, config_name: str | None) -> Deployed | None:
    """What Triton serves in a model's folder; None where BACKBONE is none."""
    from gati_export.releases.deployed import read_deployed

    is_folder = Path(backbone).is_dir()
    if config_name is not None and not (is_folder and NAME.fullmatch(config_name)):
        raise click.UsageError("--model-config-name is for a model's folder, and names a file of its configs/.")
    if is_folder:
        return read_deployed(Path(backbone), config_name)
    _warn_of_configuration(backbone)
    return None


def _warn_of_configuration(backbone: str) -> None:
    """Says that what a Triton repository says of a network's file is left alone, before hours go into it."""
    path = Path(backbone)
    if not (path.is_file() and path.parent.name.isdecimal()):
        return
    folder = path.parents[1]
    if (folder / "config.pbtxt").is_file():
        click.echo(f"{folder}/config.pbtxt is not read; for a chain in that model's place, give {folder}.", err=True)


def _default_name(backbone: str, deployed: Deployed | None) -> str:
    """`path/resnet18.onnx`, `package.resnet18:build` and `repository/resnet18/1/model.onnx` are all resnet18."""
    if deployed is not None:
        return deployed.name
    if ":" in backbone and not backbone.endswith((".onnx", ".pt2", ".pt")):
        return backbone.partition(":")[0].rpartition(".")[2]
    path = Path(backbone)
    return path.parts[-3] if len(path.parts) > 2 and path.parent.name.isdecimal() else path.stem


def _tell(exported: Exported, plan: ExportPlan, explain: bool) -> None:
    chain, report = exported.chain, exported.report
    results.print(cuts_table(report))
    if explain:
        _explain(report)
    click.echo(
        f"Cut at {len(chain.heads)} of {exported.found} cut points; on {exported.compared} samples the segments "
        f"answer as the backbone does (largest difference {exported.difference:.1e})."
    )
    if chain.tail:
        follow = ", ".join(tensor.name for tensor in chain.served if tensor != chain.output)
        click.echo(
            f"Heads foretell {chain.output.name!r}; from it, whoever answers, follows what else is served: {follow}."
        )
    if exported.mode_seconds:
        times = ", ".join(f"{mode} {seconds * 1e3:.2f} ms" for mode, seconds in exported.mode_seconds.items())
        click.echo(f"Mode {chain.mode} (mean of a request here: {times}).")
    for note in exported.notes:
        click.echo(note)
    if exported.release is None:
        click.echo(f"No head serves yet, the backbone answers every request: {report.why_not}")
    else:
        click.echo(f"Release 1: expected speed-up {report.speedup:.2f}{OF_ENGINE}. {exported.release.certificate}")
    click.echo(f"More: gati report {chain.model} --repository {plan.repository}")
    click.echo(f"Next: gati serve {plan.repository}")
    click.echo(f"Then: gati refresh {chain.model} --repository {plan.repository} --server localhost:8001 --watch")


def _explain(report: Report) -> None:
    """Why each head that was tried is used or not, and how speed moves with the promise."""
    click.echo("On the samples that heads were chosen by, before what can be certified was looked at:")
    for cut in report.cuts:
        for option in cut.options:
            click.echo(f"exit {cut.index}, {option.family}: {option.why}")
    if report.proof:
        click.echo(report.proof)
    for point in report.pareto:
        heads = ", ".join(f"{family} at {cut}" for cut, family in point.heads) or "no heads"
        click.echo(f"epsilon {point.epsilon:.2%}: expected speed-up {point.speedup:.2f} with {heads}")
    click.echo(f"Limit: {report.oracle_speedup:.2f}, if requests knew the first exit where any head is right.")
