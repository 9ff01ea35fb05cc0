"""Reading JSON and YAML that nobody vouches for."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from skipform.errors import SkipformError
from skipform.files import YAML_DEPTH, fields, read_json, read_yaml, whole, write_json, write_yaml

leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)
BOMB = "\n".join(["a0: &a0 [x, x, x]", *(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12))])


@settings(max_examples=40)
@given(value=values)
def test_what_is_written_is_read_back(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value"
    write_json(path, value)
    assert read_json(path) == value
    write_yaml(path, value)
    assert read_yaml(path) == value


def test_an_exponent_is_a_number_and_its_text_stays_a_text(tmp_path):
    (tmp_path / "file").write_text("lr: 1e-4\nonce: &once {a: 1}\ntwice: *once\n")
    assert read_yaml(tmp_path / "file") == {"lr": 1e-4, "once": {"a": 1}, "twice": {"a": 1}}
    write_yaml(tmp_path / "file", {"variant": "1e-4", "lr": 1e-4})
    assert read_yaml(tmp_path / "file") == {"variant": "1e-4", "lr": 1e-4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfea", "byte 0 is not UTF-8"),
        (b"a: \x00", "special characters are not allowed"),
        (b"a: [", "line 1"),
        (b"a: 1\na: 2", "the key 'a' twice"),
        (b"a: !!int abc", "the tag tag:yaml.org,2002:int is not accepted"),
        (b"a: !!python/name:os.system", "is not accepted"),
        (b"a: 2026-99-99", "month must be in 1..12"),
        (b"{[a]: 1}", "unhashable key"),
        (b"&a [*a]", "holds itself"),
        (b"a: *b", "undefined alias"),
        (BOMB.encode(), "more than 20,000 values"),
        (b"a: &a {b: 1}\nc: {<<: [" + b"*a, " * 30_000 + b"*a]}", "more than 20,000 values"),
        (b"[" * 100_000, f"more than {YAML_DEPTH} levels"),
        (b"- " * 100_000, f"more than {YAML_DEPTH} levels"),
        (b"#" * 2_000_000, "2,000,000 characters; accepted: at most 1,048,576"),
    ],
)
def test_yaml_that_is_not_accepted_is_refused_in_one_line_and_at_once(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    begun = time.process_time()
    with pytest.raises(SkipformError) as refused:
        read_yaml(tmp_path / "file")
    assert time.process_time() - begun < 5  # seconds; the alias bomb took 33
    assert str(refused.value).startswith(f"{tmp_path / 'file'}: ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff", "byte 0 is not UTF-8"),
        (b"", "line 1 column 1"),
        (b'{"a": NaN}', "NaN is no finite number"),
        (b'{"a": 1e999}', "1e999 is no finite number"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "digits"),
    ],
)
def test_json_that_is_not_accepted_is_refused_in_one_line(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(SkipformError, match=f"file: .*{message}") as refused:
        read_json(tmp_path / "file")
    assert "\n" not in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for read in (read_json, read_yaml):
        with pytest.raises(SkipformError, match="absent: cannot be read: No such file"):
            read(tmp_path / "absent")
        with pytest.raises(SkipformError, match="cannot be read: Is a directory"):
            read(tmp_path)


def test_a_full_disk_is_named_with_the_file_whatever_the_library_raises(tmp_path):
    with pytest.raises(OSError, match="No space left on device") as caught, whole(tmp_path / "x.safetensors"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.filename == str(tmp_path / "x.safetensors")
    with pytest.raises(SafetensorError, match="another"), whole(tmp_path / "x.safetensors"):
        raise SafetensorError("another")
    assert not list(tmp_path.iterdir())


def test_a_missing_key_and_a_wrong_type_are_named():
    assert fields({"a": 1, "b": "x"}, {"a": int}, "file") == {"a": 1, "b": "x"}
    for value, message in (
        (None, "file: accepted is `key: value` entries, got nothing"),
        ({"b": 1}, "file: a is missing; accepted: int"),
        ({"a": True}, "file: a: True is not accepted; accepted: int"),
    ):
        with pytest.raises(SkipformError, match=message):
            fields(value, {"a": int}, "file")
