"""What sd-scripts makes of images on their way to the VAE, by its own functions. Started in the folder of sd-scripts:

    python -m pixelkit.engines.kohya.view

Standard input: a line of settings {"resolution", "step"}, then a line for each image {"path", "alpha", "save"}; standard
output: a line for each {"resized", "bucket", "same"}, behind a record separator; `same`: the pixels are those of the file.
"""

from __future__ import annotations

import json
import sys
from typing import Any

SEPARATOR = "\x1e"


def main() -> None:
    """Answer until the input ends."""
    import numpy as np
    from library import train_util
    from PIL import Image

    settings = json.loads(sys.stdin.readline())
    side, step = settings["resolution"], settings["step"]
    for line in sys.stdin:
        asked = json.loads(line)
        buckets = train_util.BucketManager(True, (side, side), 64, max(side, 4096), step)  # noqa: FBT003 - sd-scripts' own order
        answer: dict[str, Any] = {}
        try:
            image = train_util.load_image(asked["path"], asked["alpha"])
            height, width = image.shape[:2]
            bucket, resized, _ = buckets.select_bucket(width, height)
            seen, _, _ = train_util.trim_and_resize_if_required(False, image, bucket, resized, None)  # noqa: FBT003
            answer = {"resized": resized, "bucket": bucket, "same": bool(np.array_equal(seen, image))}
            if asked["save"]:
                Image.fromarray(seen[..., :3]).save(asked["save"])
        except ZeroDivisionError:
            answer = {"resized": [width, height], "bucket": [0, 0], "same": False}
        sys.stdout.write(f"{SEPARATOR}{json.dumps(answer)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
