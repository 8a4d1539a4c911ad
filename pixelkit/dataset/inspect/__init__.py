"""A set of sprites looked at: duplicates, outliers, soft and damaged art, the curation checklist, whether there is enough."""

from pixelkit.dataset.inspect.report import Purpose, Report, inspect

__all__ = ["Purpose", "Report", "inspect"]
