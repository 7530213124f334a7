#!/usr/bin/env python
"""Put Detectron2 into the environment of the Python that runs this script.

Detectron2 has no release on the package index, so the first of these that works is used:

1. A Detectron2 that can already be imported and used: left as it is.
2. ``DETECTRON2=<path, wheel or URL>`` in the environment: that, and nothing else.
3. Upstream's repository at a pinned commit; needs git, a C++ compiler and Python's headers.
4. The unmodified copy inside the ``labgym`` wheel of the package index (exact version and hash),
   given back its own name. Pure Python: without the compiled operators, which this plugin does
   not use, and without any of LabGym's own code or requirements.

OpenCV, which Detectron2 imports but does not ask for, is installed with 2 to 4 if no copy of it is
there. torch and torchvision must be installed before. Standard library only::

    .venv/bin/python tools/install_detectron2.py --constraint constraints.txt
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

UPSTREAM_URL = "https://github.com/facebookresearch/detectron2"
UPSTREAM_COMMIT = "02b5c4e295e990042a714712c21dc79b731e8833"  # main, June 2026
GIT_SECONDS = 8  # how long upstream's repository may take to answer

LABGYM = "labgym==3.1.2"
LABGYM_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"

# Upstream's own list at that commit, so that `pip check` says of either copy what upstream would.
REQUIREMENTS = (
    "Pillow>=7.1 matplotlib pycocotools>=2.0.2 termcolor>=1.1 yacs>=0.1.8 tabulate cloudpickle "
    "tqdm>4.29.0 tensorboard fvcore>=0.1.5,<0.1.6 iopath>=0.1.7,<0.1.10 omegaconf>=2.1,<2.4 "
    "hydra-core>=1.1 black packaging"
).split()

# Four packages of the index hold the module cv2; this one needs no screen.
OPENCV = "opencv-python-headless>=4.5"

DIST_INFO = "detectron2-0.6.dist-info"  # 0.6 is what every tree since 2021 calls itself
METADATA = f"""\
Metadata-Version: 2.1
Name: detectron2
Version: 0.6
Summary: Detectron2 is FAIR's next-generation research platform for object detection.
Home-page: {UPSTREAM_URL}
Author: FAIR
License: Apache-2.0
Requires-Python: >=3.7
{"".join(f"Requires-Dist: {requirement}{chr(10)}" for requirement in REQUIREMENTS)}\
Description-Content-Type: text/plain

Detectron2 of January 2024 (main), unmodified, without its compiled operators: the folder
LabGym/detectron2 of the wheel {LABGYM} (sha256 {LABGYM_SHA256}),
given back its own name by tools/install_detectron2.py of frcnn_plugin.
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: frcnn_plugin\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

# The plugin's own check decides what "usable" means. It runs in a process of its own, which sees
# what pip has just installed and may be killed by a compiled module.
HOST_CHECK = Path(__file__).resolve().parents[1] / "frcnn_plugin" / "host.py"
CHECK = """
import importlib.util, runpy, sys
host = runpy.run_path(sys.argv[1])
try:
    host["check_torch"]()
    spec = importlib.util.find_spec("detectron2")
    if spec is None or spec.origin is None:
        print("there is no module detectron2")
        sys.exit(4)
    host["check_detectron2"]()
except ImportError as error:
    print(error)
    sys.exit(5 if "spec" in globals() else 3)
import detectron2
print(detectron2.__path__[0])
"""
STATES = {0: "usable", 3: "no torch", 4: "absent", 5: "broken"}


class SourceError(Exception):
    """One source of Detectron2 could not be used; the text says why."""


