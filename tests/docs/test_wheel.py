"""What `pip wheel .` makes has all that is needed, and works where it is installed."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = ("__pycache__", ".*", "ruff.toml")
"""What is beside the code and no part of it."""
PARTS = ("composer", "kernels", "server")
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "COLUMNS": "120",
}
QUESTION = "Asha ana ndizi 5. Asha ananunua ndizi 3. Sasa Asha ana ndizi ngapi?\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive of a copy of this checkout."""
    copy = tmp_path_factory.mktemp("copy")
    for part in PARTS:
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, copy)
    out = copy / "dist"
    out.mkdir()
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", out)
    subprocess.run([sys.executable, "-m", "pip", "wheel", ".", *options], cwd=copy, check=True)
    build = f"import setuptools.build_meta as backend; backend.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def installed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, and beside it what this one has, but for its layerloom."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    here = {"base": str(place), "platbase": str(place)}
    packages = Path(sysconfig.get_path("purelib", vars=here))
    # A path in a .pth file is not looked through for more of them, and so an editable layerloom there is none here.
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (wheel,) = made.glob("*.whl")
    options = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    subprocess.run([sys.executable, "-m", "pip", "--python", place / "bin/python", *options], check=True)
    return place


def run(environment: Path, program: str, *arguments: object) -> str:
    """What a program of the environment prints."""
    command = [environment / "bin" / program, *map(str, arguments)]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=environment, env={**own, **ENVIRONMENT}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_of_the_checkout() -> set[str]:
    files = [file.relative_to(ROOT) for part in PARTS for file in (ROOT / part).rglob("*") if file.is_file()]
    return {str(file) for file in files if not any(fnmatch(part, left) for part in file.parts for left in LEFT_OUT)}


def test_the_wheel_has_every_file(made: Path) -> None:
    (wheel,) = made.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = {name.removeprefix("layerloom/") for name in names if ".dist-info/" not in name}
    assert inside == files_of_the_checkout()


def test_the_source_archive_has_every_file(made: Path) -> None:
    (source,) = made.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert {*files_of_the_checkout(), "pyproject.toml", "README.md", "LICENSE"} <= inside


def test_what_is_installed_is_what_is_imported(installed: Path) -> None:
    script = """
from importlib.metadata import entry_points
from importlib.resources import files
import layerloom.composer.family.schema, layerloom.server
print(layerloom.server.__file__)
print(layerloom.composer.family.schema.FILE.is_file())
print(files("layerloom.server").joinpath("http", "grafana.json").is_file())
for group in ("vllm.general_plugins", "vllm.endpoint_plugins"):
    (found,) = entry_points(group=group, name="layerloom")
    print(found.value)
"""
    file, *facts = run(installed, "python", "-c", script).split()
    assert Path(file).is_relative_to(installed)
    assert facts == [
        "True",
        "True",
        "layerloom.server.engine.plugin:register",
        "layerloom.server.http.endpoints:LayerloomEndpoints",
    ]


def test_its_command(installed: Path) -> None:
    assert "serve" in run(installed, "layerloom", "--help")
    assert "swahili" in run(installed, "layerloom", "plan", ROOT / "demo", "math+swahili")


def test_its_engine(installed: Path) -> None:
    asked = ("--model", "math+swahili", "--prompt", QUESTION, "--max-tokens", "4")
    assert run(installed, "layerloom", "generate", ROOT / "demo", *asked).split()[-1] == "8"
