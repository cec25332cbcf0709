"""Build the sdist and the wheel, install the wheel into an empty environment, and do the main job there.

    python tools/wheel_check.py                        dependencies are those of this Python, see below
    python tools/wheel_check.py --with-dependencies    everything comes from the package index, as with pipx

The wheel is built from the sdist, and the sdist from a copy of the files that belong into it, so that nothing left over
from an earlier build can stand in for what is missing. The new environment holds pip and the wheel. Without
`--with-dependencies` its search path is lengthened by the site-packages of the Python that runs this, which has the
dependencies already (5 GB with CUDA); a checkout that is installed there as editable does not come along, because its
.pth file is read in the environment's own folder only. That the commands run the installed package, and not this
checkout, is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from pathlib import Path

from lbvq.engine.user_errors import user_command

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("lbvq", "mask2former", "configs", "datasets", "demo", "docs", "tools")  # folders an sdist is made of
RESOURCES = {"configs": "lbvq/configs", "datasets/metadata": "lbvq/metadata"}  # here: in the wheel
BUILD = "import sys, setuptools.build_meta as backend; print(backend.build_{kind}(sys.argv[1]))"
MAKE_DATA = """
import pathlib, shutil
from lbvq.data.synthetic import SyntheticSettings, write_dataset
from lbvq.video.reader import read_video
from lbvq.video.writer import write_video
small = SyntheticSettings.scaled(0.5, height=48, width=64, num_frames=3)
file = write_dataset("made", num_train=2, num_val=0, settings=small)["train"]
frames = file.parent / "train" / "JPEGImages"
pathlib.Path("data").mkdir()
shutil.copytree(frames, "data/frames")
shutil.copy(file, "data/annotations.json")
write_video("video.mp4", read_video(sorted(frames.iterdir())[0]), 6)
"""
TINY = ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS=64", "SOLVER.IMS_PER_BATCH=2", "INPUT.MIN_SIZE_TEST=48")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with-dependencies", action="store_true", help="install them, too, from the package index")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="keep the sdist and the wheel here")
    return parser.parse_args(arguments)


@user_command
def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    with tempfile.TemporaryDirectory(prefix="wheel_check_") as folder:
        sdist, wheel = build(ROOT, Path(folder))
        missing = missing_files(ROOT, wheel) + missing_metadata(wheel)
        if missing:
            raise ValueError(f"{wheel.name} lacks {', '.join(missing)}; see setup.py, pyproject.toml and MANIFEST.in")
        environment = install(wheel, Path(folder) / "environment", args.with_dependencies)
        do_main_job(environment, Path(folder) / "elsewhere")
        for file in (sdist, wheel):
            print(f"{file.name}: {file.stat().st_size / 2**20:.1f} MiB")
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, args.out)
    print("the wheel trains, predicts and scores in an environment of its own")
    return 0


def build(root: Path, folder: Path) -> tuple[Path, Path]:
    """Build both from a copy of the sources in `folder`; returns the files of the sdist and of the wheel."""
    source = folder / "source"
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
        for path in [root / name] if name != "datasets" else [root / name / "metadata"]:  # beside it lie data
            shutil.copytree(path, source / path.relative_to(root), ignore=ignored)
    for path in root.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    for path in (root / "datasets").glob("*.*"):
        if path.is_file():
            shutil.copy(path, source / "datasets")
    sdist = folder / _build("sdist", source, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    return sdist, folder / _build("wheel", next((folder / "unpacked").iterdir()), folder)


def _build(kind: str, source: Path, folder: Path) -> str:
    """Run setuptools in `source`; returns the name of the file that it writes into `folder`."""
    return _run([sys.executable, "-c", BUILD.format(kind=kind), str(folder)], source).split()[-1]


def missing_files(root: Path, wheel: Path) -> list[str]:
    """Files of the packages and their resources that are not in the wheel, or not the same there."""
    wanted = {
        path.relative_to(root).as_posix(): path
        for package in ("lbvq", "mask2former")
        for path in (root / package).rglob("*")
    }
    for source, target in RESOURCES.items():
        wanted.update(
            {f"{target}/{path.relative_to(root / source).as_posix()}": path for path in (root / source).rglob("*")}
        )
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        return sorted(
            name
            for name, path in wanted.items()
            if path.is_file()
            and path.suffix != ".pyc"
            and (name not in inside or archive.read(name) != path.read_bytes())
        )


def missing_metadata(wheel: Path) -> list[str]:
    """What a package index shows and the wheel does not say."""
    with zipfile.ZipFile(wheel) as archive:
        text = next(archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        scripts = next((archive.read(n).decode() for n in archive.namelist() if n.endswith("entry_points.txt")), "")
    head, _, description = text.partition("\n\n")
    fields = {line.partition(":")[0] for line in head.splitlines()}
    wanted = {"Name", "Version", "Summary", "Author", "Keywords", "Classifier", "Requires-Python", "License-Expression"}
    missing = sorted(wanted - fields)
    missing += [] if "Description-Content-Type: text/markdown" in head and description.strip() else ["a description"]
    return missing + ([] if "lbvq = lbvq.__main__:main" in scripts else ["the command lbvq"])


def install(wheel: Path, environment: Path, with_dependencies: bool) -> Path:
    """Make an environment with the wheel in it; returns the folder of its commands."""
    _run([sys.executable, "-m", "venv", str(environment)], wheel.parent)
    commands = environment / ("Scripts" if os.name == "nt" else "bin")
    python = str(commands / "python")
    options = [] if with_dependencies else ["--no-deps", "--no-index"]
    _run([python, "-m", "pip", "install", "--quiet", *options, str(wheel)], wheel.parent)
    if not with_dependencies:
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        own = Path(_run([python, "-c", ask], wheel.parent).strip())
        (own / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return commands


def do_main_job(commands: Path, folder: Path) -> None:
    """From the list of models to scores, with what is installed; raises ValueError where it does not come out right."""
    folder.mkdir()
    python, lbvq = str(commands / "python"), str(commands / "lbvq")
    where = Path(_run([python, "-c", "import lbvq; print(lbvq.__file__)"], folder).strip())
    if not where.is_relative_to(commands.parent.resolve()) and not where.is_relative_to(commands.parent):
        raise ValueError(f"expected the package installed in {commands.parent}, got {where}")
    _expect(_run([lbvq, "--version"], folder), "lbvq ")
    listed = _run([lbvq, "list"], folder)
    _expect(listed, *(f"{path.relative_to(ROOT / 'configs')}" for path in (ROOT / "configs" / "synthetic").glob("l*")))
    _expect(_run([lbvq, "info"], folder), str(commands.parent), "torch")
    _run([python, "-c", MAKE_DATA], folder)
    _run([lbvq, "doctor", "data", "--jobs", "1"], folder)
    train = [lbvq, "train", "data", "--model", "synthetic/minvis_R18_tiny", "--output", "run", "--steps", "2"]
    _expect(_run([*train, "MODEL.DEVICE=cpu", *TINY], folder), "AP after")
    weights = ["--weights", "run/model_final.pth"]
    found = ["--score-threshold", "0", "--output", "drawn.mp4", "found.json"]
    _run([lbvq, "predict", "video.mp4", *weights, *found, "--opts", "MODEL.DEVICE", "cpu"], folder)
    if not json.loads((folder / "found.json").read_text()) or not (folder / "drawn.mp4").stat().st_size:
        raise ValueError("lbvq predict found nothing in the video, with a threshold of 0")
    _run([lbvq, "eval", "data", *weights, "--output", "scores"], folder)
    scores = json.loads((folder / "scores" / "inference" / "metrics.json").read_text())
    if not 0 <= scores["segm"]["AP"] <= 100:
        raise ValueError(f"expected an AP between 0 and 100, got {scores}")


def _run(command: list[str], folder: Path) -> str:
    """Output of a command in `folder`, without the settings that let Python find this checkout."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(
            f"exit code {done.returncode} of {' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        )
    print("ok:", *" ".join([Path(command[0]).name, *command[1:3]]).split()[:6], flush=True)
    return done.stdout


def _expect(said: str, *words: str) -> None:
    lacking = [word for word in words if word not in said]
    if lacking:
        raise ValueError(f"expected {', '.join(lacking)} in what the command said, got: {said[-2000:]}")


if __name__ == "__main__":
    sys.exit(main())
