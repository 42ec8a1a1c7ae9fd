"""The folder of compiled code is the user's alone, and nothing is deleted in it that was not made there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vpmu_emu._jit import folders
from vpmu_emu.errors import ConfigError

pytestmark = pytest.mark.uncompiled
OLD = (0, 0)


@pytest.fixture
def base(monkeypatch):
    """The folder that this process would use if VPMU_CACHE_DIR were `path`."""

    def ask(path):
        monkeypatch.setenv(folders.KEY, str(path))
        return folders.cache_base.__wrapped__()

    return ask


def aged(path: Path) -> Path:
    """A folder with a file of compiled code in it, that nobody has used for long."""
    path.mkdir(parents=True)
    (path / "run.code").write_bytes(b"code")
    os.utime(path, OLD)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_folder_is_private_and_marked(base, tmp_path):
    wanted = tmp_path / "a" / "b"
    assert base(wanted) == wanted
    assert mode(wanted) == mode(wanted.parent) == 0o700
    assert (wanted / folders.TAG).read_text() == folders.TAG_TEXT
    assert base(wanted) == wanted
    wanted.chmod(0o755)
    assert base(wanted) == wanted
    assert mode(wanted) == 0o700


def test_a_folder_with_other_things_is_left_alone(base, tmp_path):
    thesis = tmp_path / "projects" / "thesis"
    thesis.mkdir(parents=True)
    (thesis / "text").write_text("five years")
    lookalike = aged(tmp_path / "vpmu_emu.engine" / ("0" * 20))
    os.utime(thesis, OLD)
    before = mode(tmp_path)
    assert base(tmp_path) == tmp_path / "vpmu_emu"
    assert thesis.is_dir()
    assert lookalike.is_dir()
    assert mode(tmp_path) == before
    assert not (tmp_path / folders.TAG).exists()


def test_a_mark_of_another_program_is_not_ours(base, tmp_path):
    (tmp_path / folders.TAG).write_text(folders.TAG_TEXT.replace("vpmu_emu", "pip"))
    assert base(tmp_path) == tmp_path / "vpmu_emu"


def test_only_what_was_made_here_is_pruned(base, tmp_path):
    own = base(tmp_path / "cache")
    (own / folders.PRUNED).unlink()
    unused = aged(own / "vpmu_emu.engine" / ("0" * 20))
    used = aged(own / "vpmu_emu.engine" / ("1" * 20))
    os.utime(used)
    kept = [
        aged(own / "vpmu_emu.engine" / "notes"),
        aged(own / "other" / ("2" * 20)),
        aged(own / "vpmu_emu.engine" / ("3" * 20)),
        own / "vpmu_emu.engine" / ("4" * 20),
    ]
    (kept[2] / "letter").write_text("dear")
    os.utime(kept[2], OLD)
    kept[3].symlink_to(unused)
    assert base(own) == own
    assert not unused.exists()
    assert used.exists()
    assert all(path.is_symlink() or path.exists() for path in kept)


def test_both_folders_taken(base, tmp_path):
    (tmp_path / "vpmu_emu").mkdir()
    (tmp_path / "vpmu_emu" / "cli.py").write_text("a checkout")
    with pytest.raises(ConfigError, match="hold other things"):
        base(tmp_path)


def test_a_folder_that_others_can_write_is_refused(base, tmp_path):
    for bits in (0o777, 0o720, 0o702):
        tmp_path.chmod(bits)
        with pytest.raises(ConfigError, match="can be written by other users"):
            base(tmp_path)
    tmp_path.chmod(0o1777)  # as /tmp is: nobody can move what is another's
    assert base(tmp_path) == tmp_path / "vpmu_emu"
    assert mode(tmp_path / "vpmu_emu") == 0o700
    (tmp_path / "vpmu_emu").chmod(0o777)
    with pytest.raises(ConfigError, match="can be written by other users"):
        base(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root only can give away")
def test_a_folder_of_another_user_is_refused(base, tmp_path):
    own = base(tmp_path / "cache")
    os.chown(own, 12345, 12345)
    with pytest.raises(ConfigError, match="belongs to another user"):
        base(own)


def test_every_folder_down_to_the_code_is_looked_at(base, tmp_path, monkeypatch):
    own = base(tmp_path / "cache")
    monkeypatch.setattr(folders, "cache_base", lambda: own)
    find = folders.folder.__wrapped__
    made = find("vpmu_emu.machine.u64")
    assert mode(made) == mode(made.parent) == 0o700
    for path in (made, made.parent):
        path.chmod(0o777)
        with pytest.raises(ConfigError, match="can be written by other users"):
            find("vpmu_emu.machine.u64")
        path.chmod(0o700)


USE = "from vpmu_emu._jit import cache_base; base = cache_base(); print(base, base.is_dir())"


def outcome(env, code=USE):
    """(folder, whether it was there, whether it is there still, standard error)"""
    plain = {k: v for k, v in os.environ.items() if k not in (folders.KEY, "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=plain | env, capture_output=True, text=True, check=True
    )
    path, was = done.stdout.split()
    return path, was, Path(path).exists(), done.stderr


def test_a_folder_that_cannot_be_used_is_told_once_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    left = tmp_path / "vpmu_emu-999999999-killed"
    left.mkdir(mode=0o700)
    env = {folders.KEY: str(tmp_path / "file"), "TMPDIR": str(tmp_path)}
    path, was, still, said = outcome(env, f"{USE}; cache_base()")
    assert (Path(path).parent, was, still) == (tmp_path, "True", False)
    assert said.count("\n") == 1
    assert f"{tmp_path / 'file'}" in said
    assert folders.KEY in said
    assert not left.exists()  # what a killed process has left


@pytest.mark.parametrize("chosen", ["", "~nobody-of-this-name/x"])
def test_no_home_and_no_passwd_entry(tmp_path, chosen):
    code = f"import os, pwd; os.environ.pop('HOME', 0); pwd.getpwuid = {{}}.__getitem__; {USE}"
    path, was, still, said = outcome({folders.KEY: chosen, "TMPDIR": str(tmp_path)}, code)
    assert (Path(path).parent, was, still) == (tmp_path, "True", False)
    assert said.startswith("vpmu: compiled code is not kept")
