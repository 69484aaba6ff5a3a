"""From a backbone and samples to a model repository with a chain and its first release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gati.errors import SamplesError
from gati.repository.chain import Chain, Engine, Mode
from gati.repository.release import Release, Window
from gati.repository.workspace import workspace
from gati_export.backbones.backbone import Backbone, load_backbone
from gati_export.backbones.cutpoints import CutPoint, choose_cutpoints, find_cutpoints
from gati_export.backbones.equality import check_segments
from gati_export.backbones.onnxfile import shorten
from gati_export.backbones.prepare import prepare
from gati_export.backbones.segments import cut, with_shares, write_segments
from gati_export.backbones.signature import UNKNOWN
from gati_export.certificates.runs import find_runs
from gati_export.certificates.splitting import marks, split
from gati_export.composition.latency import measured_on
from gati_export.composition.replay import has_state
from gati_export.learning.evidence import backbone_bytes, report_of
from gati_export.learning.task import Task
from gati_export.learning.trained import Certified, Trained
from gati_export.learning.training import train_heads
from gati_export.progress import Progress
from gati_export.releases.accelerator import Accelerator
from gati_export.releases.deployed import Deployed
from gati_export.releases.mode import faster_mode
from gati_export.releases.publish import Draft, publish
from gati_export.releases.repository import check_room, install, write_plain, write_repository
from gati_export.releases.tensorrt_plans import compiled
from gati_export.report.data import Report, write
from gati_export.samples.images import Decode
from gati_export.samples.ragged import Samples, batches, count, few, is_ragged, rows_at
from gati_export.samples.samples import ARRAYS, cast_notes, check_samples, load_samples
from gati_export.staging import REPOSITORY, moving, staging, staging_area, write_part
from gati_export.terms import Terms

MEASURE_THERE = "`gati refresh --measure` and `gati bench` say what they are on the serving machine."

CHECKED = 256
"""Samples, at most, on which segments are compared with the backbone."""


@dataclass(frozen=True)
class ExportPlan:
    """What to export, and how.

    Attributes:
        backbone: An `.onnx`, `.pt2` or `.pt` file, or `package.module:callable`.
        samples: A `.npz`, `.npy` or Parquet file, or a folder of Parquet files.
        repository: Where the model repository is, or is to be.
        name: The chain's name on the server.
        decode: How encoded images among the samples become arrays.
        outputs: Which of the backbone's outputs are to be served; all, if none is named.
        terms: What heads have to keep to.
        memory_share: What share of the backbone's size all heads together may take; None for any.
        extra: More samples, to train on and never to calibrate with, such as those that the backbone was trained on.
        mode: How to run the chain; None measures both ways on this machine's server and takes the faster.
        cut_points: How many, at most.
        max_batch: Largest batch of a request.
        plain: Whether to put the unmodified backbone beside the chain, as `<name>-plain`.
        engine: What is to run segments; "tensorrt" does in BLS mode only.
        engines: A folder on the serving machine for engines that TensorRT builds there; None for the repository's
            workspace, as seen from here.
        deployed: The model in whose place the chain is to be served, if there is one.
    """

    backbone: str
    samples: Path
    repository: Path
    name: str
    decode: Decode | None = None
    outputs: tuple[str, ...] = ()
    terms: Terms = field(default_factory=Terms)
    memory_share: float | None = None
    extra: Path | None = None
    mode: Mode | None = None
    cut_points: int = 6
    max_batch: int = 32
    plain: bool = False
    engine: Engine = "onnxruntime"
    engines: Path | None = None
    deployed: Deployed | None = None


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        chain: The chain as written.
        found: How many cut points the backbone has.
        difference: Largest difference between the segments' and the backbone's scores, relative to the largest score.
        compared: On how many samples.
        report: What was learned, chosen and promised.
        release: Release 1, or None where no head could be certified, or none pays.
        mode_seconds: Mean seconds a request in each mode, where both were measured.
        notes: What to know of how the backbone was read, and of how TensorRT runs the segments.
    """

    chain: Chain
    found: int
    difference: float
    compared: int
    report: Report
    release: Release | None
    mode_seconds: dict[str, float]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "model": self.chain.model,
            "mode": self.chain.mode,
            "engine": self.chain.engine,
            "notes": self.notes,
            "mode_seconds": self.mode_seconds,
            "cut_points_found": self.found,
            "scores": self.chain.output.name,
            "outputs": [tensor.name for tensor in self.chain.served],
            "segments": [asdict(segment) for segment in self.chain.segments],
            "largest_difference": self.difference,
            "compared_samples": self.compared,
            "report": self.report.as_json(),
            "release": asdict(self.release) if self.release else None,
        }


