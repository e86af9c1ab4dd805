"""Options of a task as TOML, in the message or in a file of root's."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from sdshim.core.model import RuntimeOptions
from sdshim.core.options import Options
from sdshim.pb import runtimeoptions_pb2
from tests.unit.options_kit import decode, packed, refusal, toml

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.any_pb2 import Any as AnyMessage

# --- TOML


def test_our_keys_and_the_cris_in_one_table() -> None:
    body = """
        TypeUrl = "any"
        ConfigPath = ""
        BinaryName = "crun"
        IoUid = 100000
        log = ""
        notify = false
        [unit_properties]
        CPUWeight = 200
        MemoryAccounting = true
        TimeoutStopSec = "1min 30s"
    """
    got = decode(toml(body)).runtime
    assert (got.binary, got.io_uid) == ("crun", 100000)
    assert got.unit_properties == {
        "CPUWeight": "200",
        "MemoryAccounting": "true",
        "TimeoutStopSec": "1min 30s",
    }


@pytest.mark.parametrize("body", ["", " \n", "# nothing"])
def test_an_empty_table_is_the_defaults(body: str) -> None:
    assert decode(toml(body)) == Options(RuntimeOptions())


def test_unknown_keys_and_wrong_types_are_named_all_at_once() -> None:
    said = refusal(
        toml("""
        binaryname = "x"
        Foo = 1
        NoPivotRoot = 1
        Root = 5
        IoUid = -1
        IoGid = true
        unit_properties = "MemoryMax=1"
        ConfigPath = "/etc/other.toml"
        [Bar]
        """)
    )
    assert said.startswith("options of type runtimeoptions.v1.Options: ")
    for text in (
        "unknown keys 'binaryname', 'Foo', 'Bar'",
        "NoPivotRoot must be true or false, not 1",
        "Root must be text, not 5",
        "IoUid must be a number from 0 to 4294967294, not -1",
        "IoGid must be a number from 0 to 4294967294, not True",
        "unit_properties must be a table, not 'MemoryMax=1'",
        "ConfigPath",
    ):
        assert text in said, text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("BinaryName = ", "not TOML"),
        (b"Root = '\xff'", "not TOML"),
        ("a = " + "[" * 5000 + "]" * 5000, "nested too deeply"),
        ("oci_runtime = 'crun'\nBinaryName = 'runc'", "two OCI runtimes, 'crun' and 'runc'"),
        ("unit_properties = { MemoryMax = [1] }", "a table of texts, but 'MemoryMax'"),
        ("unit_properties = { TasksMax = 1.5 }", "a table of texts, but 'TasksMax'"),
        (f"unit_properties = {{ TasksMax = 0x{'f' * 9000} }}", "a table of texts"),
        (f"Root = 0x{'f' * 9000}", "Root must be text"),
        ("#" * (2**20 + 1), "larger than 1048576 bytes"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_fault_in_toml(body: str | bytes, text: str) -> None:
    said = refusal(toml(body))
    assert said.startswith("options of type runtimeoptions.v1.Options")
    assert text in said
    assert len(said) < 600


def test_one_runtime_named_twice_is_fine() -> None:
    assert decode(toml("oci_runtime = 'crun'\nBinaryName = 'crun'")).runtime.binary == "crun"


# --- a file of TOML


def at(path: object, **fields: Any) -> AnyMessage:
    return packed(runtimeoptions_pb2.Options(config_path=str(path), **fields))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    if os.geteuid():
        pytest.skip("only root can make a file of root's")
    path = tmp_path / "options.toml"
    path.write_text("BinaryName = 'crun'\n")
    path.chmod(0o644)
    return path


def test_a_file_of_roots_is_read(file: Path) -> None:
    assert decode(at(file)).runtime.binary == "crun"


def test_the_name_of_the_file_is_in_its_faults(file: Path) -> None:
    file.write_text("nonsense = 1")
    assert f"file '{file}': unknown keys 'nonsense'" in refusal(at(file))


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_file_that_others_may_write_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert "may be written by others than root" in refusal(at(file))


def test_a_file_that_is_not_roots_is_refused(file: Path) -> None:
    os.chown(file, 65534, -1)
    assert "owned by uid 65534, not by root" in refusal(at(file))


def test_a_file_that_is_too_large_is_refused(file: Path) -> None:
    os.truncate(file, 2**20 + 1)
    assert "larger than 1048576 bytes" in refusal(at(file))
    os.truncate(file, 2**20)
    assert "not TOML" in refusal(at(file))


def test_what_is_no_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refusal(at(tmp_path / "fifo"))
    assert "not a regular file" in refusal(at(tmp_path))
    assert "not a regular file" in refusal(at("/dev/zero"))
    assert "No such file" in refusal(at(tmp_path / "missing"))


@pytest.mark.parametrize("path", ["relative.toml", "/a\0b", "/a\nb"])
def test_a_path_that_cannot_be_one_is_refused(path: str) -> None:
    assert "not an absolute path" in refusal(at(path))


def test_a_file_and_a_body_together_are_refused(tmp_path: Path) -> None:
    assert "both" in refusal(at(tmp_path, config_body=b"x"))


def test_toml_and_the_rarer_messages_are_imported_only_when_there(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from google.protobuf.any_pb2 import Any\n"
        "from sdshim.daemon import options\n"
        "options.decode(Any(), 'runc')\n"
        "options.decode(Any(type_url=options.RUNC, value=b''), 'runc')\n"
        "options.decode(Any(type_url=options.GENERIC, value=b''), 'runc')\n"
        "assert 'tomllib' not in sys.modules\n"
        "options.decode(Any(type_url=options.GENERIC, value=b'\\x1a\\x01#'), 'runc')\n"
        "assert 'tomllib' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
