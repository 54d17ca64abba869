"""RunConfig: everything that defines one run, as frozen dataclasses without torch.

The *science* sections (model to data) decide the result and enter the signature; ``evaluation`` and ``execution`` do
not. A later field carries ``metadata={"legacy": value}``: the value that reproduces the earlier behaviour, which
signatures leave out. ``metadata={"signed": False}`` keeps a field out of signatures for good.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from gsq.config.axes import bits
from gsq.config.model import ModelConfig
from gsq.config.objective import DiscriminatorConfig, LossConfig
from gsq.config.parts import PATH, Options, choose_or_own, is_path, load
from gsq.config.probe import check_probe
from gsq.config.quantizer import QuantizerConfig
from gsq.config.schedule import OptimizerConfig, TrainConfig
from gsq.errors import UserError, at_least, choose, choose_each, positive


@dataclass(frozen=True)
class DataConfig:
    """The images. A fingerprint of their content enters the signature; their place does not."""

    kind: str = "photos"
    """photos (colour photographs that come with scikit-image), image_folder, webdataset (.tar shards) or huggingface
    (.parquet or .arrow shards, such as a downloaded data set, what save_to_disk wrote, or a cache folder); or a source
    of your own, package.module:Name (``gsq new data``)."""
    path: str = field(default="", metadata={"signed": False})
    """A folder of images or of shards. Subfolders `train` and `val` with images (or shards with both words in their
    paths) are the split. `$NAME` and `${NAME}` are variables of the shell."""
    image_size: int = 256
    """Height and width of a training image, pixels."""
    min_crop: float = 1.0
    """Smallest side of a random crop over image_size (before it is resized to image_size)."""
    max_crop: float = 4.0
    """Largest side of a random crop over image_size, limited by the image itself."""
    flip: bool = True
    """Random horizontal flips."""
    validation_share: float = 0.1
    """Share of the images held out, by a hash of their content, if there is no train and val."""
    image_column: str = field(default="", metadata={"signed": False})
    """huggingface: column of the images ({bytes, path}, or binary), if a shard has several."""
    max_broken: float = field(default=0.1, metadata={"signed": False})
    """Largest share of broken images, which gsq names and leaves out; more are an error."""
    options: dict[str, Any] = field(default_factory=Options, metadata={"legacy": Options()})
    """Keys of a data source of your own (`kind: package.module:Name`), as it declares them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", Options(self.options))
        choose_or_own("data", self, kind=("photos", "image_folder", "webdataset", "huggingface"))
        positive("data.image_size", self.image_size, 8)
        if not 0 < self.min_crop <= self.max_crop < float("inf"):
            raise UserError(f"data.min_crop: {self.min_crop} must be above 0 and at most data.max_crop {self.max_crop}")
        if not 0 < self.validation_share < 1:
            raise UserError(f"data.validation_share: {self.validation_share} must be between 0 and 1")
        if not 0 <= self.max_broken <= 1:
            raise UserError(f"data.max_broken: {self.max_broken} must be between 0 and 1")
        if self.kind != "photos" and not self.path and not is_path(self.kind):
            what = "images" if self.kind == "image_folder" else "shards"
            raise UserError(f"data.path: missing; data.kind {self.kind} needs the folder of {what}")


# Features of an image under each built-in evaluation.features.
FEATURE_DIMS = {
    "efficientnet_lite0": 320,
    "inception": 2048,
    "inception_pytorch_fid": 2048,
    "inception_clean_fid": 2048,
}


# What evaluation.distances can name.
DISTANCES = ("fd_dinov2", "sfid", "cmmd", "precision_recall")


# Neighbours that precision and recall look at (gsq.metrics.manifold).
NEIGHBOURS = 3
# Fewer held-out images say next to nothing about a model, whatever the metric.
FEWEST_IMAGES = 50


