"""The command line in this process, for every test that calls it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from batchlab.cli import main


@dataclass
class Done:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


class Call(Protocol):
    """Runs the command line in this process, in the test's own directory."""

    def __call__(self, *words: object) -> Done: ...


@pytest.fixture
def batchlab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Call:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BATCHLAB_DATA_DIR", raising=False)

    def call(*words: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["batchlab", *(str(word) for word in words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return call
