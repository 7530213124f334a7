"""The folder of a run, ``OUTPUT_DIR``: one run at a time, and starting anew in a used one."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..errors import UserError
from ..stopping import Stopped

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"

# What a run writes, by name, in OUTPUT_DIR and below: nothing else is ever removed.
_WRITTEN = re.compile(
    r"last_checkpoint|initial_weights\.pth|stage\d_final\.pth|model_(\d{7,}|final)\.pth"
    r"|(model|stage2)_best\.(pth|json)|metrics\.json|run\.json|log\.txt(\.rank\d+)?"
    r"|events\.out\.tfevents\..*"
    r"|proposals/stage[13]/[^/]+\.(pkl|recall\.json|recall\.png)"
    r"|inference/[^/]+/(evaluation|recall)\.json"
)
# What a killed process leaves of a file that it was writing: see atomic_files.replacing.
_PARTIAL = re.compile(r"(.*/)?(\..+\.[0-9a-f]{8}|last_checkpoint|[^/]+\.pth)\.partial")


@contextmanager
def lock_output(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other processes from training into a folder, for as long as the ``with`` block runs.

    The kernel holds the lock, on a file that says who has it, and drops it when the process ends,
    however that comes about. So a lock that is left over is none, whatever host, container or
    process id is written in it. Only where a file system has no locks is the file itself believed.
    Files that a killed run left half written are removed.

    Only one process of a run may call it: the one that starts the others.

    Raises:
        UserError: another process has it; says which.
    """
    folder = Path(folder)
    file = None if fcntl is None else _locked(folder / LOCK_FILE)
    if file is None:
        yield
        return
    try:
        for path in _files(folder, _PARTIAL):
            path.unlink(missing_ok=True)
        yield
    finally:
        # Removed while it is still locked: who opened it meanwhile finds that it is gone.
        with suppress(OSError):
            (folder / LOCK_FILE).unlink()
        file.close()


def check_shared(folder: str) -> None:
    """Check that all processes, perhaps on several machines, see one folder; all call it.

    Raises:
        UserError: some machine has another folder there (Stopped in all but its first process).
    """
    # Not the lock file: to close it would drop the lock. Nor a name that a disk may have cached.
    path = Path(folder, comm.all_gather(f".seen.{os.urandom(4).hex()}.partial")[0])
    if comm.is_main_process():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as e:
            raise UserError(f"OUTPUT_DIR {folder} cannot be written: {e.strerror}") from None
    comm.synchronize()
    seen = comm.all_gather((socket.gethostname(), os.path.exists(path)))
    if comm.is_main_process():
        path.unlink()
    if others := sorted({host for host, there in seen if not there}):
        if comm.get_local_rank() and multiprocessing.parent_process() is None:
            raise Stopped("", 1)
        raise UserError(
            f"OUTPUT_DIR {folder} on {', '.join(others)} is not the folder that the first process "
            f"({seen[0][0]}) writes to: choose one on a disk that all machines share"
        )


def _locked(path: Path) -> IO[str] | None:
    """Return the lock file, locked, with this process in it; None if it cannot be written."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8", errors="replace")
        except OSError as error:  # as the run itself will say
            logger.warning("%s cannot be written, so nothing keeps other runs out: %s", path, error)
            return None
        file.seek(0)
        before = _holder(file.read())
        try:
            # Not flock, whose lock is inherited by the workers of a data loader: they live on for
            # seconds after their parent is killed, in which a run could not be resumed.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.close()
            raise UserError(_in_use(path, before)) from None
        except OSError as error:
            if _seems_alive(before):
                file.close()
                raise UserError(
                    f"{_in_use(path, before)}. If that process has ended, remove {path}: this file "
                    f"system has no locks that would tell ({error.strerror})"
                ) from None
        try:
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        except FileNotFoundError:
            pass
        file.close()  # the run that had it removed it between opening and locking
    if before:
        logger.info("a run of %s ended without removing %s", _name(before), path)
    file.truncate(0)
    file.write(json.dumps(_this_process()))
    file.flush()
    return file


def _this_process() -> dict[str, Any]:
    namespace = ""
    with suppress(OSError):  # process ids mean something within one of these only
        namespace = os.readlink("/proc/self/ns/pid")
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "namespace": namespace,
        "started": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    }


def _holder(text: str) -> dict[str, Any]:
    """Read what a process wrote about itself; nothing if it is empty or damaged."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) and "process" in content else {}


def _seems_alive(holder: dict[str, Any]) -> bool:
    ours = _this_process()
    if not holder or holder == ours | {"started": holder.get("started")}:
        return False
    if any(holder.get(key) != ours[key] for key in ("host", "namespace")):
        return True  # nobody can tell from here
    try:
        os.kill(int(holder["process"]), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _name(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    words = (f"{holder.get(key, 'unknown')}" for key in ("process", "host", "started"))
    return "process {} on {}, since {}".format(*words)


def _in_use(path: Path, holder: dict[str, Any]) -> str:
    return (
        f"OUTPUT_DIR {path.parent} is in use by {_name(holder)}: wait for its end, or choose "
        "another OUTPUT_DIR"
    )


def _files(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """Return the files of a run's folder, and of those that it makes in it, with such names."""
    paths = [p for pattern in ("*", "proposals/*/*", "inference/*/*") for p in folder.glob(pattern)]
    return [p for p in paths if names.fullmatch(p.relative_to(folder).as_posix()) and p.is_file()]


def forget_run(cfg: CfgNode) -> None:
    """Remove what an old run wrote into ``OUTPUT_DIR``; call it before the new one starts.

    Otherwise the new run would continue its log and curves, and, if it were stopped before its
    first checkpoint, a resume would continue the old run. Files of other names stay, and so do
    those that the config names, from which the new run starts.
    """
    folder = Path(cfg.OUTPUT_DIR)
    named = (
        cfg.MODEL.WEIGHTS,
        cfg.FOUR_STEP.INITIAL_WEIGHTS,
        *cfg.DATASETS.PROPOSAL_FILES_TRAIN,
        *cfg.DATASETS.PROPOSAL_FILES_TEST,
    )
    kept = {Path(name).resolve() for name in named if name}
    # First the name of the last checkpoint: a kill in between must not leave half a run to resume.
    found = sorted(_files(folder, _WRITTEN), key=lambda p: p.name != "last_checkpoint")
    removed = [path for path in found if path.resolve() not in kept]
    for path in removed:
        path.unlink(missing_ok=True)
    if removed:
        logger.info("removed %d files of the run that was in %s", len(removed), folder)
