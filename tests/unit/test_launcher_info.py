"""`-info` and `-v`: what containerd reads about the runtime."""

from __future__ import annotations

import json
import os

import pytest
from google.protobuf.any_pb2 import Any

import sdshim
from sdshim.pb import introspection_pb2, options_pb2, runc_pb2, runtimeoptions_pb2
from tests.unit.test_launcher_kit import Node, Result, node

__all__ = ["node"]

FEATURES = {"ociVersionMin": "1.0.0", "linux": {"mountExtensions": {"idmap": {"enabled": True}}}}


def info(result: Result) -> introspection_pb2.RuntimeInfo:
    assert (result.code, result.err) == (0, "")
    return introspection_pb2.RuntimeInfo.FromString(result.out)


def options(binary: str, prefix: str = "") -> bytes:
    value = runc_pb2.Options(binary_name=binary).SerializeToString()
    url = f"{prefix}containerd.runc.v1.Options"
    return Any(type_url=url, value=value).SerializeToString()


def ours(binary: str) -> bytes:
    value = options_pb2.Options(oci_runtime=binary).SerializeToString()
    return Any(type_url="sdshim.v1.Options", value=value).SerializeToString()


def generic(**fields: str | bytes) -> bytes:
    value = runtimeoptions_pb2.Options(**fields).SerializeToString()  # type: ignore[arg-type]
    return Any(type_url="runtimeoptions.v1.Options", value=value).SerializeToString()


@pytest.mark.parametrize(
    ("stdin", "binary"),
    [
        (b"", "runc"),
        (None, "runc"),
        (options(""), "runc"),
        (options("my-runc"), "my-runc"),
        (options("my-runc", "type.googleapis.com/"), "my-runc"),
        (Any(type_url="other.Options", value=b"2\x01x").SerializeToString(), "runc"),
        (ours("my-runc"), "my-runc"),
        (ours(""), "runc"),
        (generic(config_body=b"BinaryName = 'my-runc'"), "my-runc"),
        (generic(config_body=b"oci_runtime = 'my-runc'", type_url="x"), "my-runc"),
        (generic(config_body=b"Root = '/run/x'"), "runc"),
        (generic(config_body=b"BinaryName = 5"), "runc"),
        (generic(config_body=b"not TOML \xff"), "runc"),
        (generic(config_body=b"a=" + b"[" * 5000), "runc"),
        (generic(config_path="/no/such/file"), "runc"),
        (generic(config_path="relative"), "runc"),
        (generic(config_path="/dev/zero"), "runc"),
        (generic(), "runc"),
    ],
)
def test_info_names_the_runtime_and_hands_on_its_features(
    node: Node, stdin: bytes | None, binary: str
) -> None:
    node.recorder(binary, f"echo '{json.dumps(FEATURES)}'; echo noise >&2")
    got = info(node.launch("-info", stdin=stdin))
    assert got.name == "io.containerd.systemd.v1"
    assert got.version.version == sdshim.__version__
    assert got.options.SerializeToString() == (stdin or b""), "an echo of stdin"
    kind = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    assert got.features.type_url == kind
    assert json.loads(got.features.value) == FEATURES
    assert node.calls(binary) == ["features"]


@pytest.mark.parametrize("mode", [0o644, 0o666])
def test_info_reads_the_file_of_the_options_as_create_does(node: Node, mode: int) -> None:
    for name in ("runc", "my-runc"):
        node.recorder(name, f"echo '{json.dumps(FEATURES)}'")
    file = node.root / "options.toml"
    file.write_text("BinaryName = 'my-runc'\n")
    file.chmod(mode)
    trusted = mode == 0o644 and os.geteuid() == 0
    info(node.launch("-info", stdin=generic(config_path=str(file))))
    assert node.calls("my-runc" if trusted else "runc") == ["features"]


@pytest.mark.parametrize("text", ["exit 1", "echo no JSON", "echo '[]'", None])
def test_a_runtime_without_features_is_no_failure(node: Node, text: str | None) -> None:
    if text is not None:
        node.program("my-runc", text)
    got = info(node.launch("-info", stdin=options("my-runc")))
    assert got.name == "io.containerd.systemd.v1"
    assert not got.HasField("features")


def test_garbage_as_options_still_gets_an_answer_containerd_can_read(node: Node) -> None:
    node.program("runc", "exit 1")
    result = node.launch("-info", stdin=b"\xff\xff\xff")
    assert info(result).name == "io.containerd.systemd.v1"


@pytest.mark.parametrize("flag", ["-v", "-version", "--version"])
def test_the_version_is_the_packages(node: Node, flag: str) -> None:
    result = node.launch(flag)
    assert (result.code, result.err) == (0, "")
    expected = f"containerd-shim-systemd-v1:\n  Version:  {sdshim.__version__}\n"
    assert result.out.decode().startswith(expected)
