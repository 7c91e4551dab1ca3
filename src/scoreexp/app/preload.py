"""What a sweep's fork server does once for all of its jobs: import, and fill the caches of composing and checking.

No tensor is computed here, which would start threads.
"""

from importlib import import_module

from scoreexp.app.composition import composed
from scoreexp.app.config_check import check_config

LATE = (
    "scoreexp.app.launch",
    "matplotlib.backends.backend_agg",
    "imagecodecs",
    "tifffile",
)  # else imported on first use

for name in LATE:
    import_module(name)
for package in ("data", "networks", "samplers", "restorers", "objectives", "metrics"):
    module = import_module(f"scoreexp.{package}")
    for name in dir(module):
        getattr(module, name)
check_config(composed([], "train"))
