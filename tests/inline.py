"""`launch` in this process, without Ray."""

from functools import partial

from sweeps.execution import launcher

launch = partial(launcher.launch, executor="inline")
