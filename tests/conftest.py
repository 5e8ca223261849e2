"""What the tests share: one session of JAX, one table, one design, one long fit."""

import os
from contextlib import contextmanager

# The tests are no book build: without this, a fit here would be recorded in its ledger.
os.environ.pop("MLM_LEDGER", None)

import jax
import pytest

import mlm_utils
from mlm_utils.data import load_cheese
from mlm_utils.design import design
from mlm_utils.models import varying_intercept
from mlm_utils.sampling import fit

mlm_utils.setup(cache=True)

# Those of the built site need a browser and a book: `make site-test`.
collect_ignore = ["site"]

# Tables that the tests fill with `record_property` and that are printed after the last of them.
TABLES = {
    "density": ("model", "data", "points", "worst relative difference"),
    "calibration": ("model", "data sets", "quantities", "least uniform", "p-value", "diverging"),
}


def pytest_terminal_summary(terminalreporter):
    """Print what was proved of each model."""
    reports = [
        report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])
    ]
    for name, header in TABLES.items():
        recorded = [
            v for r in reports if r.when == "call" for k, v in r.user_properties if k == name
        ]
        rows = [header, *sorted(tuple(map(str, row)) for row in recorded)]
        if len(rows) == 1:
            continue
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        terminalreporter.section(name)
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.write_line("  ".join(cells).rstrip())


@pytest.fixture(scope="session")
def cheese():
    """The table of cheese ratings. Tests copy it before they change it."""
    return load_cheese()


@pytest.fixture(scope="session")
def rows(cheese):
    """The cheese table as a design: ratings explained by cheese, grouped by background."""
    return design(cheese, outcome="y", predictor="cheese", group="background")


@pytest.fixture(scope="session")
def posterior(rows):
    """The long fit of the random-intercept model, shared by every test that needs draws."""
    return fit(
        varying_intercept,
        rows.arguments,
        key=jax.random.key(1),
        labels=rows.labels,
        target_accept=0.95,
        dense_mass=True,
    )


@pytest.fixture(scope="session")
def refuses():
    """Return a context that expects an error whose message says all of some texts."""

    @contextmanager
    def expect(error, *says):
        with pytest.raises(error) as refusal:
            yield
        for text in says:
            assert text in str(refusal.value)

    return expect
