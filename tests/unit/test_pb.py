"""The generated messages: fresh, numbered as the reference says, packed as containerd reads."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.descriptor_pool import Default as default_pool
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from sdshim.core.errors import InvalidArgument
from sdshim.pb import events_pb2, runc_pb2, task_v2_pb2, task_v3_pb2, wellknown

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted((ROOT / "proto/sdshim/pb").glob("*.proto"))

# Typed from the protocol reference: "number name [rep] [type]", string where no type is named.
# An indented line continues the one above.
STRINGS = """
[containerd.types]
Mount: 1 type, 2 source, 3 target, 4 options rep string
Metric: 1 timestamp Timestamp, 2 id, 3 data Any
Platform: 1 os, 2 architecture, 3 variant, 4 os_version, 5 os_features rep string
RuntimeRequest: 1 runtime_path, 2 options Any
RuntimeVersion: 1 version, 2 revision
RuntimeInfo: 1 name, 2 version RuntimeVersion, 3 options Any, 4 features Any, 5 annotations rep
    AnnotationsEntry
[containerd.v1.types]
ProcessInfo: 1 pid u32, 2 info Any
[containerd.task.v2]
StateRequest: 1 id, 2 exec_id
StateResponse: 1 id, 2 bundle, 3 pid u32, 4 status Status, 5 stdin, 6 stdout, 7 stderr, 8 terminal
    bool, 9 exit_status u32, 10 exited_at Timestamp, 11 exec_id
CreateTaskRequest: 1 id, 2 bundle, 3 rootfs rep Mount, 4 terminal bool, 5 stdin, 6 stdout, 7 stderr,
    8 checkpoint, 9 parent_checkpoint, 10 options Any
CreateTaskResponse: 1 pid u32
StartRequest: 1 id, 2 exec_id
StartResponse: 1 pid u32
DeleteRequest: 1 id, 2 exec_id
DeleteResponse: 1 pid u32, 2 exit_status u32, 3 exited_at Timestamp
PidsRequest: 1 id
PidsResponse: 1 processes rep ProcessInfo
PauseRequest: 1 id
ResumeRequest: 1 id
CheckpointTaskRequest: 1 id, 2 path, 3 options Any
KillRequest: 1 id, 2 exec_id, 3 signal u32, 4 all bool
ExecProcessRequest: 1 id, 2 exec_id, 3 terminal bool, 4 stdin, 5 stdout, 6 stderr, 7 spec Any
ExecProcessResponse:
ResizePtyRequest: 1 id, 2 exec_id, 3 width u32, 4 height u32
CloseIORequest: 1 id, 2 exec_id, 3 stdin bool
UpdateTaskRequest: 1 id, 2 resources Any, 3 annotations rep AnnotationsEntry
WaitRequest: 1 id, 2 exec_id
WaitResponse: 1 exit_status u32, 2 exited_at Timestamp
StatsRequest: 1 id
StatsResponse: 1 stats Any
ConnectRequest: 1 id
ConnectResponse: 1 shim_pid u32, 2 task_pid u32, 3 version
ShutdownRequest: 1 id, 2 now bool
[containerd.events]
TaskCreate: 1 container_id, 2 bundle, 3 rootfs rep Mount, 4 io TaskIO, 5 checkpoint, 6 pid u32
TaskStart: 1 container_id, 2 pid u32
TaskExit: 1 container_id, 2 id, 3 pid u32, 4 exit_status u32, 5 exited_at Timestamp
TaskDelete: 1 container_id, 2 pid u32, 3 exit_status u32, 4 exited_at Timestamp, 5 id
TaskExecAdded: 1 container_id, 2 exec_id
TaskExecStarted: 1 container_id, 2 exec_id, 3 pid u32
TaskOOM: 1 container_id
TaskPaused: 1 container_id
TaskResumed: 1 container_id
TaskCheckpointed: 1 container_id, 2 checkpoint
TaskIO: 1 stdin, 2 stdout, 3 stderr, 4 terminal bool
[containerd.services.events.ttrpc.v1]
Envelope: 1 timestamp Timestamp, 2 namespace, 3 topic, 4 event Any
ForwardRequest: 1 envelope Envelope
[containerd.runc.v1]
Options: 1 no_pivot_root bool, 2 no_new_keyring bool, 3 shim_cgroup, 4 io_uid u32, 5 io_gid u32, 6
    binary_name, 7 root, 8 criu_path, 9 systemd_cgroup bool, 10 criu_image_path, 11 criu_work_path,
    12 task_api_address, 13 task_api_version u32
