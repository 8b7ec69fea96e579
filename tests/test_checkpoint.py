import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxnas.base import InputError
from jaxnas.checkpoint import PARTIAL, Checkpoints


class State(NamedTuple):
    params: Any
    optimizer: Any
    nothing: Any
    empty: Any
    key: Any


def make_state(step: int = 0) -> State:
    generator = np.random.default_rng(step)
    floats = generator.normal(size=(7, 3)).astype(np.float32)
    floats[0] = [np.nan, -0.0, np.inf]
    return State(
        params={"w": jnp.asarray(floats), "no rows": jnp.zeros((0, 3))},
        optimizer=[
            np.asfortranarray(generator.normal(size=(2, 5))),
            jnp.arange(5) - 2**30,
            np.array([0, 2**32 - 1], np.uint32),
            jnp.array([True, False]),
            jnp.asarray(generator.normal(size=3), jnp.bfloat16),
            np.float32(0.1),
            jnp.array(step),
        ],
        nothing=None,
        empty=((), {}, []),
        key={"typed": jax.random.key(step), "raw": jax.random.PRNGKey(step)},
    )


def to_bytes(leaf) -> tuple[str, tuple[int, ...], bytes]:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), leaf.shape, to_bytes(jax.random.key_data(leaf))[2]
    return str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()


def assert_bitwise_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert jax.tree.map(to_bytes, found) == jax.tree.map(to_bytes, expected)


def assert_one_line(error: pytest.ExceptionInfo[InputError]):
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600


def test_checkpoint_is_restored_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new" / "folder")
    state = make_state()
    checkpoints.save(3, state)
    restored = checkpoints.restore(3, state)
    assert_bitwise_equal(restored, state)
    assert jax.tree.map(lambda x: isinstance(x, jax.Array), restored) == jax.tree.map(
        lambda x: isinstance(x, jax.Array), state
    )
    # An abstract template will do; what is no key comes as numpy then.
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    abstract = checkpoints.restore(3, shapes)
    assert_bitwise_equal(abstract, state)
    assert type(abstract.params["w"]) is type(abstract.params["no rows"]) is np.ndarray


def test_checkpoint_of_nothing_is_restored(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, tree in enumerate([(), None, {"a": jnp.zeros(0)}]):
        checkpoints.save(step, tree)
        assert_bitwise_equal(checkpoints.restore(step, tree), tree)


def test_checkpoint_of_python_numbers_comes_back_as_numpy(tmp_path):
    Checkpoints(tmp_path).save(0, {"a": 3, "b": True})
    restored = Checkpoints(tmp_path).restore(0, {"a": 0, "b": False})
    assert restored == {"a": np.array(3), "b": np.array(True)}
    assert restored["b"].dtype == bool


def test_checkpoint_keeps_dtypes_beyond_numpy(tmp_path):
    tree = [np.arange(4).astype(kind) for kind in (ml_dtypes.float8_e4m3fn, np.float16)]
    Checkpoints(tmp_path).save(0, tree)
    assert_bitwise_equal(Checkpoints(tmp_path).restore(0, tree), tree)


def test_checkpoint_keeps_the_key_implementation(tmp_path):
    keys = jax.random.split(jax.random.key(1, impl="rbg"), 3)
    Checkpoints(tmp_path).save(0, keys)
    restored = Checkpoints(tmp_path).restore(0, jax.eval_shape(lambda: keys))
    np.testing.assert_array_equal(
        jax.random.bits(restored[2], (4,)), jax.random.bits(keys[2], (4,))
    )
    with pytest.raises(InputError, match=r"key<rbg>\[3\]"):
        Checkpoints(tmp_path).restore(0, jax.random.split(jax.random.key(1), 3))


def test_checkpoint_restores_the_sharding_of_the_template(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:1]), ("seeds",))
    sharding = NamedSharding(mesh, PartitionSpec("seeds"))
    like = jax.device_put(jnp.arange(4.0), sharding)
    Checkpoints(tmp_path).save(0, like)
    restored = Checkpoints(tmp_path).restore(0, like)
    assert restored.sharding == sharding
    # What was placed nowhere in particular stays free to go anywhere.
    assert not Checkpoints(tmp_path).restore(0, jnp.arange(4.0)).committed


