"""One image all the way through the method, as an HTML page."""

from .page import LANGUAGES, render
from .sections import Subject

__all__ = ["LANGUAGES", "Subject", "render"]