CheckpointOptions: 1 exit bool, 2 open_tcp bool, 3 external_unix_sockets bool, 4 terminal bool, 5
    file_locks bool, 6 empty_namespaces rep string, 7 cgroups_mode, 8 image_path, 9 work_path
ProcessDetails: 1 exec_id
[containerd.linux.runc]
CreateOptions: 1 no_pivot_root bool, 2 open_tcp bool, 3 external_unix_sockets bool, 4 terminal bool,
    5 file_locks bool, 6 empty_namespaces rep string, 7 cgroups_mode, 8 no_new_keyring bool, 9
    shim_cgroup, 10 io_uid u32, 11 io_gid u32, 12 criu_work_path, 13 criu_image_path
[runtimeoptions.v1]
Options: 1 type_url, 2 config_path, 3 config_body bytes
[containerd.runtime.bootstrap.v1]
BootstrapParams: 1 instance_id, 2 namespace, 3 log_level LogLevel, 4 containerd_version, 5
    containerd_ttrpc_address, 6 containerd_grpc_address, 7 containerd_binary, 8 extensions rep
    Extension, 9 socket_dir
Extension: 1 value Any
BootstrapResult: 1 version i32, 2 address, 3 protocol, 4 capabilities rep Capability, 5 metadata rep
    MetadataEntry
[containerd.runtime.sandbox.v1]
CreateSandboxRequest: 1 sandbox_id, 2 bundle_path, 3 rootfs rep Mount, 4 options Any, 5 netns_path,
    6 annotations rep AnnotationsEntry
CreateSandboxResponse:
StartSandboxRequest: 1 sandbox_id
StartSandboxResponse: 1 pid u32, 2 created_at Timestamp, 3 spec Any
PlatformRequest: 1 sandbox_id
PlatformResponse: 1 platform Platform
StopSandboxRequest: 1 sandbox_id, 2 timeout_secs u32
StopSandboxResponse:
WaitSandboxRequest: 1 sandbox_id
WaitSandboxResponse: 1 exit_status u32, 2 exited_at Timestamp
SandboxStatusRequest: 1 sandbox_id, 2 verbose bool
SandboxStatusResponse: 1 sandbox_id, 2 pid u32, 3 state, 4 info rep InfoEntry, 5 created_at
    Timestamp, 6 exited_at Timestamp, 7 extra Any
PingRequest: 1 sandbox_id
PingResponse:
ShutdownSandboxRequest: 1 sandbox_id
ShutdownSandboxResponse:
SandboxMetricsRequest: 1 sandbox_id
SandboxMetricsResponse: 1 metrics Metric
[sdshim.v1]
ListenRequest: 1 namespace
ListenResponse: 1 address
CleanupRequest: 1 namespace, 2 id, 3 token, 4 bundle
Options: 1 oci_runtime, 2 log, 3 notify bool, 4 unit_properties rep UnitPropertiesEntry, \
    5 log_namespace, 6 log_stdout_priority, 7 log_stderr_priority
[sdshim.containerd]
Nothing:
Version: 1 version
Namespace: 1 name
Namespaces: 1 namespaces rep Namespace
Runtime: 1 name
Container: 1 id, 4 runtime Runtime
Containers: 1 containers rep Container
Process: 1 container_id, 2 id, 3 pid u32, 4 status u32
Processes: 1 tasks rep Process
OneTask: 1 container_id
"""
# The same, u64 where no type is named.
NUMBERS = """
[io.containerd.cgroups.v2]
Metrics: 1 pids PidsStat, 2 cpu CPUStat, 4 memory MemoryStat, 5 rdma RdmaStat, 6 io IOStat, 7
    hugetlb rep HugeTlbStat, 8 memory_events MemoryEvents, 9 network rep NetworkStat
