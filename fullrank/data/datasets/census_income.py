"""Census-Income (KDD): two labels per person, from the US surveys of 1994 and 1995.

One row is one person. Tasks as in MMoE (Ma et al., KDD 2018): income above 50,000 dollars, and
never married. Labels are known at once.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import polars as pl

from fullrank.data.datasets._sample import sampled
from fullrank.data.home import RemoteFile, find
from fullrank.data.spec import Category, Number, Spec, Target
from fullrank.data.split import Splits, at_random
from fullrank.data.text import BadRows, Dialect, Kind, read_delimited

NAME = "census_income"
FOLDERS = (NAME,)  # below the data root
TITLE = "Census-Income (KDD)"
LICENCE = "UCI repository, CC BY 4.0"
HOME = "https://archive.ics.uci.edu/dataset/117/census+income+kdd"
NOTE = (
    "without census-income.data the official test half is cut 70 : 15 : 15 at random: not"
    " comparable with numbers that were trained on the official train half"
)
_BASE = "https://archive.ics.uci.edu/ml/machine-learning-databases/census-income-mld/"
FILES = (
    RemoteFile(  # no checksum is published
        url=_BASE + "census-income.data.gz", path="census_income/census-income.data.gz"
    ),
    RemoteFile(  # measured on a copy whose 99,762 rows were all parsed
        url=_BASE + "census-income.test.gz",
        path="census_income/census-income.test.gz",
        sha256="5ac4cacd3ca9f1ecb10de1a0a41e4ac68fdc419e3fec190f5c0c6cc03b2ea659",
        bytes=3_261_416,
    ),
)
SPEC = Spec(
    columns=(
        Number(name="age"),  # years
        Category(name="class_worker"),  # private, self-employed, ...
        Category(name="det_ind_code"),  # industry, detailed code
        Category(name="det_occ_code"),  # occupation, detailed code
        Category(name="education"),
        Number(name="wage_per_hour", transform="log"),  # cents
        Category(name="hs_college"),  # enrolled in school last week
        Category(name="major_ind_code"),  # industry
        Category(name="major_occ_code"),  # occupation
        Category(name="race"),
        Category(name="hisp_origin"),
        Category(name="sex"),
        Category(name="union_member"),
        Category(name="unemp_reason"),  # reason for unemployment
        Category(name="full_or_part_emp"),
        Number(name="capital_gains", transform="log"),  # dollars
        Number(name="capital_losses", transform="log"),  # dollars
        Number(name="stock_dividends", transform="log"),  # dollars
        Category(name="tax_filer_stat"),
        Category(name="region_prev_res"),  # of the previous residence
        Category(name="state_prev_res"),
        Category(name="det_hh_fam_stat"),  # place in the household, detailed
        Category(name="det_hh_summ"),  # place in the household
        Category(name="mig_chg_msa"),  # migration between city areas
        Category(name="mig_chg_reg"),  # between regions
        Category(name="mig_move_reg"),  # within a region
        Category(name="mig_same"),  # lived in this house a year ago
        Category(name="mig_prev_sunbelt"),
        Number(name="num_emp"),  # code 0 to 6 that grows with the size of the employer
        Category(name="fam_under_18"),  # parents present, of minors
        Category(name="country_father"),  # of birth
        Category(name="country_mother"),
        Category(name="country_self"),
        Category(name="citizenship"),
        Category(name="own_or_self"),  # owns a business; code
        Category(name="vet_question"),  # filled in the veterans' questionnaire
        Category(name="vet_benefits"),  # code
        Number(name="weeks_worked"),  # in the year
        Category(name="year"),  # of the survey: 94 or 95
        Target(name="income_50k"),  # income above 50,000 dollars
        Target(name="never_married"),  # marital status is "Never married"
    ),
    ignore=(
        ("instance_weight", "a weight of the survey's sampling, not a property of the person"),
        ("marital_stat", "it is the label never_married"),
    ),
)
COLUMNS = (
    *("age", "class_worker", "det_ind_code", "det_occ_code", "education", "wage_per_hour"),
    *("hs_college", "marital_stat", "major_ind_code", "major_occ_code", "race", "hisp_origin"),
    *("sex", "union_member", "unemp_reason", "full_or_part_emp", "capital_gains"),
    *("capital_losses", "stock_dividends", "tax_filer_stat", "region_prev_res"),
    *("state_prev_res", "det_hh_fam_stat", "det_hh_summ", "instance_weight", "mig_chg_msa"),
    *("mig_chg_reg", "mig_move_reg", "mig_same", "mig_prev_sunbelt", "num_emp"),
    *("fam_under_18", "country_father", "country_mother", "country_self", "citizenship"),
    *("own_or_self", "vet_question", "vet_benefits", "weeks_worked", "year", "income_50k"),
)
_SEED = 117  # the number of the dataset at its home
_NUMBERS = {c.name for c in SPEC.columns if isinstance(c, Number)} | {"instance_weight"}


def load(root: Path, bad_rows: BadRows) -> Splits:
    """Reads `census_income/census-income.data` and `census-income.test`, plain or gzipped.

    With both, the first is train and the second is halved at random into valid and test; with the
    second alone, it is cut 70 : 15 : 15.
    """
    folder = root / "census_income"
    test = _read(find(NAME, folder, ("census-income.test",), LICENCE), bad_rows)
    for name in ("census-income.data", "census-income.data.gz"):
        if (folder / name).is_file():
            halves = at_random(test, fractions={"valid": 0.5, "test": 0.5}, seed=_SEED)
            return {"train": _read(folder / name, bad_rows), **halves}
    return at_random(test, fractions={"train": 0.7, "valid": 0.15, "test": 0.15}, seed=_SEED)


def note(root: Path) -> str:
    """Returns what a report must say about the files in this root."""
    folder = root / "census_income"
    return "" if any(folder.glob("census-income.data*")) else NOTE


def _read(path: Path, bad_rows: BadRows) -> pl.LazyFrame:
    kinds: dict[str, Kind] = {c: "float" if c in _NUMBERS else "text" for c in COLUMNS}
    kinds["income_50k"] = "label"
    dialect = Dialect(
        separator=", ", quote="", header=False, words=(("- 50000.", 0), ("50000+.", 1))
    )
    rows = read_delimited(path, kinds, bad_rows, dialect=dialect)
    return rows.with_columns(
        never_married=(pl.col("marital_stat") == "Never married").cast(pl.Int8)
    )


def sample() -> pl.DataFrame:
    """Returns invented rows: what `load` yields for "train"."""
    return sampled(write_sample, load)


def write_sample(root: Path) -> None:
    """Writes an invented log in the true format."""
    folder = root / "census_income"
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    lines = []
    for _ in range(300):
        draw = random.integers(0, 90, len(COLUMNS))
        values = [
            str(d) if c in _NUMBERS or c.endswith("code") else f"{c} no. {d % 4}"
            for c, d in zip(COLUMNS, draw, strict=True)
        ]
        values[COLUMNS.index("instance_weight")] = f"{draw[0] * 17.5:.2f}"
        single = draw[0] < 30
        values[COLUMNS.index("marital_stat")] = "Never married" if single else "Widowed"
        values[-1] = "50000+." if draw[0] > 60 else "- 50000."
        lines.append(", ".join(values))
    with gzip.open(folder / "census-income.test.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
