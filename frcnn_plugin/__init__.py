"""The original Faster R-CNN (Ren et al., 2015) as a Detectron2 plugin.

Importing the package registers its components with Detectron2 by name; ``add_frcnn_config`` adds
their keys to a config.
"""

import sys

from .host import check_host

if sys.argv[:1] == ["-m"] and "frcnn_plugin" in sys.orig_argv:  # python -m frcnn_plugin
    import frcnn_command  # noqa: F401  keeps off the console what the imports below warn of

__version__ = "0.1.0"

check_host()  # before the first import that needs torch or Detectron2

from . import checkpoint as _checkpoint  # noqa: E402, F401  only registration
from . import data as _data  # noqa: E402, F401  only registration
from . import modeling as _modeling  # noqa: E402, F401  only registration
from .config import add_frcnn_config, get_config_file  # noqa: E402
from .config_files import load_config_file  # noqa: E402
from .errors import UserError  # noqa: E402
from .process import tune_process  # noqa: E402

__all__ = [
    "UserError",
    "__version__",
    "add_frcnn_config",
    "get_config_file",
    "load_config_file",
    "tune_process",
]
