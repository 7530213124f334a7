"""Build and installation of frcnn_plugin; settings of the tools are in pyproject.toml.

`pip install .` must not spoil an environment in which Detectron2 works. So lower bounds say what
the code needs, and are as old as Python 3.10 allows unless a reason is given. Not among the
requirements are

- Detectron2: it has no release on the package index, so pip could not find it, and naming its
  repository would rebuild it over a copy that is already there;
- OpenCV, which Detectron2 imports: it has four names on the index (opencv-python, -headless and
  two with contrib), all of which install the same module, and pip would put one beside another.

tools/install_detectron2.py provides both, and importing the package without them says so. Where
even a bound would replace too much, such as a torch that Detectron2 was compiled for,
`pip install --no-deps .` replaces nothing.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# Read, not imported: importing the package imports torch, which may not be installed yet.
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (HERE / "frcnn_plugin" / "__init__.py").read_text(), re.MULTILINE
)
if VERSION is None:
    raise SystemExit('frcnn_plugin/__init__.py has no line __version__ = "..."')

# Beside Python files.
PACKAGE_DATA = {
    "frcnn_plugin": ["py.typed"],  # type checkers may use the annotations
    "frcnn_plugin.configs": ["*.yaml", "**/*.yaml", "lazy/*.py"],
    "frcnn_plugin.explain": ["*.html", "*.yaml"],
    "frcnn_plugin.report": ["*.html", "*.css"],
}


def for_an_index_page(text: str) -> str:
    """Return the README as a page that stands alone: no picture, and paths in place of links."""
    text = re.sub(r"^(?:!\[.*|English \| .*)\n(?:.+\n)*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", text)  # the texts are the paths
    return f"{text}\n`docs/`, `configs/` and the Makefile are in the source distribution.\n"


setup(
    name="frcnn-plugin",
    version=VERSION.group(1),
    description="The original Faster R-CNN (2015) as a Detectron2 plugin",
    long_description=for_an_index_page((HERE / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
    author="The frcnn_plugin contributors",
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(10, 14)),
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    keywords=["faster r-cnn", "object detection", "detectron2", "caffe", "vgg16"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["frcnn_plugin*"]), "frcnn_plugin.configs"],
    # configs/ stays at the top, where users look for it, and is installed inside the package.
    package_dir={"frcnn_plugin.configs": "configs"},
    package_data=PACKAGE_DATA,
    py_modules=["frcnn_command"],  # says in one line that Detectron2 is missing, if it is
    entry_points={"console_scripts": ["frcnn = frcnn_command:main"]},
    install_requires=[
        "torch>=2.4",  # the networks and their training; 2.4 has autocast by device
        "torchvision>=0.19",  # RoI max pooling and NMS; this is the pair of torch 2.4
        "numpy>=1.22",  # anchors and evaluation
        "Pillow>=9.1",  # image files
        "fvcore>=0.1.5",  # Detectron2's config, registry and checkpointer
        "iopath>=0.1.7",  # Detectron2's paths to files
        "protobuf>=4.22",  # Caffe's files; 4.22 makes classes of messages that are described here
        "requests>=2.26",  # downloads the published weights
        "portalocker>=3.0",  # one process downloads, the others wait; 3.0 tells locked from broken
        "PyYAML>=5.1",  # Detectron2's config files; their errors are told in one line
        "pycocotools>=2.0.2",  # COCO's annotations and metric
        "matplotlib>=3.6",  # the pictures
        "Jinja2>=3.0",  # the page of the training report; torch needs it too
        "tabulate>=0.8.10",  # tables of results; 0.8.10 has maxcolwidths
        "tqdm>=4.30",  # progress of what takes long outside the training loop
        "setuptools<82",  # 82 dropped pkg_resources, which detectron2.model_zoo imports
    ],
    extras_require={
        "dev": [
            "pytest>=8",  # the test suite
            "pytest-xdist>=3.6",  # runs it in two processes (make test)
            "ruff>=0.6",  # format and lint
            "mypy>=1.11",  # types
            "types-tabulate",  # types of tabulate, for mypy
            "scipy>=1.9",  # tests of the "proposals" extra
            "nbclient>=0.8",  # runs docs/tutorial.ipynb in a test ...
            "nbformat>=5.7",  # ... which this reads
            "ipykernel>=6.20",  # the notebook's Python
            "matplotlib>=3.7",  # benchmarks/ has legends outside the axes
            "onnx>=1.15",  # tests of the "export" extra
            "onnxruntime>=1.17",  # the same
        ],
        "export": [
            "onnx>=1.15",  # PyTorch needs it to write ONNX files; 1.15 has opset 20 and all before
            "onnxruntime>=1.17",  # runs them (frcnn export --check); the first with opset 20
        ],
        "proposals": [
            "scipy>=1.9",  # reads the .mat files of selective search
        ],
    },
)
