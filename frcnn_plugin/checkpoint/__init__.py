"""Published weights: their catalog. Importing this package registers ``frcnn://``."""

from .catalog import CATALOG, KnownFile
from .path_handler import register

__all__ = ["CATALOG", "KnownFile"]

register()
