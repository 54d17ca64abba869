from .config.overrides import load_config as load_config
from .config.overrides import override as override
from .config.presets import PRESETS as PRESETS
from .config.presets import preset as preset
from .config.run import RunConfig as RunConfig
from .data.fingerprint import fingerprint as fingerprint
from .errors import UserError as UserError
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.protocol import Protocol as Protocol
from .models.autoencoder import Autoencoder as Autoencoder
from .quantizers import GroupedSphericalQuantizer as GroupedSphericalQuantizer
from .quantizers import QuantizerOutput as QuantizerOutput
from .records.folder import RunFolder as RunFolder
from .records.folder import runs_root as runs_root
from .runs.execute import train as train
from .runs.program import Run as Run
from .tokenizer.tokenizer import Tokenizer as Tokenizer

__version__: str
