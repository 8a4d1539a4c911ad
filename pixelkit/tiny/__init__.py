"""The small base model that ships with pixelkit: a painter of sprites, the model's parts, its training, its weights.

python -m pixelkit.tiny.train --out DIR        # train it again, about an hour on one CPU core
python -m pixelkit.tiny.quickstart --out DIR   # draw the quickstart data set again
"""
