"""tools/install_detectron2.py: the wheel it builds from the copy in LabGym."""

import base64
import email
import hashlib
import importlib.metadata
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.tools.small_wheels import LABGYM_FILES, write_wheel

# ------------------------------------------------------------------------------- the built wheel


def test_wheel_holds_the_copy_under_its_own_name_and_nothing_else(
    installer: ModuleType, labgym: Path, tmp_path: Path
) -> None:
    wheel = installer.build_wheel(labgym, tmp_path / "built")
    assert wheel.name == "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    assert {name for name in files if "dist-info" not in name} == {
        "detectron2/__init__.py",
        "detectron2/engine.py",
        "detectron2/model_zoo/configs/Base.yaml",
    }
    assert files["detectron2/engine.py"] == (
        "from detectron2.utils import comm\nimport detectron2.data as data\n"
        'LOGGER = "detectron2.engine"\n'
    )
    assert files["detectron2-0.6.dist-info/top_level.txt"] == "detectron2\n"


def test_wheel_metadata_is_upstreams_and_says_where_it_came_from(
    installer: ModuleType, labgym: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(installer.build_wheel(labgym, tmp_path)) as archive:
        metadata = email.message_from_bytes(archive.read("detectron2-0.6.dist-info/METADATA"))
    assert metadata["Name"] == "detectron2"
    assert metadata["Version"] == "0.6"
    assert metadata["License"] == "Apache-2.0"
    assert metadata["Home-page"] == "https://github.com/facebookresearch/detectron2"
    requirements = metadata.get_all("Requires-Dist") or []
    assert requirements == installer.REQUIREMENTS
    assert "iopath>=0.1.7,<0.1.10" in requirements
    assert not [name for name in requirements if "tensorflow" in name]
    description = metadata.get_payload()
    assert installer.LABGYM in description
    assert installer.LABGYM_SHA256 in description


def test_wheel_record_lists_every_file_with_its_hash_and_size(
    installer: ModuleType, labgym: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(installer.build_wheel(labgym, tmp_path)) as archive:
        lines = archive.read("detectron2-0.6.dist-info/RECORD").decode().splitlines()
        rows = [line.split(",") for line in lines]
        assert [row[0] for row in rows] == archive.namelist()
        for name, digest, size in rows[:-1]:
            content = archive.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode()
            assert digest == "sha256=" + expected.rstrip("=")
            assert int(size) == len(content)
        assert rows[-1][1:] == ["", ""]


def test_wheel_without_a_copy_is_refused(installer: ModuleType, tmp_path: Path) -> None:
    other = write_wheel(tmp_path / "labgym.whl", {"LabGym/__init__.py": ""})
    with pytest.raises(installer.SourceError, match=r"labgym\.whl holds no LabGym/detectron2"):
        installer.build_wheel(other, tmp_path)


# ------------------------------------------------------------------------- real pip, without net


def test_labgym_source_installs_an_ordinary_distribution(
    installer: ModuleType, labgym: Path, offline_pip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {
        "needed-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: needed\nVersion: 1\n",
        "needed-1.dist-info/WHEEL": LABGYM_FILES["labgym-3.1.2.dist-info/WHEEL"],
        "needed-1.dist-info/RECORD": "",
    }
    write_wheel(labgym.parent / "needed-1-py3-none-any.whl", needed)
    digest = hashlib.sha256(labgym.read_bytes()).hexdigest()
    monkeypatch.setattr(installer, "LABGYM_SHA256", digest)
    monkeypatch.setattr(installer, "REQUIREMENTS", ["needed"])
    installer.install_labgym([])

    found = {d.metadata["Name"]: d for d in importlib.metadata.distributions(path=[offline_pip])}
    assert set(found) == {"detectron2", "needed"}  # neither labgym nor tensorflow
    detectron2 = found["detectron2"]
    assert detectron2.version == "0.6"
    assert detectron2.read_text("INSTALLER").strip() == "pip"
    assert detectron2.read_text("direct_url.json") is None  # no temporary path in `pip freeze`
    assert (offline_pip / "detectron2" / "engine.py").is_file()


def test_labgym_of_another_hash_is_refused(installer: ModuleType, offline_pip: Path) -> None:
    with pytest.raises(installer.SourceError, match="DO NOT MATCH THE HASHES"):
        installer.install_labgym([])
    assert not offline_pip.exists()


def test_labgym_out_of_reach_is_reported(
    installer: ModuleType, labgym: Path, offline_pip: Path
) -> None:
    labgym.unlink()
    with pytest.raises(installer.SourceError, match=r"No matching distribution.*labgym==3\.1\.2"):
        installer.install_labgym([])
