"""What cannot be made or started: codes and texts, and what is left to ask afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf import any_pb2

from sdshim.pb import runc_pb2

if TYPE_CHECKING:
    from tests.compare.subject import Subject


def _not_created(s: Subject, *command: str, spec: Any = None, **fields: Any) -> None:
    box = s.container("c", *command, **(spec or {}))
    box.create(**fields)
    box.state()
    box.delete()


def _not_started(s: Subject, *command: str, more: Any = None) -> None:
    box = s.running()
    child = box.exec("x", *command, more=more)
    end = child.wait()
    child.start()
    end.told()
    child.state()
    child.delete()
    box.state()


def create_of_a_missing_binary(s: Subject) -> None:
    _not_created(s, "/does/not/exist")


def create_of_a_missing_command(s: Subject) -> None:
    _not_created(s, "nonesuch")


def create_of_a_folder(s: Subject) -> None:
    _not_created(s, "/bin")


def create_of_what_is_not_executable(s: Subject) -> None:
    _not_created(s, "/proc/version")


def create_without_arguments(s: Subject) -> None:
    _not_created(s, spec={"process": {"args": []}})


def create_in_a_missing_folder(s: Subject) -> None:
    _not_created(s, "true", spec={"process": {"args": ["true"], "cwd": "/does/not/exist"}})


def create_in_a_relative_folder(s: Subject) -> None:
    _not_created(s, "true", spec={"process": {"args": ["true"], "cwd": "bin"}})


def create_with_an_impossible_user(s: Subject) -> None:
    user = {"uid": 2**32 - 1, "gid": 2**32 - 1}
    _not_created(s, "true", spec={"process": {"args": ["true"], "user": user}})


def create_with_a_mount_that_fails(s: Subject) -> None:
    mounts = [{"destination": "/x", "type": "bind", "source": "/does/not/exist"}]
    _not_created(s, "true", spec={"mounts": mounts})


def create_with_an_unknown_namespace(s: Subject) -> None:
    _not_created(s, "true", spec={"linux": {"namespaces": [{"type": "nonesuch"}]}})


def create_with_a_namespace_of_nobody(s: Subject) -> None:
    spaces = [{"type": "network", "path": "/does/not/exist"}, {"type": "mount"}]
    _not_created(s, "true", spec={"linux": {"namespaces": spaces}})


def create_with_an_unknown_rlimit(s: Subject) -> None:
    limits = [{"type": "RLIMIT_NONESUCH", "hard": 1, "soft": 1}]
    _not_created(s, "true", spec={"process": {"args": ["true"], "rlimits": limits}})


def create_with_a_failing_hook(s: Subject) -> None:
    _not_created(s, "true", spec={"hooks": {"createRuntime": [{"path": "/bin/false"}]}})


def create_with_a_missing_hook(s: Subject) -> None:
    _not_created(s, "true", spec={"hooks": {"createRuntime": [{"path": "/does/not/exist"}]}})


def create_from_an_empty_folder(s: Subject) -> None:
    s.host.path("/tmp/compare/empty").mkdir(exist_ok=True)
    mount = {"type": "bind", "source": "/tmp/compare/empty", "options": ["bind", "ro"]}
    _not_created(s, "true", rootfs=[mount])


def create_from_a_missing_source(s: Subject) -> None:
    _not_created(s, rootfs=[{"type": "bind", "source": "/does/not/exist", "options": ["bind"]}])


def create_from_an_unknown_filesystem(s: Subject) -> None:
    _not_created(s, rootfs=[{"type": "nonesuch", "source": "none"}])


def create_with_an_unknown_runtime(s: Subject) -> None:
    options = runc_pb2.Options(binary_name="nonesuch")
    value = options.SerializeToString()
    _not_created(s, options=any_pb2.Any(type_url=options.DESCRIPTOR.full_name, value=value))


def create_with_a_missing_runtime(s: Subject) -> None:
    options = runc_pb2.Options(binary_name="/does/not/exist")
    value = options.SerializeToString()
    _not_created(s, options=any_pb2.Any(type_url=options.DESCRIPTOR.full_name, value=value))


def create_after_a_failed_one(s: Subject) -> None:
    box = s.container("c", "sh", "-c", "exit 2")
    box.create(rootfs=[{"type": "nonesuch", "source": "none"}])
    box.create()
    box.start()
    box.waited()
    box.delete()


def start_of_what_is_not_executable_any_more(s: Subject) -> None:
    hooks = {"startContainer": [{"path": "/does/not/exist"}]}
    box = s.container("c", hooks=hooks)
    box.create()
    end = box.wait()
    box.start()
    end.told()
    box.state()
    box.delete()


def poststart_hook_that_fails(s: Subject) -> None:
    box = s.container("c", hooks={"poststart": [{"path": "/bin/false"}]})
    box.create()
    box.start()
    box.state()


def exec_of_a_missing_binary(s: Subject) -> None:
    _not_started(s, "/does/not/exist")


def exec_of_a_missing_command(s: Subject) -> None:
    _not_started(s, "nonesuch")


def exec_of_a_folder(s: Subject) -> None:
    _not_started(s, "/bin")


def exec_of_what_is_not_executable(s: Subject) -> None:
    _not_started(s, "/proc/version")


def exec_without_arguments(s: Subject) -> None:
    _not_started(s)


def exec_in_a_missing_folder(s: Subject) -> None:
    _not_started(s, "true", more={"cwd": "/does/not/exist"})


def exec_with_an_impossible_user(s: Subject) -> None:
    _not_started(s, "true", more={"user": {"uid": 2**32 - 1, "gid": 0}})


def exec_with_an_unknown_capability(s: Subject) -> None:
    _not_started(s, "true", more={"capabilities": {"bounding": ["CAP_NONESUCH"]}})


def exec_that_failed_and_is_started_again(s: Subject) -> None:
    box = s.running()
    child = box.exec("x", "/does/not/exist")
    child.start()
    child.start()
    child.kill()
    child.delete()
    box.pids()


def exec_of_another_type(s: Subject) -> None:
    box = s.running()
    box.added("x").add({}, url="containerd.events.TaskExit")


def exec_of_no_json(s: Subject) -> None:
    box = s.running()
    child = box.added("x")
    child.add(b"{")
    child.state()


def exec_with_an_illegal_id(s: Subject) -> None:
    box = s.running()
    for exec_id in ("", "a b", "-x", "x" * 77):
        box.added(exec_id or " ").add(box.spec["process"])


def update_of_no_json(s: Subject) -> None:
    box = s.running()
    box.update(b"{")
    box.update({}, url="containerd.events.TaskExit")
    box.state()


def streams_that_are_not_there(s: Subject) -> None:
    box = s.container("c", "true")
    box.create(stdout="/does/not/exist", stderr="/does/not/exist")
    box.state()
