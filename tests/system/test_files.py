"""Atomic writes: an error leaves the previous file, permissions and symbolic links survive."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import pytest

from tlfx.system.files import write_atomically


def test_a_failed_write_leaves_the_previous_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, lambda raw: raw.write(b"old"))

    def full(raw: IO[bytes]) -> None:
        raw.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, full)
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == [("file", b"old")]


def test_permissions_and_symbolic_links_are_kept(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"old")
    file.chmod(0o640)
    link.symlink_to(file)
    write_atomically(link, lambda raw: raw.write(b"new"))
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()


def test_devices_are_written_directly() -> None:
    write_atomically("/dev/null", lambda raw: raw.write(b"new"))
    assert not Path("/dev/null").is_file()


def test_a_missing_folder_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "gone" / "file", lambda raw: raw.write(b"new"))
