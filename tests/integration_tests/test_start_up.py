"""Commands and imports load what they need, and no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "results" / "quickstart.parquet"


def loaded(code: str, *arguments: str) -> set[str]:
    """The modules of a Python process at its end."""
    script = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('\\n', *sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.splitlines()[-1].split())


def test_a_tokenizer_needs_little_beside_torch() -> None:
    found = loaded("import gsq; gsq.Tokenizer")
    assert "torch" in found and "gsq.tokenizer.tokenizer" in found
    assert not found & {"scipy", "triton", "sympy", "pandas", "matplotlib", "pyarrow"}


@pytest.mark.parametrize("verb", ["fit", "plot"])
def test_fits_and_figures_do_without_torch_and_scipy_stats(verb: str, tmp_path: Path) -> None:
    output = [] if verb == "fit" else ["--output", str(tmp_path / "figure.png")]
    found = loaded("from gsq.cli.main import main; main()", verb, str(QUICKSTART), *output)
    assert "gsq.analysis.fitting.fit" in found
    assert not found & {"torch", "scipy.stats", "scipy.spatial", "matplotlib.pyplot"}
    assert ("matplotlib" in found) == (verb == "plot")


def test_a_run_trains_without_what_compiles_and_what_reads_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GSQ_RUNS", str(tmp_path / "runs"))
    settings = ("steps=2", "batch_size=2", "loss.discriminator_start=0", "evaluation.num_images=4")
    words = [word for setting in settings for word in ("--set", setting)]
    found = loaded("from gsq.cli.main import main; main()", "train", "cpu-tiny", *words)
    assert list((tmp_path / "runs").glob("*/*/attempts/*/metrics*")), found
    assert {"gsq.training.trainer", "gsq.evaluation.evaluate"} <= found
    # The first of these takes as long to import as torch, and torch's own optimizers import it.
    assert not found & {"torch._dynamo", "sympy", "pandas", "pyarrow", "matplotlib", "scipy.stats"}


def test_a_verb_does_without_the_others() -> None:
    found = loaded("from gsq.cli.main import main; main()", "--version", "schema", "cell")
    assert {one for one in found if one.startswith("gsq.cli.")} >= {"gsq.cli.main", "gsq.cli.schema"}
    assert not found & {"gsq.cli.train", "gsq.cli.sweeps"}
    # What a word that is none of them may mean takes all.
    assert loaded("from gsq.cli.main import main; main()", "schem") > {"gsq.cli.train", "gsq.cli.sweeps"}
