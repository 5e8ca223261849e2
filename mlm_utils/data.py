"""The book's tables: one checked pandas table each, read from ``data/``.

`data/README.md` tells where each table comes from. A wheel of this package carries them.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

CHEESES = ("A", "B", "C", "D")
BACKGROUNDS = ("rural", "urban")

SHA256 = {
    "cheese": "6dfbefd8f5586526d9612731d00ea5c34496c063f22a1dc2ae6a7cb49c47e935",
    "eight_schools": "23285fba0b49ea92941ba47bc30a67ba1bd5b3db971160973052f87130c5973a",
    "published_turing_tables": "fdb56012584ed448709ba1ad9e386711be0113a72dbb5a1cd8ef5b6b1faacf97",
}


def load_cheese() -> pd.DataFrame:
    """Load the cheese ratings: 20 raters scored two samples of each of four cheeses.

    Returns
    -------
    pandas.DataFrame
        160 rows in the published order, with columns

        - ``cheese``: category ``A``, ``B``, ``C``, ``D``;
        - ``rater``: category ``rural 1`` ... ``rural 10``, ``urban 1`` ... ``urban 10``. The
          file reuses ids 1 to 10 in both backgrounds; the label tells the people apart;
        - ``background``: category ``rural``, ``urban``;
        - ``y``: integer rating in points (33 to 91 observed).

    Raises
    ------
    ValueError
        If the file was changed, or the table is not the balanced design described above.

    Notes
    -----
    Source and probable origin: ``data/README.md``.
    """
    raw = _read_table("cheese")
    raters = [f"{background} {i}" for background in BACKGROUNDS for i in range(1, 11)]
    table = pd.DataFrame(
        {
            "cheese": to_categories(raw["cheese"], CHEESES),
            "rater": to_categories(
                (raw["background"] + " " + raw["rater"].astype(str)).rename("rater"), raters
            ),
            "background": to_categories(raw["background"], BACKGROUNDS),
            "y": raw["y"],
        }
    )
    check_table(table, numeric=["y"], categorical=["cheese", "rater", "background"])
    if not pd.api.types.is_integer_dtype(table["y"]):
        raise ValueError(
            f"column 'y' must hold integer ratings, got {table['y'].dtype}: restore it"
        )
    tasted = table.groupby(["rater", "cheese"], observed=False).size()
    if not (tasted == 2).all():
        (rater, cheese), n = next(iter(tasted[tasted != 2].items()))
        raise ValueError(
            f"rater {rater!r} scored cheese {cheese!r} {n} times, not twice: restore it"
        )
    return table


def load_eight_schools() -> pd.DataFrame:
    """Load the eight schools: estimated effects of coaching, with known standard errors.

    Returns
    -------
    pandas.DataFrame
        Eight rows with columns ``school`` (category ``A`` to ``H``), ``effect`` and ``se``
        (floats, in points of the SAT-V test).

    Raises
    ------
    ValueError
        If the file was changed.
    """
    table = _read_table("eight_schools")
    table["school"] = to_categories(table["school"], list("ABCDEFGH"))
    return table.astype({"effect": float, "se": float})


def load_published_tables() -> pd.DataFrame:
    """Load the summary tables printed by the published Turing tutorial.

    Returns
    -------
    pandas.DataFrame
        36 rows, one a parameter of one of the three published fits, with columns ``model``,
        ``parameter`` (this book's name: ``beta[A]``), ``published_as`` (the name printed
        there), ``mean``, ``std``, ``naive_se``, ``mcse``, ``ess``, ``rhat``, ``ess_per_sec``.

    Raises
    ------
    ValueError
        If the file was changed.
    """
    table = _read_table("published_turing_tables")
    check_table(table, numeric=["mean", "std", "mcse", "ess", "rhat"])
    return table


def load_planted_bugs() -> pd.DataFrame:
    """Load the registry of planted bugs: mistakes that the tests of this book must notice.

    Returns
    -------
    pandas.DataFrame
        A row a bug, with columns ``name``, ``file`` and ``inside`` (the function, empty where
        the text is unique in the file), ``right`` and ``wrong`` (the text and what replaces it),
        ``caught_by`` (the test that fails) and ``shows`` (what it would do to an analysis).

    Raises
    ------
    ValueError
        If a bug lacks one of these texts.
    """
    with (_tables() / "planted_bugs.toml").open("rb") as file:
        table = pd.DataFrame(tomllib.load(file)["bug"])
    columns = ["name", "file", "inside", "right", "wrong", "caught_by", "shows"]
    table = table.reindex(columns=columns).fillna({"inside": ""})
    check_table(table, categorical=columns)
    return table


def load_benchmark(name: str) -> dict:
    """Load what a benchmark measured, as `make bench` last wrote it.

    Parameters
    ----------
    name : str
        ``"engines"``, ``"rows"``, ``"sharding"`` or ``"approximation"``.

    Returns
    -------
    dict
        Under ``machine`` and ``versions`` where and with what it was measured; the rest is said
        in the program of the same name in ``benchmarks/``.

    Raises
    ------
    ValueError
        If there is no such benchmark.
    """
    folder = _tables() / "benchmarks"
    names = sorted(path.stem for path in folder.glob("*.json"))
    if name not in names:
        raise ValueError(f"there is no benchmark {name!r}: choose one of {names}")
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def to_categories(column: pd.Series, levels: Sequence) -> pd.Series:
    """Turn a column into categories in a stated order, refusing any value outside them.

    Parameters
    ----------
    column : pandas.Series
        Values without missing entries.
    levels : sequence
        The allowed values, in order.

    Returns
    -------
    pandas.Series
        The same rows, with dtype ``category`` and ``levels`` as its categories.

    Raises
    ------
    ValueError
        If a value is missing or not among `levels`.
    """
    unknown = ~column.isin(list(levels))
    if unknown.any():
        row, value = _first(column, unknown)
        raise ValueError(
            f"column {column.name!r} holds {value!r} in row {row!r}, which is not one of "
            f"{list(levels)}: correct the value or add it to the levels"
        )
    return column.astype(pd.CategoricalDtype(list(levels)))


def check_table(
    table: pd.DataFrame, *, numeric: Sequence[str] = (), categorical: Sequence[str] = ()
) -> None:
    """Refuse a table that a model would misread in silence.

    Parameters
    ----------
    table : pandas.DataFrame
        At least one row.
    numeric : sequence of str
        Columns that must hold finite numbers.
    categorical : sequence of str
        Columns that must hold labels: categories, text or integers.

    Raises
    ------
    TypeError
        If `table` is not a DataFrame or a column has the wrong type.
    ValueError
        If the table is empty, or a column is absent, repeated, missing a value or infinite.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"table must be a pandas DataFrame, got {type(table).__name__}")
    if table.empty:
        raise ValueError(f"table is empty (shape {table.shape}): give it at least one row")
    for name in [*numeric, *categorical]:
        found = list(table.columns).count(name)
        if found != 1:
            raise ValueError(
                f"column {name!r} occurs {found} times in the table, whose columns are "
                f"{list(table.columns)}: rename or add the column so that it occurs once"
            )
        column = table[name]
        if column.isna().any():
            row, _ = _first(column, column.isna())
            raise ValueError(
                f"column {name!r} has no value in row {row!r} ({int(column.isna().sum())} missing "
                "in all): drop or impute those rows before fitting"
            )
    for name in numeric:
        column = table[name]
        if not (pd.api.types.is_integer_dtype(column) or pd.api.types.is_float_dtype(column)):
            raise TypeError(
                f"column {name!r} must hold numbers, got {column.dtype} (first value "
                f"{column.iloc[0]!r}): convert it with pandas.to_numeric"
            )
        infinite = column.abs() == float("inf")
        if infinite.any():
            row, value = _first(column, infinite)
            raise ValueError(
                f"column {name!r} is {value} in row {row!r}: replace it by a finite number"
            )
    for name in categorical:
        values = table[name]
        if isinstance(values.dtype, pd.CategoricalDtype):
            values = values.cat.categories
        if pd.api.types.is_float_dtype(values):
            raise TypeError(
                f"column {name!r} must hold labels, got floats (first value "
                f"{table[name].iloc[0]!r}): convert it with astype(int) or astype(str)"
            )


def _first(column: pd.Series, chosen: pd.Series) -> tuple:
    """Return the label and the value of the first chosen row, as plain Python objects."""
    found = column[chosen.to_numpy()].iloc[:1]
    return found.index.tolist()[0], found.tolist()[0]


def _tables() -> Path:
    """Return the folder of the tables: the checkout's ``data/``, or the copy a wheel carries."""
    here = Path(__file__).resolve().parent
    return next(folder for folder in (here / "_tables", here.parent / "data") if folder.is_dir())


def _read_table(name: str) -> pd.DataFrame:
    """Read ``data/<name>.csv``, or the copy a wheel carries, after checking its bytes."""
    path = _tables() / f"{name}.csv"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != SHA256[name]:
        raise ValueError(
            f"{path} was changed (sha256 {digest[:12]}..., expected {SHA256[name][:12]}...): "
            "restore it from the repository or reinstall the package"
        )
    return pd.read_csv(path)
