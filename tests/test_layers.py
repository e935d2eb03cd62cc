"""The layers of the package: imports point down, and heavy libraries load where they are used only."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "patchcert"

# What may be imported from: the same package, and every layer further up in this list.
LAYERS = (
    ("errors", "__version__", "interruption", "summaries", "checks", "addresses"),
    ("geometry",),
    ("certificates", "data"),
    ("votes",),
    ("views",),
    ("models",),
    ("prediction", "training"),
    ("attacks",),
    ("provenance", "workspace", "defenses", "process", "listening", "next_commands"),
    ("trained_models",),
    ("studies",),
    ("tracking", "stages", "recipes", "console"),
    ("readiness", "verification"),
    ("suites", "pipeline"),
    (
        "suite_run",
        "doctor",
    ),
    ("cli",),
    ("__main__",),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

# Who may import a library, wherever in a file.
TORCH_LAYERS = {"views", "models", "prediction", "training", "attacks", "stages"}
USERS = {
    "torch": TORCH_LAYERS,
    "torchvision": TORCH_LAYERS | {"data"},
    "safetensors": {"models"},
    "ray": {"stages"},
    "mlflow": {"tracking"},
    "matplotlib": {"studies"},
    "sklearn": {"data"},
    "PIL": {"data"},
    "tyro": {"cli"},
}
# Everything that one layer may import beside the standard library.
ALLOWED = {
    "errors": set(),
    "geometry": {"numpy"},
    "certificates": {"numpy", "scipy"},
    "votes": {"numpy", "pyarrow"},
    "data": {"numpy", "pyarrow", "PIL", "scipy", "sklearn", "torchvision"},
}
# Settings, geometry and everything that the command line shows without computing.
LIGHT_MODULES = (
    "patchcert",
    "patchcert.recipes",
    "patchcert.suites",
    "patchcert.cli",
    "patchcert.workspace",
    "patchcert.certificates",
    "patchcert.data",
    "patchcert.votes",
    "patchcert.views.encoding",
    "patchcert.models.config",
    "patchcert.models.checkpoint_config",
    "patchcert.models.custom_code",
    "patchcert.trained_models",
    "patchcert.prediction.config",
    "patchcert.training.config",
)
HEAVY = ("torch", "torchvision", "ray", "mlflow")


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py").replace("__init__", "__version__")


def imports_of(path):
    """Full names of everything a module imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from [node.module] if node.module != "patchcert" else [f"patchcert.{a.name}" for a in node.names]


def test_all_layers_are_listed():
    assert {layer_of(path) for path in modules()} <= RANKS.keys()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    layer = layer_of(path)
    for name in imports_of(path):
        package, _, rest = name.partition(".")
        if package == "patchcert" and rest:
            imported = rest.partition(".")[0]
            assert imported == layer or RANKS[imported] < RANKS[layer], f"{layer} imports {name}, which is not below it"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_in_their_layers(path):
    layer = layer_of(path)
    for name in imports_of(path):
        library = name.partition(".")[0]
        if library == "patchcert" or library in sys.stdlib_module_names:
            continue
        assert layer in USERS.get(library, {layer}), f"{layer} imports {library}"
        assert library in ALLOWED.get(layer, {library}), f"{layer} imports {library}"


def test_one_file_imports_matplotlib_which_reads_the_environment():
    importing = {path.name for path in modules() if any(n.startswith("matplotlib") for n in imports_of(path))}
    assert importing == {"drawing.py"}


def test_every_library_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {requirement.split("[")[0].split(">")[0].split("=")[0] for requirement in project["dependencies"]}
    distributions = {"PIL": "pillow", "sklearn": "scikit-learn"}
    imported = {name.partition(".")[0] for path in modules() for name in imports_of(path)}
    imported -= set(sys.stdlib_module_names) | {"patchcert"}
    assert {distributions.get(name, name) for name in imported} <= declared


def test_no_module_is_named_like_a_standard_one_or_like_nothing():
    forbidden = set(sys.stdlib_module_names) | {"utils", "helpers", "misc", "common"}
    assert not {path.stem for path in modules()} & forbidden


def run_python(*arguments):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=120)


def first_to_load(modules, libraries):
    """Which of some modules, imported one after the other, loads the first of some libraries: "module: library"."""
    program = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
    if loaded := [name for name in {libraries!r} if name in sys.modules]:
        sys.exit(print(f"{{module}}: {{loaded}}"))
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_light_modules_load_no_heavy_library():
    assert first_to_load(LIGHT_MODULES, HEAVY) == ""
    assert first_to_load(["patchcert.geometry", "patchcert.models.classifier"], ["torch"]).startswith(
        "patchcert.models"
    )


def test_torchvision_is_loaded_only_by_networks_that_are_made_of_its_parts():
    """It loads torch's compiler, which takes as long as all the rest of torch."""
    modules = ["patchcert.training.loop", "patchcert.models.networks", "patchcert.stages.vote_worker"]
    assert first_to_load(modules, ["torchvision", "torch._dynamo"]) == ""


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["show", "column4-cifar10"], ["no-such-command"]])
def test_the_command_line_answers_without_heavy_libraries(arguments):
    program = f"""
import sys
from patchcert.cli import main
code = main({arguments!r})
heavy = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"loaded {{heavy}}" if heavy else code)
"""
    done = run_python("-c", program)
    assert done.returncode == (2 if arguments == ["no-such-command"] else 0), done.stderr
    assert done.stdout or done.stderr


def test_help_takes_under_a_second_of_work():
    """Processor time, because a busy machine makes any wall clock late."""
    program = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "patchcert", "--help"], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1