def export_chain(plan: ExportPlan, progress: Progress) -> Exported:
    """Cuts a backbone, trains and certifies heads, and installs the chain in a repository, whole or not at all.

    Args:
        plan: What to export, and how.
        progress: Told what is being done and how far it is.

    Raises:
        BackboneError: If the backbone can't be cut or served.
        SamplesError: If the samples can't be used.
        RepositoryError: If a model of that name is in the repository already, or the chain can't be moved there.
    """
    area = staging_area(plan.repository)
    check_room(area, plan.repository, plan.name, plan.plain)
    with staging(area, plan.name) as work:
        exported = _export(plan, work / REPOSITORY, work, progress)
        with moving(work) as staged:
            install(staged, plan.repository, plan.name)
    write(plan.repository, exported.report)
    return exported


def _export(plan: ExportPlan, staged: Path, work: Path, progress: Progress) -> Exported:
    progress("Read backbone and samples", 0)
    backbone, samples, of_reading = _load(plan, work)
    progress("Read backbone and samples", 1)
    found = find_cutpoints(backbone, samples)
    chosen = choose_cutpoints(found, plan.cut_points)
    chain = _write_chain(plan, backbone, chosen, staged)
    paths = chain.segment_paths(staged)
    progress("Compare segments with backbone", 0)
    total = count(samples)
    first = {name: rows[:CHECKED] for name, rows in samples.items()}
    difference = check_segments(backbone, paths, first)
    progress("Compare segments with backbone", 1)
    whole = backbone_bytes(paths)
    if plan.memory_share is not None:
        chain = replace(chain, memory=int(plan.memory_share * whole))
    terms = replace(Terms.of(chain, plan.terms.seed), proof=plan.terms.proof)
    extra = _extra(plan, backbone)
    parts = split(samples, find_runs(samples), extra=extra is not None, terms=terms)
    if extra is not None:
        trained_on = marks(extra, range(count(extra)), terms) - marks(samples, parts.held_out, terms)
        chain = replace(chain, trained=write_part(chain.trained_path(staged), b"".join(sorted(trained_on))))
    trained = train_heads(Task(chain, paths, samples, parts, terms), progress, extra=extra)
    chain = replace(chain, segments=with_shares(chain.segments, trained.candidates.times.segments))
    chain, accelerator, notes = _compile(plan, staged, chain, paths, first, progress)
    write_repository(staged, chain, accelerator)
    release = _publish_first(plan, staged, chain, trained, total)
    found_out = report_of(chain, trained, terms, release, whole)
    chain, seconds = _settle_mode(plan, staged, chain, trained, samples, progress)
    if plan.plain:
        write_plain(staged, chain, backbone.path, accelerator)
    notes = (*of_reading, *notes)
    if plan.deployed is not None:
        plan.deployed.hand_over(staged, chain, plain=plan.plain)
        notes = (*notes, *plan.deployed.notes(chain))
    return Exported(chain, len(found), difference, min(CHECKED, total), found_out, release, seconds, notes)


def _load(plan: ExportPlan, work: Path) -> tuple[Backbone, dict[str, np.ndarray], tuple[str, ...]]:
    """The backbone tells which columns of the samples to read, and is tried on them before it is accepted.

    Returns:
        Both, and what to know of how they were read.
    """
    found: dict[str, np.ndarray] = {}

    def read(names: Sequence[str] | None) -> dict[str, np.ndarray]:
        found.update(load_samples(plan.samples, names=names, decode=plan.decode))
        return found

    signature = plan.deployed.signature if plan.deployed else UNKNOWN
    backbone = load_backbone(
        plan.backbone, read, work, numbers=plan.terms.numbers, outputs=plan.outputs, signature=signature
    )
    if plan.deployed is not None:
        plan.deployed.check(backbone.inputs, backbone.outputs)
    samples = check_samples(found, backbone.inputs)
    _check_shapes(backbone, samples)
    notes = (*filter(None, [backbone.note, _shape_note(samples)]), *cast_notes(found, backbone.inputs))
    return prepare(backbone, samples), samples, notes