def check_installed() -> tuple[str, str]:
    """Try the installed Detectron2; return one of ``STATES`` and its folder or the reason."""
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(HOST_CHECK)],
        capture_output=True,
        text=True,
        # `python -c` searches the working directory first; a clone lying there must not be found.
        cwd=tempfile.gettempdir(),
    )
    last_line = (done.stdout.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return STATES.get(done.returncode, "broken"), last_line


def installed_by_us() -> bool:
    """Whether the installed distribution is one of the two that this script pins."""
    return any(
        pin in (distribution.read_text(record) or "")
        for distribution in importlib.metadata.distributions(name="detectron2")
        for record, pin in (("METADATA", LABGYM_SHA256), ("direct_url.json", UPSTREAM_COMMIT))
    )


def pip(*arguments: str) -> None:
    """Run this environment's pip; its last error line becomes the reason of a failure."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if line.lower().startswith("error")] or lines[-1:]
        raise SourceError(f"pip {arguments[0]} failed: {' '.join(errors)}")


def install_opencv(constraint: list[str]) -> None:
    """Install OpenCV unless some copy is there: a second one would overwrite its files."""
    if importlib.util.find_spec("cv2") is None:
        pip("install", *constraint, OPENCV)


def install_given(choice: str, constraint: list[str]) -> None:
    """Install what the user named in ``DETECTRON2``."""
    if Path(choice).exists():
        choice = str(Path(choice).resolve())  # pip would take a bare folder name for a package
    elif "://" not in choice:
        raise SourceError(f"{choice!r} is neither an existing file or folder nor a URL")
    pip("install", "--no-build-isolation", *constraint, choice)


def install_upstream(constraint: list[str]) -> None:
    """Build upstream's pinned commit; every missing piece is found in seconds, before the build."""
    if shutil.which("git") is None:
        raise SourceError("git is not installed")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise SourceError("there is no C++ compiler (c++, or the one named in CXX)")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise SourceError("the headers of this Python (Python.h) are not installed")
    # Asked with git itself, so that its proxies and redirections count. No pipes: git's helper
    # process would hold them open beyond the time limit.
    nowhere = subprocess.DEVNULL
    try:
        subprocess.run(
            ["git", "ls-remote", UPSTREAM_URL, "HEAD"],
            check=True,
            timeout=GIT_SECONDS,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            stdin=nowhere,
            stdout=nowhere,
            stderr=nowhere,
        )
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        raise SourceError(f"git cannot reach {UPSTREAM_URL}") from None
    print("detectron2: building upstream's pinned commit, this takes some minutes ...", flush=True)
    # Its setup.py imports torch, and the build has to see the torch that will be used.
    source = f"detectron2 @ git+{UPSTREAM_URL}.git@{UPSTREAM_COMMIT}"
    pip("install", "--no-build-isolation", *constraint, source)


def install_labgym(constraint: list[str]) -> None:
    """Fetch the pinned LabGym wheel, make a detectron2 wheel of it, install that."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as folder:
        pinned = Path(folder, "pinned.txt")
        pinned.write_text(f"{LABGYM} --hash=sha256:{LABGYM_SHA256}\n")
        # LabGym says Python < 3.11 because of its other requirements; Detectron2 does not.
        options = ["--no-deps", "--ignore-requires-python", "--only-binary=:all:", "-d", folder]
        pip("download", *options, "--require-hashes", "-r", str(pinned))
        wheel = build_wheel(next(Path(folder).glob("*.whl")), Path(folder, "built"))
        pip("install", *constraint, *REQUIREMENTS)
        # By name and hash, from that folder alone: installing the file itself would leave the path
        # of a deleted temporary folder in `pip freeze`.
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        pinned.write_text(f"detectron2==0.6 --hash=sha256:{digest}\n")
        options = ["--no-deps", "--no-index", "--find-links", str(wheel.parent)]
        pip("install", *options, "--require-hashes", "-r", str(pinned))


def build_wheel(labgym: Path, folder: Path) -> Path:
    """Write LabGym's copy of Detectron2 as a wheel of its own; return the wheel's path.

    Args:
        labgym: The LabGym wheel.
        folder: Where to write; made if needed.
    """
    files: dict[str, bytes] = {}
    with zipfile.ZipFile(labgym) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("LabGym/detectron2/") and not name.endswith("/"):
                # The copy differs from upstream in nothing but this name.
                content = archive.read(name).replace(b"LabGym.detectron2", b"detectron2")
                files[name[len("LabGym/") :]] = content
    if "detectron2/__init__.py" not in files:
        raise SourceError(f"{labgym.name} holds no LabGym/detectron2/__init__.py")
    files[f"{DIST_INFO}/METADATA"] = METADATA.encode()
    files[f"{DIST_INFO}/WHEEL"] = WHEEL.encode()
    files[f"{DIST_INFO}/top_level.txt"] = b"detectron2\n"
    record = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}\n")
    files[f"{DIST_INFO}/RECORD"] = "".join([*record, f"{DIST_INFO}/RECORD,,\n"]).encode()

    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / "detectron2-0.6-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return wheel


def install(choice: str, constraint: list[str]) -> int:
    """Try the sources in their order; return the exit status."""
    sources = {
        f"upstream commit {UPSTREAM_COMMIT[:10]}": lambda: install_upstream(constraint),
        f"the January 2024 copy in {LABGYM}": lambda: install_labgym(constraint),
    }
    if choice:
        sources = {f"DETECTRON2={choice}": lambda: install_given(choice, constraint)}
    tried = []
    for name, source in sources.items():
        try:
            source()
            install_opencv(constraint)
            state, detail = check_installed()
            if state != "usable":
                pip("uninstall", "--yes", "detectron2")
                raise SourceError(f"installed, but it cannot be used: {detail}")
        except SourceError as reason:
            tried.append(f"{name}: {reason}")
        else:
            # Why a better source was passed over belongs to the one line as well.
            passed_over = f" (not from {'; '.join(tried)})" if tried else ""
            print(f"detectron2: installed from {name}{passed_over}")
            return 0
    print("detectron2: could not be installed. Tried:", *tried, sep="\n  - ")
    if choice:
        print("Do this: correct DETECTRON2, or unset it to try upstream and the package index")
    else:
        print(
            "Do this: run it again where the package index can be reached, or name a copy that "
            "you have: DETECTRON2=<path, wheel or URL>"
        )
    return 1


def main(argv: list[str] | None = None) -> int:
    """Install Detectron2 unless it is there; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--constraint", metavar="FILE", help="versions for what Detectron2 needs")
    args = parser.parse_args(argv)
    constraint = ["--constraint", args.constraint] if args.constraint else []
    choice = os.environ.get("DETECTRON2", "")

    state, detail = check_installed()
    if state == "usable":
        ignored = f"; DETECTRON2={choice} is ignored, uninstall this one first" if choice else ""
        print(f"detectron2: already installed at {detail}, left as it is{ignored}")
        return 0
    if state == "no torch":
        print(f"detectron2: torch and torchvision come first.\n{detail}")
        return 1
    if state == "broken":
        if not installed_by_us():
            print(
                "detectron2: one is installed that this script did not install; it is left as it "
                f"is.\n{detail}"
            )
            return 1
        print(f"detectron2: the installed copy is replaced.\n{detail}")
        pip("uninstall", "--yes", "detectron2")
    return install(choice, constraint)


if __name__ == "__main__":
    sys.exit(main())
