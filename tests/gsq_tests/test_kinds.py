"""The registry of quantizers: one file adds a kind to config, plans, costs and training."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import gsq
from gsq.config.flops import cost
from gsq.config.kinds import Kind, declared, kinds, users_of
from gsq.config.overrides import Overrides, differences, load_config, override, to_dict
from gsq.config.presets import preset
from gsq.config.quantizer import QuantizerConfig
from gsq.config.signature import signature
from gsq.errors import UserError
from gsq.models.autoencoder import Autoencoder
from gsq.quantizers import Quantizer, build_quantizer
from gsq.runs.reevaluate import read_finished
from gsq.sweeps.planning.cells import make_plan
from gsq.sweeps.spec.sweep import load_spec
from gsq.training.optim import build_optimizer

VALID: dict[str, dict[str, Any]] = {
    "gsq": {"groups": 4},
    "vq": {},
    "rvq": {"depth": 3},
    "fsq": {"groups": 16, "codebook_size": 5},
    "lfq": {"groups": 16, "codebook_size": 2},
    "bsq": {"groups": 16, "codebook_size": 2},
    "simvq": {"groups": 4},
    "ibq": {"groups": 4},
    "diveq": {"groups": 4},
}
# Another value of each option than its default, and what makes it matter where its kind has it.
OTHER: dict[str, dict[str, Any]] = {
    "quantizer.depth": {"depth": 3},
    "quantizer.levels": {"quantizer.levels": (5,) * 16},
    "quantizer.init": {"quantizer.init": "uniform"},
    "quantizer.lookup_norm": {"quantizer.lookup_norm": "none"},
    "quantizer.lookup_precision": {"quantizer.lookup_precision": "float32"},
    "quantizer.decoder_input": {"quantizer.decoder_input": "raw"},
    "quantizer.loss_row": {"quantizer.loss_row": "raw"},
    "quantizer.commitment_weight": {"quantizer.commitment_weight": 0.5},
    "quantizer.codebook_update": {"quantizer.codebook_update": "ema"},
    "quantizer.codebook_decay": {"quantizer.codebook_decay": 0.9, "quantizer.codebook_update": "ema"},
    "quantizer.entropy_weight": {"quantizer.entropy_weight": 0.1},
    "quantizer.gradient": {"quantizer.gradient": "rotation"},
    "quantizer.soft_temperature": {"quantizer.soft_temperature": 0.5, "quantizer.gradient": "soft"},
    "quantizer.soft_decay": {"quantizer.soft_decay": 0.9, "quantizer.gradient": "soft"},
    "quantizer.codebooks": {"quantizer.codebooks": "per_group"},
    "quantizer.restart_below": {"quantizer.restart_below": 1.0},
    "quantizer.kmeans_steps": {"quantizer.kmeans_steps": 2},
    "quantizer.codebook_weight": {"quantizer.codebook_weight": 0.5},
    "quantizer.direction_noise": {"quantizer.direction_noise": 0.001},
}
TABLES = ["gsq", "vq", "rvq"]
TRAINED = [*TABLES, "ibq", "diveq"]
USERS = {
    "depth": ["rvq"],
    "levels": ["fsq"],
    "init": TRAINED,
    "lookup_norm": TABLES,
    "lookup_precision": [*TABLES, "simvq", "diveq"],
    "decoder_input": ["gsq"],
    "loss_row": ["gsq"],
    "commitment_weight": [*TABLES, "lfq", "bsq", "simvq"],
    "codebook_update": TABLES,
    "codebook_decay": TRAINED,
    "entropy_weight": ["gsq", "vq", "lfq", "bsq", "ibq"],
    "gradient": [*TABLES, "simvq"],
    "soft_temperature": [*TABLES, "simvq"],
    "soft_decay": [*TABLES, "simvq"],
    "codebooks": ["gsq", "simvq", "ibq", "diveq"],
    "restart_below": TRAINED,
    "kmeans_steps": TRAINED,
    "codebook_weight": ["ibq"],
    "direction_noise": ["diveq"],
}


def test_every_kind_is_declared_and_built() -> None:
    assert list(kinds())[:6] == ["gsq", "vq", "rvq", "fsq", "lfq", "bsq"]
    for name, kind in kinds().items():
        config = override(preset("cpu-tiny"), {"quantizer": name, **VALID[name]})
        built = build_quantizer(config)
        assert type(built).__name__ == kind.cls and type(built).__module__ == f"gsq.quantizers.{kind.module}"
        assert built.index_sizes == config.index_sizes
        assert sum(p.numel() for p in built.parameters()) == config.codebook_parameters


def test_what_config_reads_is_what_the_file_declares() -> None:
    for file in (Path(gsq.__file__).parent / "quantizers").glob("*.py"):
        if found := declared(file):
            module = sys.modules[f"gsq.quantizers.{file.stem}"]
            assert [kind.name for kind in found] == [kind.name for kind in module.KINDS]


@pytest.mark.parametrize(
    ("name", "words"),
    [("gqs", "'gsq'"), ("RVQ", "'rvq'"), ("rvg", "'rvq'"), ("turbovq", "gsq, vq, rvq, fsq, lfq, bsq")],
)
def test_an_unknown_kind_is_refused_with_the_nearest(name: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        override(preset("cpu-tiny"), {"quantizer": name})
    assert "quantizer.kind" in str(raised.value) and repr(name) in str(raised.value) and words in str(raised.value)


def test_options_and_the_kinds_that_use_them() -> None:
    options = {f.name for f in dataclasses.fields(QuantizerConfig)} - {"kind", "groups", "codebook_size", "options"}
    assert {key: users_of(key) for key in options} == USERS


@pytest.mark.parametrize("name", VALID)
@pytest.mark.parametrize("key", OTHER)
def test_an_ignored_option_is_refused_wherever_it_is_written(key: str, name: str) -> None:
    base, short = preset("cpu-tiny"), key.split(".")[1]
    changes = {"quantizer": name, **VALID[name], **OTHER[key]}
    if name in USERS[short]:
        # codebook_decay needs ema or restarts, and these kinds have restarts alone.
        if key == "quantizer.codebook_decay" and name in ("ibq", "diveq"):
            changes = {**changes, "quantizer.codebook_update": "gradient", "quantizer.restart_below": 1.0}
        if not (key == "quantizer.lookup_norm" and name != "gsq"):
            assert override(base, changes).quantizer.kind == name
        return
    written: list[Callable[[], object]] = [
        lambda: override(base, changes),
        lambda: load_spec({"name": "s", "base": "cpu-tiny", "set": changes}),
        lambda: make_plan(load_spec({"name": "s", "base": "cpu-tiny", "cases": [changes]})),
        lambda: make_plan(load_spec({"name": "s", "base": "cpu-tiny", "axes": {k: [v] for k, v in changes.items()}})),
    ]
    for attempt in written:
        with pytest.raises(UserError) as raised:
            attempt()
        words = str(raised.value)
        assert "quantizer." in words and f"quantizer.kind {name}" in words and "leave it out" in words


def test_an_option_that_another_option_switches_off_is_refused() -> None:
    with pytest.raises(UserError, match=r"quantizer\.codebook_decay: 0\.9 .*only for ema; leave it out.* 0\.99"):
        override(preset("cpu-tiny"), {"quantizer.codebook_decay": 0.9})


def test_set_is_refused_for_the_cells_that_ignore_it() -> None:
    axes = {"quantizer": ["gsq", "rvq"]}
    spec = load_spec({"name": "s", "base": "cpu-tiny", "set": {"quantizer.decoder_input": "raw"}, "axes": axes})
    with pytest.raises(UserError, match=r"quantizer=rvq.*quantizer\.decoder_input: 'raw'.*rvq.*gsq.*'normalised'"):
        make_plan(spec)


def test_what_a_preset_sets_may_stay_where_another_kind_is_chosen() -> None:
    """The authors' presets say raw, and nobody wrote that for this kind."""
    spec = load_spec({"name": "s", "base": "authors-f8", "axes": {"quantizer": ["gsq", "vq", "rvq"]}})
    make = Overrides(spec.base, spec.preset)
    assert [make(axes).quantizer.decoder_input for axes in spec.candidates()] == ["raw"] * 3
    with pytest.raises(UserError, match=r"quantizer\.decoder_input: 'raw'.*quantizer\.kind rvq"):
        make({"quantizer": "rvq", "quantizer.decoder_input": "raw"})


