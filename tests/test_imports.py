"""Which room may import which; and that importing the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "batchlab"
HEAVY = {"torch", "triton", "ray", "altair", "scipy", "sklearn", "pandas", "pooch", "optuna"}

ALLOWED: dict[str, set[str]] = {
    "spec": set(),
    "documents": {"spec"},
    "record": set(),
    "workloads": {"spec"},
    "probes": {"record", "spec"},
    "engine": {"spec", "record", "workloads", "probes"},
    "store": {"spec", "record"},
    "backends": {"spec"},
    "plan": {"spec"},
    "lockstep": {"plan", "spec"},
    "calibrate": {"plan", "lockstep", "engine", "workloads", "backends", "spec"},
    "jobs": {"plan", "engine", "store", "backends", "spec", "record", "workloads"},
    "gate": {"jobs", "plan", "engine", "store", "spec"},
    "runner": {
        "gate",
        "jobs",
        "calibrate",
        "plan",
        "lockstep",
        "engine",
        "store",
        "backends",
        "spec",
    },
    "analysis": {"record", "spec"},
    "studies": {"spec", "record", "analysis"},
    "sweep": {"engine", "workloads", "analysis", "backends", "documents", "spec"},
    "report": {"record", "documents"},
    "options": {"spec", "workloads"},
    "integrations": {"probes", "record", "spec", "analysis", "workloads"},
    "advice": {
        "spec",
        "record",
        "workloads",
        "engine",
        "probes",
        "analysis",
        "report",
        "documents",
    },
    "listing": {"record", "spec", "store"},
    "printing": set(),
    "progress": set(),
    "stopping": set(),
    "speed": {"engine", "workloads", "backends", "spec"},
}
NO_TORCH = (
    "spec",
    "record",
    "analysis",
    "studies",
    "report",
    "printing",
    "progress",
    "plan",
    "lockstep",
    "stopping",
    "options",
    "cli",
    "cli_sweep",
    "cli_advise",
    "cli_store",
    "cli_bench",
    "archive",
    "listing",
)
ANYTHING = {
    "cli",
    "cli_sweep",
    "cli_advise",
    "cli_store",
    "cli_bench",
    "laboratory",
    "archive",
    "__init__",
    "__main__",
}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_the_allowed_way(path: Path) -> None:
    here = room(path)
    if here in ANYTHING:
        return
    rooms = {n.split(".")[1] for n in imported(path) if n.startswith("batchlab.")}
    known = {r for r in rooms if (SOURCE / r).is_dir() or (SOURCE / f"{r}.py").exists()}
    assert known - {here} <= ALLOWED[here], f"{here} imports {known - {here} - ALLOWED[here]}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_rooms_without_torch(path: Path) -> None:
    if room(path) in NO_TORCH:
        names = {n.split(".")[0] for n in imported(path, top_level_only=True)}
        assert "torch" not in names


def test_the_walk_sees_a_forbidden_import(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from batchlab.engine.train import train\n")
    assert "batchlab.engine.train" in imported(path)


def test_import_is_light() -> None:
    code = f"import batchlab, sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