def test_checkpoints_keep_the_newest(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    for step in (2, 9, 10, 100):
        checkpoints.save(step, make_state(step))
    (tmp_path / "foreign").mkdir()
    assert checkpoints.steps() == [10, 100]
    assert checkpoints.latest() == 100
    assert_bitwise_equal(checkpoints.restore(10, make_state()), make_state(10))
    assert sorted(os.listdir(tmp_path)) == ["10", "100", "foreign"]


def test_checkpoint_steps_must_rise(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, {"a": np.zeros(3)})
    for step in (4, 5):
        with pytest.raises(InputError, match="a step above 5") as error:
            checkpoints.save(step, {"a": np.ones(3)})
        assert_one_line(error)
    np.testing.assert_array_equal(checkpoints.restore(5, {"a": np.ones(3)})["a"], 0)


def test_checkpoint_of_another_tree_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    tree = {"a": np.zeros((2, 3), np.float32), "b": (np.array(1),)}
    checkpoints.save(1, tree)
    others = [
        tree | {"a": np.zeros((3, 2), np.float32)},
        tree | {"a": np.zeros((2, 3), np.float64)},
        tree | {"c": np.zeros(1)},
        {"a": tree["a"]},
        tree | {"b": np.array(1)},
        (),
    ]
    for other in others:
        with pytest.raises(InputError, match="is of another run: leaf") as error:
            checkpoints.restore(1, other)
        assert_one_line(error)
    with pytest.raises(
        InputError, match=r"\['a'\] was expected as float32\[3, 2\], is float32\[2, 3\]"
    ):
        checkpoints.restore(1, others[0])


def damage(path: Path, kind: str) -> None:
    content = path.read_bytes()
    if kind == "missing":
        path.unlink()
        return
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(
        {
            "flipped": bytes(flipped),
            "truncated": content[: len(content) // 2],
            "empty": b"",
            "garbage": bytes(range(256)),
        }[kind]
    )


@pytest.mark.parametrize(
    "kind", ["missing", "flipped", "truncated", "empty", "garbage"]
)
def test_damaged_checkpoint_is_refused_and_kept(tmp_path, kind, capfd):
    state = make_state()
    Checkpoints(tmp_path / "good").save(1, state)
    good = tmp_path / "good" / "1"
    files = [path.relative_to(good) for path in good.rglob("*") if path.is_file()]
    assert len(files) > 5
    for number, file in enumerate(files):
        checkpoints = Checkpoints(tmp_path / str(number))
        shutil.copytree(good, checkpoints.folder / "1")
        damage(checkpoints.folder / "1" / file, kind)
        before = sorted(checkpoints.folder.rglob("*"))
        with pytest.raises(InputError) as error:
            checkpoints.restore(1, state)
        assert_one_line(error)
        assert sorted(checkpoints.folder.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


def test_damaged_manifest_is_refused(tmp_path):
    Checkpoints(tmp_path).save(1, {"a": np.zeros(2)})
    manifest = tmp_path / "1" / "manifest.json"
    good = json.loads(manifest.read_text())
    for bad in ([], 3, {}, {"files": []}, good | {"leaves": 3}, good | {"files": [1]}):
        manifest.write_text(json.dumps(bad))
        with pytest.raises(InputError, match="is damaged") as error:
            Checkpoints(tmp_path).restore(1, {"a": np.zeros(2)})
        assert_one_line(error)


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(InputError, match="is damaged") as error:
        Checkpoints(tmp_path).restore(1, ())
    assert_one_line(error)


def test_checkpoint_of_text_is_refused(tmp_path):
    for leaf in ("text", np.array(["a"]), object()):
        with pytest.raises(InputError, match=r"leaf \['a'\] is no array") as error:
            Checkpoints(tmp_path).save(1, {"a": leaf})
        assert_one_line(error)
    assert Checkpoints(tmp_path).steps() == []


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"a": np.zeros(10)})
    usage = shutil.disk_usage(tmp_path)._replace(free=4 * 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(InputError, match=r"8\.1 MB are needed, 4 are free") as error:
        checkpoints.save(2, {"a": np.zeros(10**6)})
    assert_one_line(error)
    assert "make room" in str(error.value)
    assert checkpoints.steps() == [1]
    checkpoints.save(2, {"a": np.zeros(10**5)})


def test_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="cannot write checkpoint 1") as error:
            Checkpoints(folder).save(1, ())
        assert_one_line(error)
    assert (tmp_path / "file").read_text() == "mine"


def test_leftovers_of_a_dead_process_do_not_matter(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, make_state(1))
    shutil.copytree(tmp_path / "1", tmp_path / PARTIAL)
    (tmp_path / PARTIAL / "manifest.json").unlink()
    assert checkpoints.latest() == 1
    checkpoints.save(2, make_state(2))
    assert_bitwise_equal(checkpoints.restore(2, make_state()), make_state(2))
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


WRITER = """
import itertools, pathlib, sys
import numpy as np
from jaxnas.checkpoint import Checkpoints
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]))
for step in itertools.count((checkpoints.latest() or 0) + 1):
    checkpoints.save(step, {str(i): np.full(1000, step) for i in range(5)})
    print(step, flush=True)
"""


def test_killed_writer_leaves_a_whole_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    like = {str(i): np.full(1000, 0) for i in range(5)}
    waits = random.Random(0)
    for _ in range(3):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        told = int(writer.stdout.readline())
        time.sleep(waits.uniform(0, 0.2))
        writer.send_signal(signal.SIGKILL)
        told = max([told, *map(int, writer.stdout.read().split())])
        writer.stdout.close()
        writer.wait()
        assert checkpoints.latest() in (told, told + 1)
        for step in checkpoints.steps()[-2:]:
            restored = checkpoints.restore(step, like)
            for leaf in restored.values():
                np.testing.assert_array_equal(leaf, step)
