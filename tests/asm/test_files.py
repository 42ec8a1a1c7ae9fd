"""What is no source is refused in one sentence, at once."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vpmu_emu.asm import assemble, assemble_file
from vpmu_emu.errors import AssemblyError, LoadError
from vpmu_emu.load import load, load_bytes


def _folder(path):
    path.mkdir()


def _socket(path):
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


KINDS = {
    "is a folder": _folder,
    "is a pipe": os.mkfifo,
    "is a socket": _socket,
    "is a device": lambda path: path.symlink_to("/dev/zero"),
    "No such file": lambda path: path.symlink_to("nowhere"),
    "symbolic links": lambda path: path.symlink_to(path),
    "is not UTF-8": lambda path: path.write_bytes(b"nop\n# \xe9\n"),
    "neither source text": lambda path: path.write_bytes(b"nop\0"),
}


@pytest.mark.parametrize("words", KINDS)
@pytest.mark.parametrize("read", [load, assemble_file])
def test_what_is_no_source_is_refused(words, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    path = Path("x.s")
    KINDS[words](path)
    with pytest.raises(LoadError, match=rf"^x\.s:.*{words}") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", sorted(set(KINDS) - {"No such file"}))
def test_neither_can_it_be_included(words, tmp_path):
    folder = tmp_path if len(str(tmp_path)) < 80 else Path("/tmp")
    path = folder / f"x{os.getpid()}.s"
    KINDS[words](path)
    try:
        with pytest.raises(AssemblyError, match=words) as caught:
            assemble(f'nop\n.include "{path.name}"\n', str(folder / "a.s"))
    finally:
        path.rmdir() if path.is_dir() else path.unlink()
    (found,) = caught.value.diagnostics
    assert found.line == 2


def test_the_line_that_is_not_utf8_is_told():
    with pytest.raises(LoadError, match=r"^<stdin>:3: byte 0xe9 is not UTF-8"):
        load_bytes(b"nop\nnop\n.ascii \"\xe9\"\n", "<stdin>")


def test_a_file_that_may_not_be_read_is_told(tmp_path):
    path = tmp_path / "x.s"
    path.write_text("nop\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(LoadError, match="Permission denied"):
        load(path)
