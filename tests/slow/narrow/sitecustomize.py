"""On PYTHONPATH in a trainer's process: sd-scripts builds T5 and CLIP-G, whose sizes it knows by heart, with two layers."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from typing import Any

LAYERS = {"T5Config": "num_layers", "CLIPConfig": "num_hidden_layers", "CLIPTextConfig": "num_hidden_layers"}


class Narrow(importlib.abc.MetaPathFinder):
    """Changes the config classes that library.flux_utils and library.sd3_utils have imported."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name not in {"library.flux_utils", "library.sd3_utils"}:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_narrow(module: Any) -> None:
            execute(module)
            for config, layers in LAYERS.items():
                if original := getattr(module, config, None):
                    setattr(
                        module,
                        config,
                        lambda original=original, layers=layers, **given: original(**{**given, layers: 2}),
                    )

        spec.loader.exec_module = execute_and_narrow  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Narrow())