@dataclass(frozen=True)
class EvaluationConfig:
    """The evaluation protocol without the data set (see gsq.evaluation.protocol.Protocol)."""

    features: str = "efficientnet_lite0"
    """efficientnet_lite0 (works offline); inception (2015-12-05, images resized as torch-fidelity does),
    inception_pytorch_fid or inception_clean_fid (their resizes), weights to be provided; or package.module:function,
    which returns a torch module: (B, 3, H, W) in [-1, 1] -> (B, k)."""
    num_images: int = 512
    """Validation images: fixed crops of photos, else at most as many as there are."""
    resolutions: tuple[int, ...] = ()
    """Sizes at which images are encoded and compared, pixels, each a protocol with a row of its own; empty takes
    data.image_size."""
    metrics: tuple[str, ...] = ()
    """Metrics of your own, package.module:Name each: what it returns is called with reconstructions and originals,
    (B, 3, H, W) in [-1, 1], and returns a value for each image; the mean is a column of the table (``gsq new
    metric``)."""
    distances: tuple[str, ...] = ()
    """Measure these besides rfid: fd_dinov2, sfid, cmmd (weights to be provided; columns of the same names), and
    precision_recall (columns precision and recall, in `features`)."""
    folder: str = ""
    """Compare only the held-out images below this folder, such as a class: n01440764, or val/n01440764."""
    lpips: str = "none"
    """Measure LPIPS too: vgg or alex (weights to be provided), or none."""
    reconstruction_dtype: str = "float32"
    """float32, or bfloat16: reconstruct under autocast."""
    allow_small: bool = False
    """Allow an rfid over too few images: Inception features on fewer than 2,049 (their covariance is singular, and rfid
    biased upwards), or a data set that holds out fewer than 50 (which a num_images below 50 allows, too)."""
    batch_size: int = 16
    every: int = 0
    """Steps between evaluations; 0 evaluates only at the end."""
    probe: str = field(default="none", metadata={"legacy": "none"})
    """Generation probe of the final weights: none, or a small transformer (tiny, small, base) trained on the indices of
    the training images, which measures how well they compress (prior_bits_per_pixel) and generate (gfid)."""
    probe_steps: int = field(default=0, metadata={"legacy": 0})
    """Steps of the probe; 0: those of its size (200, 2000, 20000)."""
    probe_images: int = field(default=0, metadata={"legacy": 0})
    """Training images of the probe; 0: all, at most 50,000 (photos: 1,024 crops)."""
    probe_seed: int = field(default=0, metadata={"legacy": 0})
    """Seed of the probe's weights, batches and samples."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "resolutions", tuple(self.resolutions))
        object.__setattr__(self, "metrics", tuple(self.metrics))
        object.__setattr__(self, "distances", tuple(self.distances))
        choose_or_own("evaluation", self, features=FEATURE_DIMS)
        for name in self.metrics:
            if not is_path(name):
                raise UserError(f"evaluation.metrics: {name!r} is not a metric; write {PATH}")
        for name in self.distances:
            choose("evaluation.distances", name, DISTANCES)
        if len(set(self.distances)) != len(self.distances):
            raise UserError(f"evaluation.distances: {list(self.distances)} names one twice")
        choose_each("evaluation", self, lpips=("none", "vgg", "alex"), reconstruction_dtype=("float32", "bfloat16"))
        at_least("evaluation", self, 2, "num_images")
        at_least("evaluation", self, 1, "batch_size")
        at_least("evaluation", self, 0, "every")
        check_probe(self)
        for size in self.resolutions:
            positive("evaluation.resolutions", size, 8)
        if len(set(self.resolutions)) != len(self.resolutions):
            raise UserError(f"evaluation.resolutions: {list(self.resolutions)} names a size twice")
        self.check_images(self.num_images)

    def images(self, data: DataConfig, held_out: int) -> int:
        """Number of images compared: num_images, but at most ``held_out`` unless the data are photos, which give
        any number of crops."""
        return self.num_images if data.kind == "photos" else min(self.num_images, held_out)

    def check_images(self, count: int) -> None:
        """Raise UserError if ``count`` images are too few for an rfid: fewer than FEWEST_IMAGES although num_images
        asks for more, or no more than Inception has features."""
        if "precision_recall" in self.distances and count <= NEIGHBOURS:
            raise UserError(
                f"evaluation.distances: precision_recall needs more than {NEIGHBOURS} images, one for each neighbour; "
                f"there are {count}"
            )
        if self.allow_small:
            return
        dim = FEATURE_DIMS.get(self.features, 0)
        if self.features.startswith("inception") and count < dim + 1:
            raise UserError(
                f"evaluation.num_images: {count} images are fewer than the {dim} features of '{self.features}' + 1, so "
                f"that rfid would be biased upwards; use at least {dim + 1}, or allow it with evaluation.allow_small "
                "(gsq evaluate --allow-small) and look at kid"
            )
        if count < FEWEST_IMAGES <= self.num_images:
            raise UserError(
                f"evaluation.num_images: {self.num_images} asked for, but the data set holds out {count}, too few to "
                f"compare models by: an rfid over {count} images is mostly noise. Hold out at least {FEWEST_IMAGES} "
                "(more images, a larger data.validation_share or val folder), or allow it with evaluation.allow_small: "
                "true (gsq evaluate --allow-small)"
            )


@dataclass(frozen=True)
class ExecutionConfig:
    """How a run is carried out. Nothing here changes the result."""

    device: str = "auto"
    """auto (cuda if available), cpu or cuda."""
    threads: int = 1
    """CPU threads."""
    micro_batch: int = 0
    """Images of one forward and backward pass on one device (gradient accumulation); 0: a device's whole share."""
    channels_last: bool = False
    """Channels-last memory layout of images and weights: faster convolutions on most GPUs. On a CPU, GroupNorm is
    less exact in it (1e-4 where a mean is ten times its spread)."""
    compile: bool = False
    """torch.compile the model and the discriminator: faster after a slow start (needs a C++ compiler on a CPU)."""
    data_workers: int = 0
    """Threads that prepare batches ahead; 0: none on a CPU, on a GPU one for each core (at most 16)."""
    stage_data: str = ""
    """Folder on the node's own disk, such as $TMPDIR or $SLURM_TMPDIR (variables are those of the job), to which the
    images are copied once for all processes and jobs of the node; empty: none."""
    image_cache_gb: float = 8.0
    """Most gigabytes of decoded images on a machine's disk, shared by all its processes; 0: none. They are below
    stage_data, or else $GSQ_CACHE (default ~/.cache/gsq)."""
    keep_checkpoint: bool = False
    """Keep the last checkpoint of a finished run (with the schedule wsd, the one before the decay), so that a run with
    more steps can start from it."""
    keep_at: tuple[int, ...] = ()
    """Steps of further checkpoints to keep. A plan sets them where other cells' learning rates begin to decay (schedule
    wsd), so that these cells can start from them."""
    log_every: int = 10
    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    def __post_init__(self) -> None:
        choose_each("execution", self, device=("auto", "cpu", "cuda"))
        at_least("execution", self, 0, "micro_batch", "data_workers", "image_cache_gb")
        at_least("execution", self, 1, "threads", "log_every", "checkpoint_every")
        object.__setattr__(self, "keep_at", tuple(self.keep_at))
        for step in self.keep_at:
            positive("execution.keep_at", step, 1)


