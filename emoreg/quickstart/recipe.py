"""Finding the training recipes: in the checkout, or in the installed package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_recipe(name: str) -> ModuleType:
    """Return the recipe `name` as a module.

    Raises:
        FileNotFoundError: If it lies neither beside the package nor in it.
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "recipes", package / "recipes"):
        path = folder / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"emoreg_recipe_{name}", path)
        if path.is_file() and spec is not None and spec.loader is not None:
            module = importlib.util.module_from_spec(spec)
            sys.path.insert(0, str(folder))  # as Python does for a program
            try:
                spec.loader.exec_module(module)
            finally:
                sys.path.remove(str(folder))
            return module
    raise FileNotFoundError(
        f"the recipe {name}.py must lie beside the package or in it; found neither. "
        "Install emoreg anew, or run from a checkout"
    )