def test_what_a_base_file_sets_was_written(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("quantizer: {decoder_input: raw}")
    base = {"name": "s", "base": str(tmp_path / "base.yaml")}
    for more in ({"set": {"quantizer": "vq"}}, {"axes": {"quantizer": ["vq"]}}):
        with pytest.raises(UserError, match=r"quantizer\.decoder_input: 'raw'.*quantizer\.kind vq"):
            make_plan(load_spec({**base, **more}))
    assert load_spec({**base, "set": {"groups": 4}}).base.quantizer.decoder_input == "raw"


def test_a_finished_run_with_an_ignored_option_always_loads(tmp_path: Path) -> None:
    base = preset("cpu-tiny")
    quantizer = QuantizerConfig("rvq", codebook_size=16, decoder_input="raw", loss_row="raw", codebook_decay=0.5)
    config = dataclasses.replace(base, quantizer=quantizer)
    (tmp_path / "attempts/1").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    (tmp_path / "attempts/1/model.safetensors").touch()
    assert read_finished(tmp_path)[0] == config
    assert Overrides(base).restore(differences(config, base)) == config
    with pytest.raises(UserError, match="no meaning"):
        load_config(to_dict(config))


def test_no_weight_decay_for_what_a_quantizer_names() -> None:
    model = Autoencoder(preset("cpu-tiny"))
    decayed, kept = build_optimizer([model], preset("cpu-tiny").optimizer).param_groups
    assert any(p is model.quantizer.codebook for p in kept["params"])
    assert sum(map(len, (decayed["params"], kept["params"]))) == len(list(model.parameters()))

    class Named(Quantizer):
        undecayed = ("part",)

        def __init__(self) -> None:
            super().__init__(4, 1, (2,))
            self.part, self.other = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)

    own = Named()
    decayed, kept = build_optimizer([own], preset("cpu-tiny").optimizer).param_groups
    assert [p is own.other.weight for p in decayed["params"]] == [True] and len(kept["params"]) == 3


