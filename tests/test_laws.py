"""The laws of the tree, read from its syntax: where torch and IO may live, who imports whom, who reads a clock."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("world", "sessions", "gameserver")
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
NETWORKS = [path for path in FILES if path.relative_to(ROOT).as_posix().startswith("world/nn/")]

ONLY_IN = {
    "world": {"torch", "safetensors", "transformers"},
    "gameserver": {"asyncio", "websockets", "av", "socket", "http", "ssl"},
}
NUMPY_ONLY = {"world.chunk", "world.motion", "world.pattern", "world.snapshot"}  # what sessions may know of a world
OF_WORLD_FOR_SERVER = NUMPY_ONLY | {"world.loader", "world.instrument"}
CLOCK_READERS = ("gameserver/engine.py", "gameserver/connection.py", "gameserver/app.py")
OWN_CLOCK = (
    "gameserver/bench",
    "gameserver/cli.py",
    "world/meadow/train",
)  # programs, not parts
CLOCKS = {"time", "datetime"}
CHANCE = {"random", "secrets", "uuid"}
TORCH_CHANCE = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports; `from a import b` counts as a and as a.b."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


each_file = pytest.mark.parametrize("path", FILES, ids=ids(FILES))


def test_there_is_something_to_check() -> None:
    assert {name_of(path).split(".")[0] for path in FILES} == set(PACKAGES)


@each_file
def test_libraries_stay_in_their_package(path: Path) -> None:
    package = name_of(path).split(".")[0]
    for home, libraries in ONLY_IN.items():
        if package != home:
            strays = {name for name in imports(path) if name.split(".")[0] in libraries}
            assert not strays, f"{strays} belong into {home}/"


@each_file
def test_imports_run_one_way(path: Path) -> None:
    package = name_of(path).split(".")[0]
    known = {name for name in imports(path) if name.split(".")[0] in {*PACKAGES, "tests", "web_client"}}
    for name in known:
        home = name.split(".")[0]
        if package == "world":
            assert home == "world", f"world imports {name}"
        elif package == "sessions":
            allowed = home == "sessions" or name == "world" or ".".join(name.split(".")[:2]) in NUMPY_ONLY
            assert allowed, f"sessions imports {name}"
        elif home == "world":
            assert name == "world" or ".".join(name.split(".")[:2]) in OF_WORLD_FOR_SERVER, f"gameserver imports {name}"


@each_file
def test_the_vocabulary_needs_numpy_alone(path: Path) -> None:
    if name_of(path) in NUMPY_ONLY:
        for name in imports(path):
            own = name == "world" or ".".join(name.split(".")[:2]) in NUMPY_ONLY
            assert own or name.split(".")[0] in {"numpy", *sys.stdlib_module_names}, f"it imports {name}"


@each_file
def test_time_and_chance_are_arguments(path: Path) -> None:
    """`perf_counter` and the like: the loop, the connections and programs. Chance: only seeded generators, by name."""
    where = path.relative_to(ROOT).as_posix()
    used = {name.split(".")[0] for name in imports(path)}
    if where.startswith(("sessions/", "world/")) and not where.startswith(OWN_CLOCK):
        assert not used & (CLOCKS | CHANCE)
    if where.startswith("gameserver/") and not where.startswith(OWN_CLOCK + CLOCK_READERS):
        assert not used & CLOCKS, f"{where} may not read a clock"
    tree = syntax(path)
    constructors = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    initial = {node for constructor in constructors for node in ast.walk(constructor)}  # weights before training
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        library, _, function = dotted(call.func).rpartition(".")
        named = {keyword.arg for keyword in call.keywords}
        if library in ("np.random", "numpy.random"):
            assert function[0].isupper() or call.args or named, f"line {call.lineno}: {function} without a seed"
            assert function[0].isupper() or function == "default_rng", f"line {call.lineno}: the global generator"
        if library == "torch" and function in TORCH_CHANCE and call not in initial and not where.startswith(OWN_CLOCK):
            assert "generator" in named, f"line {call.lineno}: torch.{function} without a generator"


@each_file
def test_no_state_on_modules(path: Path) -> None:
    """A module may hold constants; a lower-case or mutable global, or a `global` statement, is state."""
    tree = syntax(path)
    assert not any(isinstance(node, ast.Global) for node in ast.walk(tree)), "a global statement"
    for node in tree.body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        value = getattr(node, "value", None)
        for target in targets:
            if (
                isinstance(target, ast.Name)
                and isinstance(value, ast.List | ast.Set | ast.Dict)
                and not contents(value)
            ):
                pytest.fail(f"line {node.lineno}: {target.id} begins empty, so somebody fills it")


def contents(value: ast.List | ast.Set | ast.Dict) -> bool:
    return bool(value.keys if isinstance(value, ast.Dict) else value.elts)


@pytest.mark.parametrize("path", NETWORKS, ids=ids(NETWORKS))
def test_networks_hold_weights_and_nothing_else(path: Path) -> None:
    """No method but the constructor assigns to self, and there are no buffers: whatever changes is passed in."""
    for owner in (node for node in ast.walk(syntax(path)) if isinstance(node, ast.ClassDef)):
        for method in (node for node in owner.body if isinstance(node, ast.FunctionDef)):
            for node in ast.walk(method):
                written = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store | ast.Del)
                if written and dotted(node).startswith("self.") and method.name != "__init__":
                    pytest.fail(f"{owner.name}.{method.name} line {node.lineno} writes {dotted(node)}")
                if isinstance(node, ast.Call) and dotted(node.func) == "self.register_buffer":
                    pytest.fail(f"{owner.name} line {node.lineno} registers a buffer")


def test_the_client_library_needs_the_protocol_and_nothing_of_the_server() -> None:
    """No torch, no decoder before there is something to decode, no session: an agent's process stays its own."""
    code = "import sys, gameserver.bot_sync, gameserver.policies\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "av", "sessions", "gymnasium"}
    client = ["bot", "bot_error", "bot_sync", "dial", "due_clock", "policies", "protocol", "view", "wire"]
    ours = {name for name in loaded if name.split(".")[0] in PACKAGES and "." in name}
    assert ours == {f"gameserver.{name}" for name in client} | {"world.motion"}


FRESH = [("sessions", "torch av websockets asyncio"), ("gameserver.protocol", "torch av"), ("world.pattern", "torch")]


@pytest.mark.parametrize("package, forbidden", FRESH)
def test_importing_it_in_a_fresh_process_loads_nothing_else(package: str, forbidden: str) -> None:
    modules = [name_of(path) for path in FILES if name_of(path).startswith(package)]
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += f"print(sorted(set({forbidden.split()!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
