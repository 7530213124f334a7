"""Wheels as small as they get, one of them like LabGym's."""

import zipfile
from pathlib import Path

LABGYM_FILES = {
    "LabGym/__init__.py": "import tensorflow",
    "LabGym/detectron2/__init__.py": '__version__ = "0.6"\n',
    "LabGym/detectron2/engine.py": (
        "from LabGym.detectron2.utils import comm\nimport LabGym.detectron2.data as data\n"
        'LOGGER = "LabGym.detectron2.engine"\n'
    ),
    "LabGym/detectron2/model_zoo/configs/Base.yaml": "MODEL: {}\n",
    "labgym-3.1.2.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: labgym\nVersion: 3.1.2\nRequires-Python: <3.9\n"
        "Requires-Dist: tensorflow\n"
    ),
    "labgym-3.1.2.dist-info/WHEEL": (
        "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    ),
    "labgym-3.1.2.dist-info/RECORD": "",
}


def write_wheel(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path
