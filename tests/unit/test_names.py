"""Names are a bijection: parse(name(x)) == x for every legal id (design 3)."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdshim.core import names
from sdshim.core.errors import InvalidArgument
from sdshim.core.names import TaskKey

_word = st.text("ABCXYZabcxyz0189", min_size=1, max_size=6)
LEGAL = st.lists(st.tuples(_word, st.sampled_from("._-")), min_size=1, max_size=8).map(
    lambda parts: "".join(w + s for w, s in parts)[:-1][:76].rstrip("._-")
)


@given(namespace=LEGAL, task=LEGAL, exec_id=LEGAL)
def test_every_legal_name_comes_back_as_it_was(namespace: str, task: str, exec_id: str) -> None:
    key = TaskKey(namespace, task)
    assert names.parse_unit(names.init_unit(key)) == (key, "", False)
    assert names.parse_unit(names.exec_unit(key, exec_id)) == (key, exec_id, False)
    assert names.parse_unit(names.logger_unit(key)) == (key, "", True)
    assert names.parse_unit(names.logger_unit(key, exec_id)) == (key, exec_id, True)


def test_the_longest_legal_units_fit_a_unit_name() -> None:
    longest = "a" * 76
    assert len(names.exec_unit(TaskKey(longest, longest), longest)) <= 255
    assert len(names.logger_unit(TaskKey(longest, longest), longest)) <= 255


def test_no_exec_has_the_name_of_a_unit_that_works_for_a_task() -> None:
    key = TaskKey("default", "a")
    for unit in (names.mounts_unit(key), names.checkpoint_unit(key)):
        assert names.parse_unit(unit) is None
        assert unit.startswith("sdshim-default-a:")


def test_dashes_in_namespace_and_id_do_not_make_two_tasks_one_unit() -> None:
    one = names.init_unit(TaskKey("a", "b-c"))
    other = names.init_unit(TaskKey("a-b", "c"))
    assert one != other


@pytest.mark.parametrize(
    "unit",
    [
        "ssh.service",
        "sdshim.service",
        "sdshim-a.slice",
        "sdshim--.service",
        "sdshim-a-b:.service",
        "sdshim-a-b:c:d:e.service",
        "sdshim-a-b:c:d.service",
        "sdshim-a-b:c:log:log.service",
    ],
)
def test_units_of_others_are_not_ours(unit: str) -> None:
    assert names.parse_unit(unit) is None


@pytest.mark.parametrize("bad", ["", "a/b", "..", "a..b", "-a", "a-", "a b", "ä", "a" * 77, "a\n"])
def test_what_containerd_would_refuse_is_refused_with_its_name(bad: str) -> None:
    with pytest.raises(InvalidArgument):
        names.check_id(bad)


def test_slices_nest_by_their_dashes_as_systemd_nests_them() -> None:
    assert names.slice_path("sdshim-default.slice") == "/sdshim.slice/sdshim-default.slice"
    assert names.slice_path("-.slice") == ""
    assert (
        names.unit_cgroup("sdshim-k8s.io.slice", "x.service")
        == "/sdshim.slice/sdshim-k8s.io.slice/x.service"
    )


def test_object_paths_are_escaped_as_sd_bus_escapes_them() -> None:
    path = names.unit_path("sdshim-default-a_b.service")
    assert path.endswith("/unit/sdshim_2ddefault_2da_5fb_2eservice")


@given(namespace=LEGAL, task=LEGAL, exec_id=LEGAL)
def test_units_that_serve_a_task_tell_whose_they_are(
    namespace: str, task: str, exec_id: str
) -> None:
    key = TaskKey(namespace, task)
    for unit in (
        names.mounts_unit(key),
        names.fuse_scope(key, 0, "a" * 32),
        names.logger_unit(key),
        names.logger_unit(key, exec_id),
    ):
        assert names.helper_of(unit) == key
    for unit in (names.init_unit(key), names.exec_unit(key, exec_id), names.ROOT_SLICE):
        assert names.helper_of(unit) is None


@given(one=st.text(max_size=300), other=st.text(max_size=300))
def test_every_pod_has_a_slice_of_its_own_below_its_namespaces(one: str, other: str) -> None:
    name = names.pod_slice("a" * 76, f"p{one}")
    assert len(name) <= 255
    assert names.slice_path(name).count(".slice") == 3
    assert re.fullmatch(r"[A-Za-z0-9:_.\\-]+", name)
    assert (name == names.pod_slice("a" * 76, f"p{other}")) == (one == other)
