"""Where the studio listens, who comes in, and what stays: nothing."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ornstein.errors import UserError
from ornstein.studio.launch import Address, is_loopback, serving
from ornstein.studio.sessions import Sessions


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        *((host, True) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "192.168.1.4", "example.org", "")),
    ],
)
def test_other_addresses_than_this_computers_own_need_a_password(host: str, alone: bool) -> None:
    assert is_loopback(host) == alone
    if alone:
        Address(host)
    else:
        with pytest.raises(UserError, match="others can reach the studio"):
            Address(host)
    Address(host, user="ann", password="a long password")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"user": "ann"}, "a user needs a password"),
        ({"password": "a long password"}, "a password a user"),
        ({"user": "ann", "password": "short"}, "at least 8 characters"),
        ({"user": " ", "password": "a long password"}, "a user has a name"),
        ({"port": 70_000}, "a port is a number from 1 to 65535, not 70000"),
    ],
)
def test_what_is_no_address(given: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Address(**given)


def test_a_wrong_password_opens_nothing(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the extra `studio` is not installed")
    httpx = pytest.importorskip("httpx")
    with (
        serving(tmp_path, address=Address(user="ann", password="the right one")) as url,
        httpx.Client(base_url=url, timeout=60) as browser,
    ):
        doors = ("config", "gradio_api/info", "gradio_api/file=/etc/passwd")
        assert [browser.get(f"/{door}").status_code for door in doors] == [401] * 3
        assert browser.post("/gradio_api/upload", files={"files": ("a.png", b"x")}).status_code == 401
        for user, password in (("ann", "the wrong one"), ("bo", "the right one"), ("", ""), ("ann", "")):
            assert browser.post("/login", data={"username": user, "password": password}).status_code in (400, 422)
        assert browser.get("/config").status_code == 401
        assert browser.post("/login", data={"username": "ann", "password": "the right one"}).status_code == 200
        assert browser.get("/config").status_code == 200
        port = int(url.rpartition(":")[2].strip("/"))
        with (
            pytest.raises(UserError, match=f"port {port} of 127.0.0.1 cannot be used"),
            serving(tmp_path, address=Address(port=port)),
        ):
            pass


def test_a_second_studio_leaves_the_files_of_the_first_alone(tmp_path: Path) -> None:
    """Gradio has one folder of files a process, named by its environment."""
    pytest.importorskip("gradio", reason="the extra `studio` is not installed")
    before = os.environ.get("GRADIO_TEMP_DIR")
    with serving(tmp_path) as first:
        own = os.environ["GRADIO_TEMP_DIR"]
        port = int(first.rpartition(":")[2].strip("/"))
        with serving(tmp_path):
            assert os.environ["GRADIO_TEMP_DIR"] != own
        with pytest.raises(UserError), serving(tmp_path, address=Address(port=port)):
            pass
        assert os.environ["GRADIO_TEMP_DIR"] == own
    assert os.environ.get("GRADIO_TEMP_DIR") == before


def page(key: str) -> SimpleNamespace:
    return SimpleNamespace(session_hash=key)


def test_files_go_with_the_last_page_that_sent_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ornstein.studio.sessions._GRACE", 0.0)
    sessions = Sessions(tmp_path / "cache")
    one, two = page("one"), page("two")
    shared, outside = tmp_path / "cache" / "hash" / "photo.png", tmp_path / "mine.png"
    shared.parent.mkdir(parents=True)
    for file in (shared, outside):
        file.write_bytes(b"x")
    made = sessions.of(one).new_folder()
    for each in (one, two):
        sessions.send(each, [shared, outside, None])

    def close(each: SimpleNamespace) -> None:
        sessions.close(each)
        timer = sessions._open[each.session_hash].closing
        assert timer is not None
        timer.join()

    close(one)
    assert not made.exists() and shared.exists()
    close(two)
    assert not shared.exists() and outside.exists()
    sessions.close(page("never seen"))


def test_a_page_that_comes_back_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ornstein.studio.sessions._GRACE", 0.2)
    sessions = Sessions(tmp_path)
    folder = sessions.of(page("one")).new_folder()
    sessions.close(page("one"))
    timer = sessions.of(page("one")).closing
    assert timer is None and folder.exists()
    with pytest.raises(ValueError, match="letters, digits and dashes"):
        sessions.of(page("../one"))
