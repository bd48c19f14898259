"""Each kind of column, in each format, gives the model the same bits on every way to it, and the right numbers.

The model passes its inputs on as predictions, so that all of its ways can be compared: packing, `predict`,
`run.predict`, `evaluate --data` and an exported graph.
"""

import gzip
import json
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lockstep import fit, load_run, nn
from lockstep.api.run import Run
from lockstep.cli.main import run
from lockstep.common.data.folder import read_manifest
from lockstep.common.data.source import load
from lockstep.common.files.safetensors import write

pa = pytest.importorskip("pyarrow")
csv = pytest.importorskip("pyarrow.csv")
parquet = pytest.importorskip("pyarrow.parquet")

from lockstep.results.evaluation.table_rows import TableRows  # noqa: E402  # what may be missing

ROWS = 60
rng = np.random.default_rng(0)
WEST = timezone(timedelta(hours=-5))
DATES = [datetime(2024, 1, 1, tzinfo=WEST) + timedelta(hours=5 * row) for row in range(ROWS)]
EPOCH = datetime(1970, 1, 1)
TOWNS = ["Bern", "Zug", "Chur"]

#: The columns by their kind, and the number of each value: what pandas reads, or the place of a name.
KINDS: dict[str, tuple[Any, list[float]]] = {
    "whole": (pa.array([row * row - 7 for row in range(ROWS)], pa.int64()), [row * row - 7.0 for row in range(ROWS)]),
    "decimal": (values := pa.array(rng.normal(3, 2, ROWS)), values.to_pylist()),
    "huge": (values := pa.array(rng.normal(0, 1e37, ROWS)), values.to_pylist()),
    "tiny": (values := pa.array(rng.normal(0, 1e-308, ROWS)), values.to_pylist()),
    "far": (values := pa.array([-999_999_999.0, *rng.uniform(0, 1, ROWS - 1)]), values.to_pylist()),
    "constant": (pa.array([7.25] * ROWS), [7.25] * ROWS),
    "boolean": (pa.array([row % 3 == 0 for row in range(ROWS)]), [float(row % 3 == 0) for row in range(ROWS)]),
    "text": (pa.array([TOWNS[row % 3] for row in range(ROWS)]), [[0.0, 2.0, 1.0][row % 3] for row in range(ROWS)]),
    "date": (
        pa.array([each.replace(tzinfo=None) for each in DATES], pa.timestamp("us")),
        [(each.replace(tzinfo=None) - EPOCH) / timedelta(microseconds=1) for each in DATES],
    ),
    "zone": (pa.array(DATES, pa.timestamp("us", "-05:00")), [each.timestamp() * 1e6 for each in DATES]),
    "category": (pa.array([2**53 + row % 4 for row in range(ROWS)], pa.int64()), [row % 4.0 for row in range(ROWS)]),
    "missing": (
        pa.array([None if row % 10 == 4 else row / 3 for row in range(ROWS)]),
        [np.nan if row % 10 == 4 else row / 3 for row in range(ROWS)],
    ),
    "mixed": (pa.array(["007", "7", "x"] * (ROWS // 3)), [0.0, 1.0, 2.0] * (ROWS // 3)),
}  # fmt: skip
TARGETS = {f"y{number}": pa.array([0.0] * ROWS) for number in range(len(KINDS))}
TABLE = pa.table({name: column for name, (column, _) in KINDS.items()} | TARGETS)


def other_types() -> Any:
    """Return the table in other types of Arrow, which hold the same values."""
    changed = {
        "whole": TABLE["whole"].cast(pa.int16()),
        "text": TABLE["text"].combine_chunks().dictionary_encode(),
        "mixed": TABLE["mixed"].cast(pa.large_string()),
        "date": TABLE["date"].cast(pa.timestamp("ns")),
        "zone": TABLE["zone"].cast(pa.timestamp("ms", "-05:00")),
        "category": pa.array([Decimal(each) for each in TABLE["category"].to_pylist()], pa.decimal128(20, 2)),
        "constant": TABLE["constant"].cast(pa.float32()),
    }
    return pa.table({name: changed.get(name, TABLE[name]) for name in TABLE.column_names})


def forms(folder: Path) -> Iterator[tuple[str, Any]]:
    """Return the table in each format."""
    texts = folder / "t.csv"
    csv.write_csv(TABLE, texts)
    yield "CSV", texts
    (folder / "t.csv.gz").write_bytes(gzip.compress(texts.read_bytes()))
    yield "compressed CSV", folder / "t.csv.gz"
    parquet.write_table(TABLE, folder / "t.parquet", row_group_size=17)
    yield "Parquet", folder / "t.parquet"
    with pa.OSFile(str(folder / "t.arrow"), "wb") as file, pa.ipc.new_file(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=17)
    yield "Arrow file", folder / "t.arrow"
    yield "Arrow", TABLE
    yield "other types", other_types()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run whose model passes its inputs on, and whose training set is the table."""
    width = len(KINDS)
    options: dict[str, Any] = {"target": list(TARGETS), "categories": ["category"], "one_hot": [], "missing": "mean"}
    folder = tmp_path_factory.mktemp("run") / "new"
    model = nn.Sequential(nn.Linear(width, width))
    values: dict[str, Any] = {"workers": 0, "steps": 1, "global_batch": 10, "verbose": False, "normalize": False}
    found = fit(model, (TABLE, TABLE), run_dir=folder, **options, **values)
    arrays = {"0.weight": np.eye(width, dtype=np.float32), "0.bias": np.zeros(width, np.float32)}
    write(folder / "weights.safetensors", arrays, {})
    return load_run(found.folder)


@pytest.fixture(scope="module")
def inputs(trained: Run) -> NDArray[np.float32]:
    """Return the samples of the training set, as they are stored."""
    return np.asarray(load(trained.job.data).train.images[:])


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_float64(kind: str, trained: Run, inputs: NDArray[np.float32]) -> None:
    values = np.array(KINDS[kind][1], np.longdouble)
    values = np.where(np.isnan(values), np.nanmean(values), values)
    deviation = values.std()
    expected = (values - values.mean()) / (deviation if deviation > 0 else 1)
    found = inputs[:, list(KINDS).index(kind)]
    np.testing.assert_allclose(found, expected.astype(np.float64), rtol=1e-6, atol=1e-6 * float(np.abs(expected).max()))
    # Of values that are a billionth of the deviation apart, float32 has one.
    assert kind == "far" or len(set(found.tolist())) == len(set(values.tolist()))


@pytest.mark.parametrize("form", ["CSV", "compressed CSV", "Parquet", "Arrow file", "Arrow", "other types"])
def test_every_way_has_the_same_bits(
    form: str, trained: Run, inputs: NDArray[np.float32], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = dict(forms(tmp_path))[form]
    options = ["--categories", "category", "--one-hot", "", "--missing", "mean"]
    options += [f"--target={name}" for name in TARGETS]
    if isinstance(table, Path):
        assert run(["pack", str(table), str(tmp_path / "new"), "--test", str(table), *options]) == 0
        assert load(str(tmp_path / "new")).digest == load(trained.job.data).digest
        capfd.readouterr()
        assert run(["predict", str(trained.folder), str(table), "--json"]) == 0
        rows = [list(json.loads(line).values()) for line in capfd.readouterr().out.splitlines()]
        assert np.array(rows).astype(np.float32).tobytes() == inputs.tobytes()
        assert run(["evaluate", str(trained.folder), "--data", str(table), "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["test_loss"] == pytest.approx(
            float(np.square(inputs).mean()), rel=1e-6
        )
    assert trained.predict(table).astype(np.float32).tobytes() == inputs.tobytes()
    manifest = read_manifest(Path(trained.job.data))
    samples, labels, _ = TableRows(manifest, manifest.reading).test_set(table)
    assert samples.tobytes() == inputs.tobytes()
    assert not labels.any()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_of_other_libraries_have_the_same_bits(library: str, trained: Run, inputs: NDArray[np.float32]) -> None:
    frames = pytest.importorskip(library)
    frame = TABLE.to_pandas() if library == "pandas" else frames.from_arrow(TABLE)
    assert trained.predict(frame).astype(np.float32).tobytes() == inputs.tobytes()


def test_an_exported_graph_has_the_same_bits(trained: Run, inputs: NDArray[np.float32], tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    assert run(["export", str(trained.folder), str(tmp_path / "net.onnx")]) == 0
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    columns = {}
    for each in session.get_inputs():
        column = TABLE[each.name]
        if each.type == "tensor(string)":
            columns[each.name] = np.array(column.cast(pa.string()).to_pylist(), object)
        else:
            kind = pa.int64() if pa.types.is_timestamp(column.type) else pa.float64()
            columns[each.name] = column.cast(kind).to_numpy().astype(np.float64)
    (found,) = session.run(["predictions"], columns)
    assert found.astype(np.float32).tobytes() == inputs.tobytes()
