"""What the chapters share: data, designs, models, sampling and figures.

Import the rooms by name (``from mlm_utils.data import load_cheese``). The package itself
holds one function, :func:`setup`, which every chapter calls in its first cell.
"""

import os
import warnings
from pathlib import Path

HOST_DEVICES = 4


def setup(chapter=None, *, cache=True):
    """Prepare a session: float64, four host devices, a compilation cache, the plot style.

    This is the only function of the package that touches global state. Call it before
    anything else uses JAX: the number of devices is fixed once JAX has started.

    Parameters
    ----------
    chapter : str, optional
        Slug of the calling chapter (``"random_intercept"``). While the book builds, fits are
        recorded under this name, and the chapter's earlier records are removed.
    cache : bool, default True
        Keep compiled programs on disk, so that a second process which fits the same model
        starts sampling sooner. They are kept in ``$JAX_COMPILATION_CACHE_DIR``, else in
        ``mlm-utils/jax`` below ``$XDG_CACHE_HOME`` (``~/.cache``); the folder is safe to delete.

    Warns
    -----
    RuntimeWarning
        If JAX had already started with fewer devices: chains then run one after another.

    Raises
    ------
    ValueError
        If `chapter` is not a slug: lower-case letters, digits and underscores.
    """
    import jax
    import numpyro

    from mlm_utils import figures, sampling

    jax.config.update("jax_enable_x64", True)
    numpyro.set_host_device_count(HOST_DEVICES)
    if cache:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or Path(home, "mlm-utils", "jax")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    else:
        jax.config.update("jax_compilation_cache_dir", None)
    if jax.default_backend() == "cpu" and jax.local_device_count() < HOST_DEVICES:
        warnings.warn(
            f"JAX was running with {jax.local_device_count()} device(s) before mlm_utils.setup() "
            "was called, so chains run one after another; restart and call setup() first.",
            RuntimeWarning,
            stacklevel=2,
        )
    figures.use_house_style()
    if chapter is not None:
        sampling.open_ledger(chapter)