TOY = '''"""A frozen codebook seen through a learned map (SimVQ, arXiv 2411.02038), for a test."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gsq.config.kinds import Kind, Option
from gsq.config.run import RunConfig
from gsq.quantizers.base import Quantizer, QuantizerOutput, look_up, straight_through

KINDS = (
    Kind(
        "mappedvq",
        "MappedVQ",
        ("commitment_weight",),
        own=(Option("spread", 1.0, lambda value: "" if value > 0 else "must be above 0"),),
        parameters=lambda q, latent_dim: latent_dim**2,
        lookup_macs=lambda q, latent_dim: q.codebook_size * latent_dim,
        check=lambda q: "" if q.groups == 1 else f"quantizer.groups: {q.groups}, but mappedvq has one group; use 1",
    ),
)


class MappedVQ(Quantizer):
    shared_codebook = True
    undecayed = ("map",)

    def __init__(self, latent_dim: int, size: int, spread: float, weight: float) -> None:
        super().__init__(latent_dim, 1, (size,))
        self.weight = weight
        self.register_buffer("rows", spread * torch.randn(size, latent_dim))
        self.map = nn.Linear(latent_dim, latent_dim, bias=False)

    @classmethod
    def build(cls, config: RunConfig) -> Self:
        q = config.quantizer
        return cls(config.model.latent_dim, q.codebook_size, q.option("spread"), q.commitment_weight)

    def _quantize(self, latent: Tensor) -> QuantizerOutput:
        vectors, rows = latent.permute(0, 2, 3, 1), self.map(self.rows)
        indices = look_up(vectors, rows, "exact")
        chosen = F.embedding(indices, rows)
        loss = F.mse_loss(chosen, vectors.detach()) + self.weight * F.mse_loss(vectors, chosen.detach())
        quantized = straight_through(chosen, vectors).permute(0, 3, 1, 2).contiguous()
        return QuantizerOutput(quantized, indices[:, None], loss)

    def _decode(self, indices: Tensor) -> Tensor:
        return F.embedding(indices[:, 0], self.map(self.rows)).permute(0, 3, 1, 2).contiguous()
'''


