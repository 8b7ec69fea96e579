import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnas.base import InputError
from jaxnas.files import Log, read_json, write_json


def test_json_is_strict_and_reads_back(tmp_path):
    value = {
        "nan": float("nan"),
        "inf": np.float32(-np.inf),
        "array": jnp.array([[1, 2]]),
        "scalar": np.float64(0.5),
        "path": tmp_path,
        "tuple": (1, None, True, "ö"),
    }
    write_json(tmp_path / "a.json", value)

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {
        "nan": None,
        "inf": None,
        "array": [[1, 2]],
        "scalar": 0.5,
        "path": str(tmp_path),
        "tuple": [1, None, True, "ö"],
    }
    assert read_json(tmp_path / "a.json", "") == json.loads(text)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert read_json(tmp_path / "b.json", "") is None


def test_json_that_cannot_be_written_keeps_the_old(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json", "") == {"a": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b"\xff\xfe", b"{'a': 1}"])
def test_damaged_json_is_one_line_with_the_remedy(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json is damaged .*: delete it$") as error:
        read_json(tmp_path / "a.json", "delete it")
    assert "\n" not in str(error.value)
    assert (tmp_path / "a.json").read_bytes() == content


def test_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*: Not a directory;"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(InputError, match="cannot write"):
        Log(tmp_path / "absent" / "log.csv", ())


def test_log_has_a_header_and_exact_float32(tmp_path):
    log = Log(tmp_path / "log.csv", ("loss", "valid", "count"))
    losses = np.random.default_rng(0).normal(size=20).astype(np.float32)
    for step, loss in enumerate(losses):
        log.write("search", step + 1, {"loss": loss, "count": 10**12 + step})
    log.write("retrain", 1, {"loss": jnp.float32(jnp.nan), "valid": 0.25})
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "phase,step,loss,valid,count"
    assert lines[-1] == "retrain,1,nan,0.25,"
    columns = log.read("search")
    np.testing.assert_array_equal(np.float32(columns["loss"]), losses)
    assert columns["step"] == list(range(1, 21))
    assert columns["count"] == [10**12 + i for i in range(20)]
    assert np.isnan(columns["valid"]).all()


def test_log_refuses_a_column_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="typo"):
        Log(tmp_path / "log.csv", ("loss",)).write("search", 1, {"typo": 1.0})


def test_log_drops_the_rows_of_one_phase_past_a_step(tmp_path):
    log = Log(tmp_path / "log.csv", ("loss",))
    for phase in ("search", "retrain"):
        for step in (1, 2, 10):
            log.write(phase, step, {"loss": step / 2})
    log.drop_after("search", 2)
    assert log.read("search") == {"step": [1, 2], "loss": [0.5, 1]}
    assert log.read("retrain") == {"step": [1, 2, 10], "loss": [0.5, 1, 5]}
    log.drop_after("search", 0)
    log.write("search", 1, {"loss": 7})
    assert Log(tmp_path / "log.csv", ("loss",)).read("search")["loss"] == [7]


def test_log_cut_at_any_byte_is_repaired(tmp_path):
    path = tmp_path / "log.csv"
    log = Log(path, ("loss",))
    for step in (1, 2):
        log.write("search", step, {"loss": step / 8})
    content = path.read_bytes()
    header = content.index(b"\n") + 1
    for size in range(header, len(content)):
        path.write_bytes(content[:size])
        whole = content[:size].count(b"\n") - 1
        log = Log(path, ("loss",))
        assert log.read("search")["step"] == [1.0, 2.0][:whole]
        for step in range(whole + 1, 3):
            log.write("search", step, {"loss": step / 8})
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    "content",
    [
        b"garbage",
        b"phase,step,other\nsearch,1,2\n",
        b"phase,step,loss\nsearch,1\nsearch,2,0.5\n",
        b"phase,step,loss\nsearch,x,0.5\n",
        b"phase,step,loss\nsearch,1,0.5x\n",
        b"phase,step,loss\n\0\0\0\0\n",
        bytes(range(256)) + b"\n",
    ],
)
def test_damaged_log_is_refused_and_kept(tmp_path, content):
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"log\.csv is damaged or of another") as error:
        Log(tmp_path / "log.csv", ("loss",)).drop_after("search", 0)
    assert "\n" not in str(error.value)
    assert (tmp_path / "log.csv").read_bytes() == content
