"""The console command `frcnn`: its commands, one parser, one place where mistakes become a line.

Each command is a module of this folder, or a class in one, that offers

- its docstring: what `frcnn COMMAND --help` prints above the options;
- `add_arguments(parser)`;
- `run(args)`: do it. An int that it returns is the exit status; anything else is a result for
  callers in Python, and the status is 0. A `UserError` that it raises ends the command with one
  line and status 1;
- `parse(parser, words)`, if argparse's usual way of reading the words does not do.

Only the standard library is imported until a command is chosen. So `frcnn --help` is quick, and
works where PyTorch or Detectron2 is missing (see frcnn_command.py, which for that reason runs this
file without importing the package: relative imports do not work here).
"""

import argparse
import importlib
import inspect
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

# Command: its module or class, and what it does.
COMMANDS = {
    "train": ("train", "train a detector, or evaluate one (--eval-only)"),
    "predict": ("predict", "run a detector on images"),
    "export": ("export", "write a detector to a TorchScript or ONNX file"),
    "visualize": ("visualize", "draw anchors, matches, samples, proposals, RoIs, detections"),
    "explain": ("explain", "write an HTML page on one image, all the way through the method"),
    "doctor": ("doctor", "find what is wrong before it costs a day"),
    "report": ("report", "write an HTML page about a training run"),
    "weights convert": (
        "weights.Convert",
        "convert weights of Caffe and torchvision, or to Caffe",
    ),
    "weights download": ("weights.Download", "list and download the published weight files"),
    "weights check": ("weights.Check", "verify weight files, published ones or your own"),
    "proposals dump": ("proposals.Dump", "write a network's proposals for a data set"),
    "proposals convert": ("proposals.Convert", "convert and check proposals of other programs"),
    "proposals sizes": ("proposals.Sizes", "print the mean size of each anchor's proposals"),
    "ablations": ("ablations", "run the rows of one of the paper's tables"),
    "make-data": ("make_data", "write a small data set of generated images, for VOC and COCO"),
}
GROUPS = {command.split()[0] for command in COMMANDS if " " in command}

EXAMPLES = """examples:
  frcnn doctor --config-file my.yaml
  frcnn train --config-file my.yaml
  frcnn predict --weights output/model_final.pth photos/ --output found

"""


def version() -> str:
    """Return the package's version, read from its file: importing the package takes seconds."""
    text = (Path(__file__).parents[1] / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return match[1] if match else "unknown"


def overview(group: str = "") -> argparse.ArgumentParser:
    """Return the parser of `frcnn`, or of a group such as `frcnn weights`, without a command."""
    listed = [row for row in COMMANDS.items() if row[0].startswith(group)]
    table = "\n".join(f"  {name:<19}{purpose}" for name, (_, purpose) in listed)
    title = "" if group else "The original Faster R-CNN (2015) as a Detectron2 plugin.\n\n"
    prog = f"frcnn {group}".rstrip()
    parser = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s COMMAND ...",
        description=f"{title}commands:\n{table}",
        epilog=("" if group else EXAMPLES) + f"`{prog} COMMAND --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"frcnn_plugin {version()}",
        help="print the version of frcnn_plugin and exit",
    )
    return parser


def choose(words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command that `words` begin with, and the words after it.

    Without a command, list them, or say which one was probably meant, and exit.
    """
    group = words[0] if words and words[0] in GROUPS else ""
    length = 2 if group else 1
    command = " ".join(words[:length])
    if command in COMMANDS:
        return command, list(words[length:])
    parser = overview(group)
    if not words[length - 1 :]:
        parser.print_help()
        sys.exit(2)
    if words[length - 1].startswith("-"):
        parser.parse_args(words[length - 1 : length])  # --help and --version exit
    # "download" alone means "weights download", so last words are compared, too.
    last = {name.split()[-1] for name in COMMANDS}
    close = get_close_matches(command, [*COMMANDS, *GROUPS, *last], n=1)
    meant = [name for name in COMMANDS if name.split()[-1] in close] or close
    if command in ("eval", "evaluate", "test", "val"):
        meant = ["train --eval-only"]
    hint = " or ".join(f"`frcnn {name}`" for name in meant)
    parser.error(
        f"there is no command {command!r}; "
        + (f"did you mean {hint}?" if hint else "`frcnn --help` lists the commands")
    )


def load(command: str) -> Any:
    """Import a command; an ImportError says that PyTorch or Detectron2 is missing or unsuitable."""
    module, _, name = COMMANDS[command][0].partition(".")
    loaded = importlib.import_module(f"frcnn_plugin.cli.{module}")
    return getattr(loaded, name) if name else loaded


def parse(argv: Sequence[str]) -> tuple[Any, argparse.Namespace]:
    """Return the command that `argv` names, and its arguments.

    Raises:
        ImportError: as in :func:`load`.
        SystemExit: the words ask for help or cannot be read, as with argparse.
    """
    name, words = choose(argv)
    command = load(name)
    parser = argparse.ArgumentParser(
        prog=f"frcnn {name}",
        description=inspect.getdoc(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    read = (
        getattr(command, "parse", None) or importlib.import_module("frcnn_plugin.cli").parse_words
    )
    return command, read(parser, words)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (default: the command line) names; return the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        command, args = parse(words)
        from frcnn_plugin.errors import UserError
        from frcnn_plugin.stopping import Stopped

        try:
            if words[0] != "train" and {"RANK", "SLURM_STEP_ID"} & os.environ.keys():
                from frcnn_plugin.process import refuse_launcher

                refuse_launcher()
            result = command.run(args)
            sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except UserError as error:
            # Names that come from files may hold codes that a terminal obeys.
            shown = (c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(error))
            message, status = "error: " + "".join(shown), 1
        except Stopped as stopped:
            message, status = stopped.message, int(str(stopped.code))
    except ImportError as error:
        if error.name != "frcnn_plugin":  # host.check_host explains; any other is a fault of ours
            raise
        message, status = f"error: {error}", 1
    except KeyboardInterrupt:
        message, status = "interrupted", 130  # as a shell reports the signal
    except BrokenPipeError:  # `frcnn ... | head` has read enough
        # Otherwise Python complains once more when it flushes the output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell reports the signal
    # Printed here, where the exception is gone and a progress bar in its traceback is closed.
    if message:
        print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
