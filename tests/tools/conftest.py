"""tools/install_detectron2.py and a pip without network.

pip is given folders with small wheels made here.
"""

from pathlib import Path
from types import ModuleType

import pytest

from tests.tool_modules import load_tool
from tests.tools.small_wheels import LABGYM_FILES, write_wheel


@pytest.fixture
def installer(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/install_detectron2.py, no DETECTRON2 given."""
    monkeypatch.delenv("DETECTRON2", raising=False)
    return load_tool("install_detectron2")


@pytest.fixture
def labgym(tmp_path: Path) -> Path:
    (tmp_path / "index").mkdir()
    return write_wheel(tmp_path / "index" / "labgym-3.1.2-py3-none-any.whl", LABGYM_FILES)


@pytest.fixture
def offline_pip(tmp_path: Path, labgym: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give pip the LabGym wheel's folder for an index; returns the folder it installs into."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(labgym.parent))
    monkeypatch.setenv("PIP_TARGET", str(tmp_path / "installed"))
    return tmp_path / "installed"
