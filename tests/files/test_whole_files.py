import os
import stat
import threading
from pathlib import Path

import pytest

from hesitant.files import replacing, require_folder, write_text


class Killed(BaseException):
    pass


def write_half(path, error):
    with replacing(path) as unfinished:
        unfinished.write_text("half")
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed, ValueError("no figure"), OSError("no errno")])
def test_an_error_leaves_the_old_file_and_no_other(error, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        write_half(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_where_nothing_was_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_half(tmp_path / "new.json", KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path = write_text(tmp_path / "a", "old")
    with replacing(path) as unfinished:
        unfinished.write_text("new")
        assert path.read_text() == "old"
        assert unfinished.parent == path.parent
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_do_not_meet(tmp_path):
    path = tmp_path / "a"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            assert first != second
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"


def test_many_writers_and_readers_see_whole_files_alone(tmp_path):
    path = write_text(tmp_path / "a", "0" * 100_000)
    seen = set()

    def write(digit):
        for _ in range(20):
            write_text(path, str(digit) * 100_000)
            seen.add(path.read_text())

    threads = [threading.Thread(target=write, args=(digit,)) for digit in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(len(text) == 100_000 and len(set(text)) == 1 for text in seen)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_permissions_are_those_of_any_new_file_or_of_the_old_one(tmp_path):
    (tmp_path / "plain").touch()
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    path = write_text(tmp_path / "a", "new")
    assert stat.S_IMODE(path.stat().st_mode) == usual
    path.chmod(0o640)
    write_text(path, "newer")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there").mkdir()
    target = write_text(tmp_path / "there" / "a", "old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_errors_name_the_path_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere/report.html"):
        write_text(tmp_path / "nowhere" / "report.html", "")
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        write_text(tmp_path, "")
    with pytest.raises(FileNotFoundError, match="another"), replacing(tmp_path / "a"):
        Path(tmp_path / "another").read_text()


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no devices here")
def test_a_device_is_not_replaced_by_a_file():
    with pytest.raises(OSError, match=r"no regular file.*/dev/null"):
        write_text("/dev/null", "text")
    assert Path("/dev/null").is_char_device()


def test_the_longest_names_can_be_written(tmp_path):
    path = write_text(tmp_path / ("a" * 250 + ".html"), "text")
    assert path.read_text() == "text"


def test_a_folder_is_made_and_left_empty(tmp_path):
    folder = require_folder(tmp_path / "a" / "b")
    assert list(folder.iterdir()) == []


def test_a_folder_that_another_process_tries_too_is_not_refused(tmp_path, monkeypatch):
    # With one name for the probe of all, the other process takes it away.
    touch = Path.touch

    def touched_and_taken_away(path, *arguments, **options):
        touch(path, *arguments, **options)
        path.unlink()

    monkeypatch.setattr(Path, "touch", touched_and_taken_away)
    require_folder(tmp_path)


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out=.*cannot be written to"):
        require_folder(tmp_path / "file")
