"""The output of pods' containers in the journal, beside the CRI's own log files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.system.cri.pods import MARKS
from tests.system.journal import entries, since

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.host import Host
    from tests.system.cri.pods import Pods

pytestmark = MARKS


def test_with_both_each_line_is_in_the_cris_log_file_and_in_the_journal(
    configured: Callable[[str], None], pods: Pods, host: Host
) -> None:
    configured('[namespaces."k8s.io"]\nlog = "both"\n')
    begun = since(host)
    pod = pods.run()
    script = "for n in $(seq 200); do echo line $n; done; echo err >&2; printf tail; exit 7"
    container = pod.run("first", script)
    assert container.exited().exit_code == 7
    lines = [line.split(" ", 1)[1] for line in container.logged("tail")]
    out = [f"line {n}" for n in range(1, 201)]
    assert [line for line in lines if line.startswith("stdout")] == [
        *(f"stdout F {line}" for line in out),
        "stdout P tail",
    ]
    assert "stderr F err" in lines

    found = entries(host, begun, f"CONTAINER_ID={container.id}")
    assert [e["MESSAGE"] for e in found if e["PRIORITY"] == "6"] == [*out, "tail"]
    assert [e["MESSAGE"] for e in found if e["PRIORITY"] == "3"] == ["err"]
    metadata = pod.config["metadata"]
    fields = {
        "CONTAINER_NAME": "first",
        "CONTAINER_NAMESPACE": "k8s.io",
        "SYSLOG_IDENTIFIER": "first",
        "POD_NAME": metadata["name"],
        "POD_NAMESPACE": metadata["namespace"],
        "POD_UID": metadata["uid"],
        "OBJECT_SYSTEMD_UNIT": container.unit,
    }
    for entry in found:
        assert {name: entry.get(name) for name in fields} == fields
