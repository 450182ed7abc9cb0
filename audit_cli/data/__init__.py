"""Trusted data: readers for hostile folders and archives, the model's preprocessing, and checks of the data itself."""

from audit_cli.data.normalisation import CANDIDATES, Choice, Normalisation, choose, compare
from audit_cli.data.preprocess import Preprocessing
from audit_cli.data.processor_config import from_config
from audit_cli.data.raw import Limits, RawImages
from audit_cli.data.readers import read_images
from audit_cli.data.trusted import load_trusted, prepare

__all__ = [
    "CANDIDATES",
    "Choice",
    "Limits",
    "Normalisation",
    "Preprocessing",
    "RawImages",
    "choose",
    "compare",
    "from_config",
    "load_trusted",
    "prepare",
    "read_images",
]