def _write_chain(plan: ExportPlan, backbone: Backbone, chosen: list[CutPoint], staged: Path) -> Chain:
    chain = Chain(
        model=plan.name,
        mode=plan.mode or "inline",
        inputs=backbone.inputs,
        output=backbone.output,
        segments=(),
        epsilon=plan.terms.epsilon,
        delta=plan.terms.delta,
        agreement=plan.terms.agreement,
        families=plan.terms.families,
        memory=plan.terms.memory,
        p99=plan.terms.p99,
        views=plan.terms.views,
        max_batch=backbone.max_batch or plan.max_batch,
        engine=plan.engine,
    )
    if backbone.tail is not None:
        chain = replace(chain, outputs=backbone.tail.outputs, tail=backbone.tail.write(chain.tail_path(staged)))
    if plan.deployed is not None:
        chain = replace(chain, labels=plan.deployed.write_labels(staged, chain))
    segments = write_segments(cut(backbone, chosen), lambda index: chain.segment_path(staged, index).parent)
    return replace(chain, segments=segments)


def _extra(plan: ExportPlan, backbone: Backbone) -> dict[str, np.ndarray] | None:
    if plan.extra is None:
        return None
    names = [tensor.name for tensor in backbone.inputs]
    decode = None if plan.extra.suffix in ARRAYS else plan.decode
    extra = check_samples(load_samples(plan.extra, names=names, decode=decode), backbone.inputs)
    _check_shapes(backbone, extra)
    return extra


def _check_shapes(backbone: Backbone, samples: Samples) -> None:
    """Runs a sample of each shape: that dimensions may vary does not say how far."""
    failed, errors = 0, list[SamplesError]()
    for alike in batches(samples, np.arange(count(samples)), count(samples)):
        one = rows_at(samples, alike[:1])
        try:
            scores = backbone.run(one)
        except Exception as error:  # ONNX Runtime's classes have no root of their own
            failed += len(alike)
            errors.append(SamplesError(f"{_shapes(one)} ({shorten(error)})"))
        else:
            backbone.check_width(scores)
    if errors:
        total = count(samples)
        raise SamplesError(f"The backbone can't take {failed} of {total} samples, such as {errors[0]}; leave them out.")


def _shapes(rows: Samples) -> str:
    return ", ".join(f"{name!r} {list(each.shape[1:])}" for name, each in rows.items())


def _shape_note(samples: Samples) -> str | None:
    """What to know of samples that differ in shape."""
    if not any(map(is_ragged, samples.values())):
        return None
    return (
        f"Samples differ in shape: times, also of budgets, are those of one of median size, {_shapes(few(samples, 1))}."
    )


def _compile(
    plan: ExportPlan,
    staged: Path,
    chain: Chain,
    paths: Sequence[Path],
    samples: Mapping[str, np.ndarray],
    progress: Progress,
) -> tuple[Chain, Accelerator | None, tuple[str, ...]]:
    """Has TensorRT run the segments, if it is to; returns the chain, how, and what to know of it."""
    if chain.engine != "tensorrt":
        return chain, None, ()
    progress("Make engines", 0)
    accelerator = Accelerator.of(chain, paths, samples, (plan.engines or workspace(plan.repository)).absolute())
    chain, note = compiled(staged, chain, accelerator)
    progress("Make engines", 1)
    return chain, accelerator, (note, f"Times are ONNX Runtime's on {measured_on(chain)} here: {MEASURE_THERE}")


def _publish_first(plan: ExportPlan, staged: Path, chain: Chain, trained: Trained, samples: int) -> Release | None:
    if not isinstance(trained, Certified):
        return None
    window = Window(plan.samples.name, samples)
    return publish(staged, chain, Draft(trained.heads, trained.certificate, window, "export"))


def _settle_mode(
    plan: ExportPlan,
    staged: Path,
    chain: Chain,
    trained: Trained,
    samples: Mapping[str, np.ndarray],
    progress: Progress,
) -> tuple[Chain, dict[str, float]]:
    """Takes the mode asked for, or inline where heads keep state, or else the faster one."""
    heads = trained.heads.values() if isinstance(trained, Certified) else ()
    if plan.mode is not None or any(map(has_state, heads)):
        return chain, {}
    mode, seconds = faster_mode(staged, chain, samples, progress)
    chain = replace(chain, mode=mode)
    write_repository(staged, chain)
    return chain, seconds