PidsStat: 1 current, 2 limit
CPUStat: 1 usage_usec, 2 user_usec, 3 system_usec, 4 nr_periods, 5 nr_throttled, 6 throttled_usec, 7
    psi PSIStats, 8 nr_bursts, 9 burst_usec
MemoryStat: 1 anon, 2 file, 3 kernel_stack, 4 slab, 5 sock, 6 shmem, 7 file_mapped, 8 file_dirty, 9
    file_writeback, 10 anon_thp, 11 inactive_anon, 12 active_anon, 13 inactive_file, 14 active_file,
    15 unevictable, 16 slab_reclaimable, 17 slab_unreclaimable, 18 pgfault, 19 pgmajfault, 20
    workingset_refault, 21 workingset_activate, 22 workingset_nodereclaim, 23 pgrefill, 24 pgscan,
    25 pgsteal, 26 pgactivate, 27 pgdeactivate, 28 pglazyfree, 29 pglazyfreed, 30 thp_fault_alloc,
    31 thp_collapse_alloc, 32 usage, 33 usage_limit, 34 swap_usage, 35 swap_limit, 36 max_usage, 37
    swap_max_usage, 38 psi PSIStats
MemoryEvents: 1 low, 2 high, 3 max, 4 oom, 5 oom_kill, 6 oom_group_kill
PSIStats: 1 some PSIData, 2 full PSIData
PSIData: 1 avg10 double, 2 avg60 double, 3 avg300 double, 4 total
IOStat: 1 usage rep IOEntry, 2 psi PSIStats
IOEntry: 1 major, 2 minor, 3 rbytes, 4 wbytes, 5 rios, 6 wios
RdmaStat: 1 current rep RdmaEntry, 2 limit rep RdmaEntry
RdmaEntry: 1 device string, 2 hca_handles u32, 3 hca_objects u32
HugeTlbStat: 1 current, 2 max, 3 pagesize string, 4 failcnt
NetworkStat: 1 name string, 2 rx_bytes, 3 rx_packets, 4 rx_errors, 5 rx_dropped, 6 tx_bytes, 7
    tx_packets, 8 tx_errors, 9 tx_dropped
[io.containerd.cgroups.v1]
Metrics: 1 hugetlb rep HugetlbStat, 2 pids PidsStat, 3 cpu CPUStat, 4 memory MemoryStat, 5 blkio
    BlkIOStat, 6 rdma RdmaStat, 7 network rep NetworkStat, 8 cgroup_stats CgroupStats, 9
    memory_oom_control MemoryOomControl
HugetlbStat: 1 usage, 2 max, 3 failcnt, 4 pagesize string
PidsStat: 1 current, 2 limit
CPUStat: 1 usage CPUUsage, 2 throttling Throttle
CPUUsage: 1 total, 2 kernel, 3 user, 4 per_cpu rep u64
Throttle: 1 periods, 2 throttled_periods, 3 throttled_time
MemoryStat: 1 cache, 2 rss, 3 rss_huge, 4 mapped_file, 5 dirty, 6 writeback, 7 pg_pg_in, 8
    pg_pg_out, 9 pg_fault, 10 pg_maj_fault, 11 inactive_anon, 12 active_anon, 13 inactive_file, 14
    active_file, 15 unevictable, 16 hierarchical_memory_limit, 17 hierarchical_swap_limit, 18
    total_cache, 19 total_rss, 20 total_rss_huge, 21 total_mapped_file, 22 total_dirty, 23
    total_writeback, 24 total_pg_pg_in, 25 total_pg_pg_out, 26 total_pg_fault, 27
    total_pg_maj_fault, 28 total_inactive_anon, 29 total_active_anon, 30 total_inactive_file, 31
    total_active_file, 32 total_unevictable, 33 usage MemoryEntry, 34 swap MemoryEntry, 35 kernel
    MemoryEntry, 36 kernel_tcp MemoryEntry
