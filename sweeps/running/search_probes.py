"""Generation probes of a search: all trials have one protocol, and runs that another sweep finished are probed, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gsq.data.sources import manifest
from gsq.errors import UserError
from gsq.probe.protocol import probe_protocol
from gsq.records.folder import RunFolder
from gsq.records.read import read_results
from gsq.sweeps.planning.cells import Cell, CellMaker
from gsq.sweeps.planning.folder import SweepFolder, absolute
from gsq.sweeps.running.evaluators import Request, WorkerDied, evaluate_in_processes
from gsq.sweeps.spec.search_space import PROBES

if TYPE_CHECKING:
    from optuna import Study

Probes = Mapping[tuple[str, int], Sequence[dict[str, Any]]]


def study_probe(study: Study, cell: Cell, make: CellMaker) -> str:
    """The probe protocol of a study, which the first cell's config sets; empty without a probe. Of several image sizes,
    the first counts."""
    wanted, evaluation, data = study.user_attrs.get("probe_protocol"), cell.config.evaluation, cell.config.data
    if wanted is None:
        files = make.manifests.get(data) or manifest(data)
        rules = probe_protocol(evaluation, data, files, (evaluation.resolutions or (None,))[0])
        wanted = rules.hash if rules else ""
        study.set_user_attr("probe_protocol", wanted)
    return str(wanted)


def probe_of(cell: Cell, probes: Probes, protocol: str, wanted: str) -> dict[str, Any]:
    """The probe of a run's last step by its evaluation's and its own protocol; empty without one."""
    found = probes.get((protocol, cell.config.train.steps), [])
    return next((one for one in found if one["probe_protocol"] == wanted), {})


def probe_finished(folder: SweepFolder, cell: Cell, objectives: Sequence[str], wanted: str, here: bool) -> str:
    """Probe a finished run on this machine, if objectives need the probe and the run has none by ``wanted``.

    here: false where runs are trained elsewhere, so that this machine may be a login node. Returns why the run stays
    without a probe, or an empty string.
    """
    if not {*objectives} & {*PROBES}:
        return ""
    run = RunFolder.of(folder.runs, cell.signature)
    if any(one["probe_protocol"] == wanted for every in read_results(run).probes.values() for one in every):
        return ""
    evaluation = cell.config.evaluation
    if not here:
        steps = f" --probe-steps {evaluation.probe_steps}" if evaluation.probe_steps else ""
        return (
            f"its run was trained before, without the probe {wanted} of this search; gsq evaluate SWEEP --probe "
            f"{evaluation.probe}{steps} of the sweep that trained it makes that"
        )
    request = Request(run.path, asdict(evaluation), asdict(absolute(cell.config).data))
    try:
        ((_, _, problem),) = evaluate_in_processes({cell.signature: request}, 1)
    except (UserError, WorkerDied) as error:
        return f"its probe failed: {error}"
    return problem or ""
