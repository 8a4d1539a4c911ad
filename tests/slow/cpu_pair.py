"""Our entry, run as `-m cpu_pair`: on several CPUs accelerate must be kept from what it does not do on several GPUs.

It wraps a frozen model in DistributedDataParallel (accelerator.py:1747), which refuses it.
"""

from __future__ import annotations

import sys
from typing import Any

from accelerate import Accelerator

from pixelkit.engines.kohya import entry

if __name__ == "__main__":
    PREPARE = Accelerator.prepare_model

    def prepare_model(self: Accelerator, model: Any, *rest: Any, **named: Any) -> Any:
        trained = any(parameter.requires_grad for parameter in model.parameters())
        return PREPARE(self, model, *rest, **named) if trained else model

    Accelerator.prepare_model = prepare_model
    entry.end_process(entry.main(sys.argv[1:]))