@dataclass(frozen=True)
class RunConfig:
    """One run. ``RunConfig()`` is the paper's f = 8 model; see gsq.config.presets for others.

    Raises UserError for an impossible combination.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    data: DataConfig = field(default_factory=DataConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)

    def __post_init__(self) -> None:
        latent_dim, groups = self.model.latent_dim, self.quantizer.groups
        if latent_dim % groups:
            divisors = [g for g in range(1, latent_dim + 1) if latent_dim % g == 0]
            raise UserError(
                f"quantizer.groups: {groups} does not divide model.latent_dim {latent_dim}; allowed are "
                f"{', '.join(map(str, divisors))} (in a sweep: where: latent_dim % groups == 0)"
            )
        quantizer = self.quantizer
        if quantizer.lookup_norm in ("l2", "l1") and self.group_dim == 1:
            raise UserError(
                f"quantizer.lookup_norm: '{quantizer.lookup_norm}' at group dimension 1 leaves two points, whatever "
                "the codebook_size; use auto, none or clip"
            )
        if not is_path(quantizer.kind) and quantizer.declared.per_channel and groups != latent_dim:
            raise UserError(
                f"quantizer.groups: {groups}, but {quantizer.kind} quantizes each channel: use model.latent_dim "
                f"{latent_dim}"
            )
        if not is_path(quantizer.kind) and self.group_dim < (least := quantizer.declared.least_group_dim):
            raise UserError(
                f"quantizer.groups: {groups} of model.latent_dim {latent_dim} have {self.group_dim} channel each, but "
                f"{quantizer.kind} needs {least}; use at most {latent_dim // least} groups"
            )
        if quantizer.levels and len(quantizer.levels) != latent_dim:
            raise UserError(
                f"quantizer.levels: {list(quantizer.levels)} has {len(quantizer.levels)} entries, one for each of "
                f"model.latent_dim {latent_dim} is needed; leave it empty for codebook_size everywhere"
            )
        micro, batch = self.execution.micro_batch, self.train.batch_size
        if micro and quantizer.entropy_weight:
            raise UserError(
                f"quantizer.entropy_weight: {quantizer.entropy_weight} takes the entropy of a whole batch's mean, "
                f"which would depend on execution.micro_batch {micro}; use micro_batch 0, or entropy_weight 0"
            )
        if micro and batch % micro:
            near = max(m for m in range(1, min(micro, batch) + 1) if batch % m == 0)
            raise UserError(f"execution.micro_batch: {micro} does not divide train.batch_size {batch}; {near} would")
        if micro and self.discriminator.normalises_batches:
            raise UserError(
                "discriminator.norm: 'batch' sees only a part of the batch under execution.micro_batch "
                f"{micro}, so that the result would depend on it; use group, or micro_batch 0"
            )
        size, downsample = self.data.image_size, self.model.downsample
        choosing = batch * (size // downsample) ** 2 * (1 if quantizer.codebooks == "per_group" else groups)
        if quantizer.restart_below > choosing / quantizer.codebook_size:
            raise UserError(
                f"quantizer.restart_below: {quantizer.restart_below}, but if all rows are used alike, "
                f"{choosing / quantizer.codebook_size:.3g} latents a step choose each ({choosing} of a batch among "
                f"codebook_size {quantizer.codebook_size}), so that rows in use would count as dead; use less"
            )
        sizes = (("data.image_size", size), *(("evaluation.resolutions", one) for one in self.evaluation.resolutions))
        for key, pixels in sizes:
            if pixels % downsample:
                near = max(downsample, round(pixels / downsample) * downsample)
                raise UserError(f"{key}: {pixels} is not divisible by model.downsample {downsample}; {near} would be")
        layers = self.discriminator.layers
        if self.discriminator.kind == "patchgan" and size < 3 * 2**layers:
            raise UserError(
                f"discriminator.layers: {layers} need a data.image_size of at least {3 * 2**layers}, found {size}"
            )
        halvings = len(self.discriminator.channel_multipliers)
        if self.discriminator.kind == "stylegan" and size < 2**halvings:
            raise UserError(
                f"discriminator.channel_multipliers: {halvings} of them halve the image as often, which needs a "
                f"data.image_size of at least {2**halvings}, found {size}"
            )

        if self.optimizer.schedule == "wsd" and self.trunk_steps < self.optimizer.warmup_steps:
            raise UserError(
                f"train.steps: {self.train.steps}: with optimizer.decay_share {self.optimizer.decay_share} the decay "
                f"begins after step {self.trunk_steps}, before the end of optimizer.warmup_steps "
                f"{self.optimizer.warmup_steps}; use more steps, a shorter warm-up or a smaller decay_share"
            )

    @property
    def trunk_steps(self) -> int:
        """Steps that do not depend on how many follow: all, but with the schedule wsd those before the decay. Runs
        that differ only in train.steps and in the decay of wsd are equal up to there."""
        steps, optimizer = self.train.steps, self.optimizer
        return steps if optimizer.schedule != "wsd" else steps - max(1, round(optimizer.decay_share * steps))

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """Steps whose checkpoints stay when the run is done, from which runs with more steps can start."""
        last = (self.trunk_steps,) if self.execution.keep_checkpoint else ()
        return tuple(sorted({*last, *(step for step in self.execution.keep_at if step <= self.trunk_steps)} - {0}))

    @property
    def program(self) -> str:
        """Import path of a training program of a user's own (gsq.config.program); empty for gsq's own training."""
        return ""

    @property
    def group_dim(self) -> int:
        """d = D / G."""
        return self.model.latent_dim // self.quantizer.groups

    @property
    def lookup_norm(self) -> str:
        """quantizer.lookup_norm, with auto resolved."""
        if self.quantizer.lookup_norm == "auto":
            return self.quantizer.declared.lookup_norm if self.group_dim > 1 else "none"
        return self.quantizer.lookup_norm

    @property
    def codebook_init(self) -> str:
        """quantizer.init, with auto resolved."""
        if self.quantizer.init == "auto":
            return self.quantizer.declared.init
        return self.quantizer.init

    @property
    def index_sizes(self) -> tuple[int, ...]:
        """Values that each index of a latent position can take: (V,) * G, rvq (V,) * depth, fsq its levels."""
        return self.quantizer.declared.index_sizes(self.quantizer)

    @property
    def bits_per_token(self) -> float:
        """Bits of a latent position: the sum of log2 over its indices."""
        return bits(self.index_sizes)

    @property
    def codebook_parameters(self) -> int:
        """Number of learned parameters of the quantizer: codebook entries and others."""
        if is_path(self.quantizer.kind):
            from gsq.config.own_flops import quantizer_parameters

            return quantizer_parameters(load(self.quantizer.kind, "quantizer.kind"), self)
        return self.quantizer.declared.parameters(self.quantizer, self.model.latent_dim)


SECTIONS: dict[str, type] = {f.name: f.default_factory for f in fields(RunConfig)}  # type: ignore[misc]


def check_processes(config: RunConfig, processes: int) -> None:
    """Raise UserError if ``processes`` processes cannot share the run's batches."""
    if config.program and processes > 1:
        raise UserError(
            f"program: {config.program} runs in one process, but the cluster file gives each run {processes}; write "
            "nodes: 1 and processes: 1"
        )
    batch, micro = config.train.batch_size, config.execution.micro_batch
    if batch % processes:
        raise UserError(f"train.batch_size: {batch} images cannot be shared equally by {processes} processes")
    share = batch // processes
    if micro and share % micro:
        raise UserError(
            f"execution.micro_batch: {micro} does not divide {share}, the images that each of {processes} processes "
            f"takes of train.batch_size {batch}"
        )
    if processes > 1 and config.quantizer.entropy_weight:
        raise UserError(
            f"quantizer.entropy_weight: {config.quantizer.entropy_weight} takes the entropy of a whole batch's mean, "
            f"of which each of {processes} processes sees a part; use one process, or entropy_weight 0"
        )
    if processes > 1 and config.discriminator.normalises_batches:
        raise UserError(
            f"discriminator.norm: 'batch' sees only a part of the batch in each of {processes} processes; use group"
        )
