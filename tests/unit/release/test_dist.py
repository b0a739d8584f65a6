"""What a release publishes is of one version, and the wheel for every machine runs what needs no decoder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from sheetanchor import __version__
from sheetanchor.errors import DECODER_MISSING

ROOT = Path(__file__).resolve().parents[3]
BUILD = "import sys; from scikit_build_core.build import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)],
        cwd=ROOT,
        env={**os.environ, "SHEETANCHOR_WITHOUT_DECODER": "1", "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == built.returncode, built.stderr
    return folder / built.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run with what is installed there, beside this environment's other packages and without its own sheetanchor."""
    path = os.pathsep.join([str(installed), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return subprocess.run(
        [sys.executable, "-S", "-m", *arguments],
        env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_wheel_for_every_machine_needs_no_compiler(wheel: Path) -> None:
    """Built with no program in the path; it has every module, and no decoder."""
    names = zipfile.ZipFile(wheel).namelist()

    assert f"sheetanchor-{__version__}-py3-none-any.whl" == wheel.name
    assert [] == [name for name in names if name.endswith(".so")]
    assert {"sheetanchor/store/hot_state.lua", "sheetanchor_operator/plugin/__main__.py"} <= set(names)


@pytest.mark.parametrize("module", ["sheetanchor_operator", "sheetanchor_operator.plugin", "sheetanchor"])
def test_operator_plugin_and_command_line_need_no_decoder(installed: Path, module: str) -> None:
    """They start without it."""
    helped = run(installed, module, "--help")

    assert (0, "") == (helped.returncode, helped.stderr)
    assert helped.stdout.startswith("usage: ")


def test_a_role_that_decodes_says_what_is_missing(installed: Path) -> None:
    """One line, and the exit code of a failure."""
    failed = run(installed, "sheetanchor", "process", "--symbol", "BTCUSDT", "--redis-url", "redis://127.0.0.1:1")

    assert 1 == failed.returncode
    assert DECODER_MISSING in failed.stderr
    assert "Traceback" not in failed.stderr


def version_module() -> ModuleType:
    spec = spec_from_file_location("version", ROOT / ".ci" / "version.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_is_of_one_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Distribution, chart and the chart's image; another one is named with its place."""
    version = version_module()

    assert {__version__} == set(version.versions().values())
    monkeypatch.setattr(version, "versions", lambda: {"pyproject.toml": "1.0.0", "Chart.yaml": "0.9.0"})
    assert 1 == version.main()
    assert "Chart.yaml is 0.9.0; expected one version everywhere" in capsys.readouterr().err
