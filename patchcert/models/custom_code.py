"""Names the code that a user's own network is made of, by the digest of its files; no torch, nothing is executed."""

import ast
import hashlib
import importlib.machinery
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from patchcert.errors import ModelError

_PACKAGE_OF_THIS_FILE = __name__.partition(".")[0]


def is_custom(network: str) -> bool:
    """Return whether a network's name is that of a user's function, ``package.module:function``."""
    module, colon, _ = network.partition(":")
    return bool(colon) and module != "torchvision"


def custom_code_digest(network: str) -> str | None:
    """Return a sha256 over the code of a ``package.module:function`` network; None for the package's own networks.

    Editing that code can change what a model computes while its weights stay as they are. It is the module's file, and
    every module that it imports, directly or through others, anywhere in its text, as long as they belong to the user:
    of the same top-level package, or from outside the standard library and the folders of installed packages.
    Packages on the way count with their ``__init__``. Modules are found as ``import`` finds them and read as text.

    Raises:
        ModelError: there is no such module.
    """
    if not is_custom(network):
        return None
    digests = {name: hashlib.sha256(source).hexdigest() for name, source in _sources(network).items() if source}
    if len(digests) == 1:
        return next(iter(digests.values()))
    text = "".join(f"{name}\0{digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _sources(network: str) -> dict[str, bytes]:
    """The user's modules that a network is made of: name -> bytes of the file."""
    root = network.partition(":")[0]
    top = root.partition(".")[0]
    sources: dict[str, bytes] = {}
    waiting = [*_with_packages(root)]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        spec = _find(name)
        origin = spec.origin if spec is not None and spec.has_location else None
        if name == root and origin is None:
            raise _missing(network, f"there is no module {root!r}" if spec is None else "it is a folder of modules")
        if spec is None or (name.partition(".")[0] != top and not _is_of_user(spec)):
            continue
        if origin is not None:
            try:
                sources[name] = Path(origin).read_bytes()
            except OSError as error:
                raise _missing(network, str(error)) from None
        is_package = spec.submodule_search_locations is not None
        for imported in _imports(sources.get(name, b""), name if is_package else name.rpartition(".")[0]):
            new = [found for found in _with_packages(imported) if found not in seen]
            seen.update(new)
            waiting += new
    return sources


def _missing(network: str, problem: str) -> ModelError:
    return ModelError(
        f"classifier: the code of {network!r} cannot be found: {problem}.\n"
        "  Put the module on the Python path (PYTHONPATH) of this machine and of every machine that computes."
    )


def _with_packages(name: str) -> Iterator[str]:
    """A module's name and those of the packages around it, outermost first: each is executed by an import."""
    parts = name.split(".")
    return (".".join(parts[:length]) for length in range(1, len(parts) + 1))


def _find(name: str) -> importlib.machinery.ModuleSpec | None:
    """Finds a module as ``import`` would, but without importing the packages around it."""
    package, _, last = name.rpartition(".")
    path = None
    if package:
        around = _find(package)
        if around is None or around.submodule_search_locations is None:
            return None
        path = list(around.submodule_search_locations)
    for finder in sys.meta_path:
        try:
            spec = finder.find_spec(name, path)
        except KeyError:
            # A folder without __init__ inside of a package that is not imported.
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(Path(place) / last) for place in path or ()]
        if spec is not None:
            return spec
    return None


def _is_of_user(spec: importlib.machinery.ModuleSpec) -> bool:
    """Whether a module lies outside the standard library, installed packages and this package."""
    if spec.name.partition(".")[0] in {_PACKAGE_OF_THIS_FILE, *sys.stdlib_module_names}:
        return False
    places = [spec.origin] if spec.has_location and spec.origin else list(spec.submodule_search_locations or ())
    installed = _installed_folders()
    return any(not any(Path(place).resolve().is_relative_to(folder) for folder in installed) for place in places)


def _installed_folders() -> set[Path]:
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    folders |= {place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")}
    return {Path(folder).resolve() for folder in folders if folder}


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Names of what a file imports anywhere, whether they are modules or something inside of one.

    Args:
        source: of a Python file; anything else imports nothing that could be read here.
        package: what relative imports start from.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                parts = parts[: len(parts) - node.level + 1]
                base = ".".join([*parts, *([base] if base else [])])
            if base:
                yield base
                yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and _is_import_call(node.func):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                name = first.value
                # importlib.import_module(".part", __package__)
                yield f"{package}{name}" if name.startswith(".") else name


def _is_import_call(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")
