"""Atomic writes: all or nothing, and nothing left over. (Folders are tested where they are used: test_coins.)"""

import pytest

from mmsmlp.files import atomic_file


def test_a_written_file_appears_under_its_name_alone(tmp_path):
    with atomic_file(tmp_path / "new" / "a.json") as new:
        new.write_text("whole")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]
    assert (tmp_path / "new" / "a.json").read_text() == "whole"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write_half():
        with atomic_file(path) as new:
            new.write_text("ha")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_keeps_the_suffix(tmp_path):
    """Matplotlib and Pillow choose the format by it."""
    with atomic_file(tmp_path / "a.png") as new:
        assert new.suffix == ".png"
        new.touch()