MemoryEntry: 1 limit, 2 usage, 3 max, 4 failcnt
MemoryOomControl: 1 oom_kill_disable, 2 under_oom, 3 oom_kill
BlkIOStat: 1 io_service_bytes_recursive rep BlkIOEntry, 2 io_serviced_recursive rep BlkIOEntry, 3
    io_queued_recursive rep BlkIOEntry, 4 io_service_time_recursive rep BlkIOEntry, 5
    io_wait_time_recursive rep BlkIOEntry, 6 io_merged_recursive rep BlkIOEntry, 7 io_time_recursive
    rep BlkIOEntry, 8 sectors_recursive rep BlkIOEntry
BlkIOEntry: 1 op string, 2 device string, 3 major, 4 minor, 5 value
RdmaStat: 1 current rep RdmaEntry, 2 limit rep RdmaEntry
RdmaEntry: 1 device string, 2 hca_handles u32, 3 hca_objects u32
NetworkStat: 1 name string, 2 rx_bytes, 3 rx_packets, 4 rx_errors, 5 rx_dropped, 6 tx_bytes, 7
    tx_packets, 8 tx_errors, 9 tx_dropped
CgroupStats: 1 nr_sleeping, 2 nr_running, 3 nr_stopped, 4 nr_uninterruptible, 5 nr_io_wait
"""
ENUMS = """
[containerd.v1.types]
Status: UNKNOWN 0, CREATED 1, RUNNING 2, STOPPED 3, PAUSED 4, PAUSING 5
[containerd.runtime.bootstrap.v1]
LogLevel: LOG_LEVEL_INFO 0, LOG_LEVEL_TRACE -8, LOG_LEVEL_DEBUG -4, LOG_LEVEL_WARN 4,
    LOG_LEVEL_ERROR 8, LOG_LEVEL_FATAL 10, LOG_LEVEL_PANIC 12
Capability: CAPABILITY_UNSPECIFIED 0
"""
SERVICES = """
[containerd.task.v2]
Task: State StateRequest StateResponse, Create CreateTaskRequest CreateTaskResponse, Start
    StartRequest StartResponse, Delete DeleteRequest DeleteResponse, Pids PidsRequest PidsResponse,
    Pause PauseRequest Empty, Resume ResumeRequest Empty, Checkpoint CheckpointTaskRequest Empty,
    Kill KillRequest Empty, Exec ExecProcessRequest Empty, ResizePty ResizePtyRequest Empty, CloseIO
    CloseIORequest Empty, Update UpdateTaskRequest Empty, Wait WaitRequest WaitResponse, Stats
    StatsRequest StatsResponse, Connect ConnectRequest ConnectResponse, Shutdown ShutdownRequest
    Empty
[containerd.services.events.ttrpc.v1]
Events: Forward ForwardRequest Empty
[containerd.runtime.sandbox.v1]
Sandbox: CreateSandbox CreateSandboxRequest CreateSandboxResponse, StartSandbox StartSandboxRequest
    StartSandboxResponse, Platform PlatformRequest PlatformResponse, StopSandbox StopSandboxRequest
    StopSandboxResponse, WaitSandbox WaitSandboxRequest WaitSandboxResponse, SandboxStatus
    SandboxStatusRequest SandboxStatusResponse, PingSandbox PingRequest PingResponse,
    ShutdownSandbox ShutdownSandboxRequest ShutdownSandboxResponse, SandboxMetrics
    SandboxMetricsRequest SandboxMetricsResponse
