"""``gpu``: what the plugin does on a GPU, in one run of a few minutes.

Each part runs in a process of its own, for at most its share of the time that is left, and what it
has measured is written at once: a run that is killed leaves all but the cell it was at. With
``--device cpu`` everything runs in small, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from benchmarks import STARTED
from benchmarks.gpu_parts import PARTS, Cell, Setting, first_line
from benchmarks.output import FILE, describe, headline
from frcnn_plugin import get_config_file
from frcnn_plugin.atomic_files import write_text
from frcnn_plugin.errors import UserError

CONFIG = "faster_rcnn_vgg16_voc_joint.yaml"
_SECONDS_LEFT = 15.0  # to start and to end, out of the minutes given
_NOT_RUN = "not run"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Add the options of ``gpu``."""
    command.add_argument("--minutes", type=float, default=8, help="at most; default: 8")
    command.add_argument("--device", default="cuda", help="cuda, or cpu to try it; default: cuda")
    command.add_argument("--output", type=Path, default=Path("output/gpu"), help="folder to write")
    command.add_argument("--only", action="append", choices=list(PARTS), help="may be repeated")
    command.add_argument("--config-file", default=get_config_file(CONFIG))
    command.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE overrides")


def _machine(setting: Setting) -> Iterator[Any]:
    """Describe where the parts run: for the JSON file, and in one line."""
    if setting.on_gpu and not torch.cuda.is_available():
        raise UserError(f"--device {setting.device}: there is no CUDA here; cpu runs it in small")
    setting.spec().cfg(False)  # a mistake shows before minutes of work
    poisoned = torch.cuda._is_in_bad_fork()
    try:
        header, title = describe(), headline()
    except Exception as error:  # of the tools that are asked: no reason to measure nothing
        header, title = {}, first_line(error)
    yield header, title, poisoned


def _serve(pipe: Any, measure: Callable[[], Iterator[Any]], log: Path) -> None:
    """Measure in a process of its own; send what comes, and at the end why no more does."""
    os.setpgrp()  # with what it starts: they are killed together
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    for stream in (1, 2):  # also of programs that it starts
        os.dup2(sys.stdout.fileno(), stream)
    try:
        for found in measure():
            pipe.send(found)
        pipe.send("not measured")
    except UserError as error:
        pipe.send(str(error))
    except Exception as error:
        traceback.print_exc()
        pipe.send(f"failed: {first_line(error)}")


def in_process(
    measure: Callable[[], Iterator[Any]], seconds: float, log: Path, method: str = "fork"
) -> Iterator[Any]:
    """Yield what another process measures, as it comes, and at the end a text: why no more does.

    Args:
        measure: picklable.
        seconds: after which the process is killed.
        log: file for what it prints.
        method: how it starts; "fork" saves importing torch, but not once this one has used CUDA.
    """
    end = time.monotonic() + seconds
    context: Any = multiprocessing.get_context(method)
    near, far = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(far, measure, log))
    process.start()
    far.close()
    found: Any = ""
    try:
        while near.poll(max(0.0, end - time.monotonic())):
            try:
                found = near.recv()
            except EOFError:
                process.join(1)
                found = f"failed: its process ended with code {process.exitcode}"
            yield found
            if isinstance(found, str):
                return
        yield f"{_NOT_RUN}: its {seconds:.0f} s were over"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run the sub-command ``gpu``. CUDA is left to other processes, so that they can be forked."""
    if not 1 <= args.minutes <= 600:
        raise UserError(f"--minutes is {args.minutes:g}: give 1 to 600")
    end = STARTED + 60 * args.minutes - _SECONDS_LEFT
    setting, log = Setting(args.config_file, args.device, tuple(args.opts)), args.output / "log.txt"
    log.write_text("")
    machine = next(in_process(partial(_machine, setting), 60, log))
    if isinstance(machine, str):
        if not machine.startswith(_NOT_RUN):
            raise UserError(machine)
        machine = {}, "", False
    header, title, poisoned = machine
    parts = {name: part for name, part in PARTS.items() if not args.only or name in args.only}
    rows = {
        (name, what): Cell(what, None, "", _NOT_RUN)
        for name, part in parts.items()
        for what in part.cells
    }
    results = {"what": "gpu", "minutes": args.minutes, **header}

    def write() -> str:
        results["cells"] = [{"part": name, **cell._asdict()} for (name, _), cell in rows.items()]
        write_text(args.output / FILE, json.dumps(results, indent=1) + "\n")
        lines = [
            (name, what, "" if value is None else f"{value:.4g}", unit, note)
            for (name, what), (_, value, unit, note) in rows.items()
        ]
        align = ("left", "left", "right", "left", "left")
        headers = ("part", "", "value", "unit", "")
        text = tabulate(lines, headers, disable_numparse=True, colalign=align)
        write_text(args.output / "table.txt", f"{title}\n\n{text}\n")
        return text

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        while parts:
            share = {name: part.share for name, part in parts.items()}
            name, part = next(iter(parts.items()))
            del parts[name]
            seconds = share[name] / sum(share.values()) * (end - time.monotonic())
            print(f"{name}: at most {seconds:.0f} s", flush=True)
            with log.open("a") as file:
                file.write(f"\n==== {name}\n")
            measure = partial(part.measure, setting)
            for found in in_process(measure, seconds, log, "spawn" if poisoned else "fork"):
                if isinstance(found, Cell):
                    rows[name, found.what] = found
                else:
                    for (of, what), cell in rows.items():
                        if of == name and cell.note == _NOT_RUN:
                            rows[of, what] = cell._replace(note=found)
                write()
    finally:
        signal.signal(signal.SIGTERM, before)
        print(f"\n{title}\n\n{write()}\n\nlog: {log}")
    return results