@pytest.fixture(scope="module")
def with_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole package, and one file more."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(Path(gsq.__file__).parent, folder / "gsq", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "gsq/quantizers/mappedvq.py").write_text(TOY)
    return folder


def ran(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "GSQ_RUNS": str(folder / "runs")}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=folder, capture_output=True, text=True)


def test_one_file_adds_a_kind(with_toy: Path) -> None:
    tiny = [
        "steps=2",
        "batch_size=2",
        "codebook_size=16",
        "evaluation.num_images=4",
        "evaluation.batch_size=4",
        "image_size=16",
    ]
    arguments = [part for setting in (*tiny, "quantizer=mappedvq", "quantizer.spread=0.5") for part in ("-s", setting)]
    done = ran(with_toy, "-m", "gsq.cli", "train", "cpu-tiny", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    written = yaml.safe_load(next((with_toy / "runs").glob("*/*/config.yaml")).read_text())
    assert written["quantizer"]["kind"] == "mappedvq" and written["quantizer"]["spread"] == 0.5


def test_plans_know_an_added_kind_without_torch(with_toy: Path) -> None:
    done = ran(
        with_toy,
        "-c",
        "import sys\n"
        "from gsq.config.flops import cost\n"
        "from gsq.config.overrides import override\n"
        "from gsq.config.presets import preset\n"
        "config = override(preset('cpu-tiny'), {'quantizer': 'mappedvq'})\n"
        "plain = preset('cpu-tiny')\n"
        "print(config.codebook_parameters, config.index_sizes, cost(plain).parameters - cost(config).parameters)\n"
        "print(cost(plain).lookup_flops == cost(config).lookup_flops, 'torch' in sys.modules)\n"
        "from gsq.config.signature import signature\n"
        "print(signature(plain, 'f00d', {}))\n",
    )
    plain = preset("cpu-tiny")
    expected = f"256 (256,) {plain.codebook_parameters - 256}\nTrue False\n{signature(plain, 'f00d', {})}\n"
    assert done.stdout == expected, done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["quantizer=mappedvq", "groups=2"], ["quantizer.groups: 2", "use 1"]),
        (["quantizer=mappedvq", "quantizer.spread=-1"], ["quantizer.spread: -1.0", "above 0"]),
        (["quantizer.spread=2"], ["quantizer.spread: 2.0", "quantizer.kind gsq", "only for mappedvq"]),
        (
            ["quantizer=mappedvq", "quantizer.decoder_input=raw"],
            ["quantizer.decoder_input", "mappedvq", "only for gsq"],
        ),
        (["quantizer=mappedvg"], ["'mappedvq'"]),
    ],
)
def test_an_added_kind_is_checked_as_the_others(with_toy: Path, settings: list[str], words: list[str]) -> None:
    arguments = [part for setting in settings for part in ("-s", setting)]
    done = ran(with_toy, "-m", "gsq.cli", "train", "cpu-tiny", "--dry-run", *arguments)
    said = " ".join(done.stderr.split())
    assert done.returncode == 2 and all(word in said for word in words), said


def test_files_that_declare_wrongly(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("import torch\n\nKINDS = 'gsq'\n")
    with pytest.raises(TypeError, match=r"bad\.py: KINDS .*tuple of Kind"):
        declared(file)
    file.write_text("import torch\n")
    assert declared(file) == ()


def test_the_look_up_counts_each_row_of_each_group() -> None:
    config = override(preset("cpu-tiny"), {"quantizer": "rvq", "depth": 3})
    assert cost(config).lookup_flops == 2.0 * 300 * 8 * 64 * 3 * 256 * 16
    assert cost(override(preset("cpu-tiny"), {"quantizer": "lfq", **VALID["lfq"]})).lookup_flops == 0
    assert Kind("k", "K", ()).position_macs(config.quantizer, 16) == 0