[sdshim.v1]
Control: Listen ListenRequest ListenResponse, Cleanup CleanupRequest DeleteResponse
"""


def table(text: str) -> dict[str, str]:
    rows: dict[str, str] = {}
    package = ""
    for line in text.replace("\n    ", " ").strip().splitlines():
        if line.startswith("["):
            package = line.strip("[]")
        else:
            name, _, rest = line.partition(":")
            rows[f"{package}.{name}"] = rest.strip()
    return rows


SCALARS = {1: "double", 4: "u64", 5: "i32", 8: "bool", 9: "string", 12: "bytes", 13: "u32"}


@pytest.fixture(scope="module", autouse=True)
def _all_loaded() -> None:
    for proto in PROTOS:
        importlib.import_module(f"sdshim.pb.{proto.stem}_pb2")


def type_of(field: FieldDescriptor) -> str:
    if field.message_type is not None:
        return str(field.message_type.name)
    return str(field.enum_type.name) if field.enum_type is not None else SCALARS[field.type]


def repeated(field: FieldDescriptor) -> bool:
    """`label` is gone or warns in new runtimes, `is_repeated` is missing in old ones."""
    new = getattr(field, "is_repeated", None)
    return bool(getattr(field, "label") == 3 if new is None else new)  # noqa: B009


def fields(message: Descriptor) -> set[tuple[int, str, bool, str]]:
    return {(f.number, f.name, repeated(f), type_of(f)) for f in message.fields}


def typed(line: str, default: str) -> set[tuple[int, str, bool, str]]:
    result = set()
    for entry in filter(None, (part.strip() for part in line.split(","))):
        number, name, *words = entry.split()
        kinds = [word for word in words if word != "rep"]
        result.add((int(number), name, "rep" in words, kinds[0] if kinds else default))
    return result


@pytest.mark.parametrize(
    ("name", "line", "default"),
    [(name, line, "string") for name, line in table(STRINGS).items()]
    + [(name, line, "u64") for name, line in table(NUMBERS).items()],
)
def test_fields_are_the_references(name: str, line: str, default: str) -> None:
    assert fields(default_pool().FindMessageTypeByName(name)) == typed(line, default)


def test_no_message_is_untested() -> None:
    defined: set[str] = set()
    for proto in PROTOS:
        file = default_pool().FindFileByName(f"sdshim/pb/{proto.name}")
        defined |= {message.full_name for message in file.message_types_by_name.values()}
    v3 = {name for name in defined if name.startswith("containerd.task.v3.")}
    assert defined - v3 == table(STRINGS).keys() | table(NUMBERS).keys()


@pytest.mark.parametrize(("name", "line"), table(ENUMS).items())
def test_enums(name: str, line: str) -> None:
    enum = default_pool().FindEnumTypeByName(name)
    assert ", ".join(f"{value.name} {value.number}" for value in enum.values) == line


@pytest.mark.parametrize(("name", "line"), table(SERVICES).items())
def test_services(name: str, line: str) -> None:
    service = default_pool().FindServiceByName(name)
    calls = [f"{m.name} {m.input_type.name} {m.output_type.name}" for m in service.methods]
    assert ", ".join(calls) == line


def test_v3_is_v2() -> None:
    v2, v3 = task_v2_pb2.DESCRIPTOR, task_v3_pb2.DESCRIPTOR
    assert v2.message_types_by_name.keys() == v3.message_types_by_name.keys()
    for name, message in v2.message_types_by_name.items():
        assert fields(message) == fields(v3.message_types_by_name[name]), name
    calls = [
        [(m.name, m.input_type.name, m.output_type.name) for m in task.methods]
        for task in (v2.services_by_name["Task"], v3.services_by_name["Task"])
    ]
    assert calls[0] == calls[1]
    request = task_v3_pb2.CreateTaskRequest(id="a", options=Any(type_url="x"), terminal=True)
    again = task_v2_pb2.CreateTaskRequest.FromString(request.SerializeToString())
    assert again.SerializeToString() == request.SerializeToString()


def test_generated_files_are_fresh(tmp_path: Path) -> None:
    if shutil.which("protoc") is None:
        pytest.skip("no protoc")
    version = subprocess.run(["protoc", "--version"], capture_output=True, text=True, check=True)
    if version.stdout.strip() != "libprotoc 3.21.12":
        pytest.skip(f"protoc is {version.stdout.strip()}, the committed files are 3.21.12's")
    subprocess.run([ROOT / "proto/generate", tmp_path], check=True)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "sdshim/pb").iterdir()}
    kept = {path.name: path.read_bytes() for path in (ROOT / "sdshim/pb").glob("*_pb2.py*")}
    assert fresh == kept, "run make proto"


def test_one_proto_one_module() -> None:
    kept = {path.name for path in (ROOT / "sdshim/pb").glob("*_pb2.py*")}
    assert kept == {f"{proto.stem}_pb2.{suffix}" for proto in PROTOS for suffix in ("py", "pyi")}


def test_a_daemon_does_not_load_the_cold_files() -> None:
    script = (
        "import sys, sdshim.pb.task_v2_pb2, sdshim.pb.events_pb2, sdshim.pb.ttrpc_events_pb2,"
        " sdshim.pb.runc_pb2, sdshim.pb.wellknown\n"
        "print(*sorted(m for m in sys.modules if m.startswith('sdshim.pb.')))"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)
    names = [name.removeprefix("sdshim.pb.") for name in run.stdout.decode().split()]
    hot = "events runc task_types task_v2 ttrpc_events types"
    assert names == [f"{name}_pb2" for name in hot.split()] + ["wellknown"]


def test_any_has_no_prefix() -> None:
    packed = wellknown.pack(events_pb2.TaskExit(container_id="c", exit_status=137))
    assert packed.type_url == "containerd.events.TaskExit"
    exit_event = wellknown.unpack(packed, events_pb2.TaskExit)
    assert exit_event is not None
    assert exit_event.exit_status == 137
    assert wellknown.unpack(packed, events_pb2.TaskStart) is None


def test_any_with_a_prefix_is_accepted() -> None:
    value = Any()
    value.Pack(runc_pb2.Options(binary_name="crun"))
    assert value.type_url == "type.googleapis.com/containerd.runc.v1.Options"
    options = wellknown.unpack(value, runc_pb2.Options)
    assert options is not None
    assert options.binary_name == "crun"
    assert wellknown.type_name(Any(type_url=wellknown.SPEC_URL)) == wellknown.SPEC_URL
    assert wellknown.type_name(Any()) == ""


def test_garbage_in_an_any_is_the_callers_fault() -> None:
    value = Any(type_url="containerd.runc.v1.Options", value=b"\xff")
    with pytest.raises(InvalidArgument, match=r"containerd\.runc\.v1\.Options"):
        wellknown.unpack(value, runc_pb2.Options)


def test_not_yet_is_gos_zero_time() -> None:
    assert wellknown.timestamp(None).seconds == -62135596800
    assert wellknown.from_timestamp(wellknown.timestamp(None)) is None
    assert wellknown.from_timestamp(Timestamp()) is None


@given(st.integers(min_value=1, max_value=2**63 - 1))
def test_timestamps_come_back(ns: int) -> None:
    value = wellknown.timestamp(ns)
    assert 0 <= value.nanos < 1_000_000_000
    assert wellknown.from_timestamp(value) == ns


def test_the_generated_code_works_with_debians_old_runtime_too() -> None:
    """The venv has the newest protobuf; Debian's is 3.21 (4.21 in Python's count)."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "import pkgutil, importlib, sdshim.pb, google.protobuf;"
        "names = [m.name for m in pkgutil.iter_modules(sdshim.pb.__path__)];"
        "[importlib.import_module(f'sdshim.pb.{name}') for name in names];"
        "from sdshim.pb import task_v2_pb2 as pb;"
        "message = pb.CreateTaskRequest(id='a', rootfs=[{'type': 'bind'}]);"
        "assert pb.CreateTaskRequest.FromString(message.SerializeToString()) == message;"
        "print(google.protobuf.__version__)"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", script, str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
