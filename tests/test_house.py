"""The house stands as docs/architecture.md draws it, and the style is kept: measured."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import medseg

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "medseg").rglob("*.py"))
ROOMS = sorted(path.parent.name for path in (ROOT / "medseg").glob("*/__init__.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def functions() -> Iterator[tuple[str, Function]]:
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, Function):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_floors_are_kept() -> None:
    # In a process of its own: it sets up a log for the whole process.
    code = (
        "import sys; from importlinter.cli import lint_imports; "
        "sys.exit(lint_imports(config_filename=sys.argv[1], no_cache=True))"
    )
    done = python("-c", code, str(ROOT / "pyproject.toml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_is_on_the_page() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for room in ROOMS:
        assert f"{room}/" in page
    for path in SOURCES:
        assert path.stem not in {"utils", "helpers", "common", "misc"}
        assert path.parent.name in page or path.parent == ROOT / "medseg"


def test_one_door() -> None:
    assert len(medseg.__all__) <= 20
    assert medseg.__all__ == sorted(medseg.__all__)
    for name in medseg.__all__:
        assert getattr(medseg, name) is not None
    with pytest.raises(AttributeError, match="nope"):
        medseg.nope  # noqa: B018


def test_every_module_imports() -> None:
    for path in SOURCES:
        if path.stem != "__main__":
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            import_module(name.removesuffix(".__init__"))


@pytest.mark.parametrize("arguments", [("-c", "import medseg"), ("-m", "medseg", "--help")])
def test_starts_light(arguments: tuple[str, ...]) -> None:
    done = python("-X", "importtime", *arguments)
    assert done.returncode == 0
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert loaded & {"typer", "medseg"}
    heavy = {"torch", "monai", "numpy", "nibabel", "scipy", "SimpleITK", "matplotlib", "pydantic"}
    assert not loaded & heavy


def test_files_are_short() -> None:
    long = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def length(function: Function) -> int:
    """Lines of a function without its docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


def test_functions_are_short() -> None:
    everything = dict(functions())
    # The signature of a command is its list of options, one by one.
    long = [
        name
        for name, function in everything.items()
        if length(function) > 50 and "medseg/cli/" not in Path(name).as_posix()
    ]
    assert len(long) <= 0.02 * len(everything), long


def test_parameters_are_few() -> None:
    crowded = []
    for name, function in functions():
        given = function.args
        count = len([*given.posonlyargs, *given.args, *given.kwonlyargs])
        own = [argument.arg for argument in given.args[:1] if argument.arg in ("self", "cls")]
        if count - len(own) > 7 and "medseg/cli/" not in Path(name).as_posix():
            crowded.append(name)
    assert crowded == []


def test_nothing_runs_code_from_files() -> None:
    found = []
    for path in SOURCES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
                bad = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"} & set(names)
            elif isinstance(node, ast.Call):
                bad = {"eval", "exec", "torch.load", "yaml.load"} & {ast.unparse(node.func)}
                # Tensors, containers and numbers alone (tests/package/test_nnunet.py).
                if any(ast.unparse(keyword) == "weights_only=True" for keyword in node.keywords):
                    bad -= {"torch.load"}
            else:
                continue
            found += [f"{path.relative_to(ROOT)}:{node.lineno} {name}" for name in bad]
    assert found == []


def test_the_library_does_not_print() -> None:
    for path in SOURCES:
        if path.parent.name != "cli":
            calls = {
                ast.unparse(n.func) for n in ast.walk(tree_of(path)) if isinstance(n, ast.Call)
            }
            assert not calls & {"print", "sys.exit", "logging.basicConfig"}, path


def test_the_environment_is_read_in_one_file() -> None:
    readers = {
        path.name
        for path in SOURCES
        if {"os.environ", "os.getenv"}
        & {ast.unparse(n) for n in ast.walk(tree_of(path)) if isinstance(n, ast.Attribute)}
    }
    assert readers <= {"settings.py"}


def tracked_files() -> list[Path]:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_path_of_one_machine() -> None:
    tops = "|".join(("home", "root", "Users", "work", "opt", "mnt", "tmp"))
    path_of_a_machine = re.compile(rf"(?<![\w./~:)}}\]])/(?:{tops})/\w")
    found = []
    for path in tracked_files():
        if path.suffix in {".gz", ".png", ".jpg", ".npz", ".pth"}:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if path_of_a_machine.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number} {line.strip()[:80]}")
    assert found == []


def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_in_the_readme_uses_what_there_is() -> None:
    blocks = re.findall(r"```python\n(.*?)```", readme(), flags=re.DOTALL)
    assert blocks
    kinds = {"medseg": medseg, "model": medseg.Model, "result": medseg.Result}
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = kinds[node.value.id]
                fields = getattr(owner, "__dataclass_fields__", {})
                assert hasattr(owner, node.attr) or node.attr in fields, ast.unparse(node)


def test_options_in_the_readme_are_options_of_commands() -> None:
    from typer.main import get_command

    from medseg.cli.app import app

    group = get_command(app)
    commands = [group, *getattr(group, "commands", {}).values()]
    known = {name for command in commands for option in command.params for name in option.opts}
    known |= {"--help", "--index-url"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", readme())) <= known
