"""Limits, their update, and the metrics that tell of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.compare.scenarios.only import only

if TYPE_CHECKING:
    from tests.compare.subject import Subject

MIB = 1 << 20
LIMITS = {
    "memory": {"limit": 64 * MIB, "swap": 64 * MIB},
    "pids": {"limit": 50},
    "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
}


@only("v1")
def metrics_of_a_life(s: Subject) -> None:
    box = s.container("c", linux={"resources": LIMITS})
    box.create()
    box.stats()
    box.start()
    box.stats()
    box.pause()
    box.stats()
    box.resume()
    box.kill()
    box.waited()
    box.stats()
    box.delete()
    box.stats()


@only("v1")
def update_in_every_state(s: Subject) -> None:
    box = s.container("c", linux={"resources": LIMITS})
    box.create()
    box.update({"memory": {"limit": 128 * MIB, "swap": 128 * MIB}, "pids": {"limit": 60}})
    box.stats()
    box.start()
    box.update({"memory": {"limit": 32 * MIB, "swap": 32 * MIB}, "pids": {"limit": 20}})
    box.stats()
    box.pause()
    box.update({"pids": {"limit": 30}})
    box.stats()
    box.resume()
    box.kill()
    box.waited()
    box.update({"pids": {"limit": 40}})


@only("v1")
def updates_that_cannot_be(s: Subject) -> None:
    box = s.running("c", "sleep", "1000", linux={"resources": LIMITS})
    wrongs: list[dict[str, Any]] = [
        {"memory": {"limit": -7}},
        {"cpu": {"quota": 1}},
        {"cpu": {"period": 1}},
        {"cpu": {"cpus": "nonesuch"}},
        {"pids": {"limit": "many"}},
        {"memory": []},
        {"memory": {"limit": 256 * MIB}},
    ]
    for wrong in wrongs:
        box.update(wrong)
    box.stats()
    box.state()


@only("v1")
def limits_that_cannot_be(s: Subject) -> None:
    for number, wrong in enumerate(
        ({"cpu": {"period": 1}}, {"cpu": {"cpus": "nonesuch"}}, {"memory": {"limit": 1}})
    ):
        box = s.container(f"c{number}", linux={"resources": wrong})
        box.create()
        box.delete()


@only("v1")
def too_many_processes(s: Subject) -> None:
    script = "for n in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done 2>/dev/null; exit 3"
    box = s.running("c", "sh", "-c", script, linux={"resources": {"pids": {"limit": 5}}})
    box.waited()
    box.delete()
