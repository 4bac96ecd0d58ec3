"""Which requests reach the studio: those of its own pages, for files that a page shows."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from ornstein.studio.guard import Guard, host_of


def answer(guard: Guard, host: str | list[str], path: str = "/", origin: str | None = None, kind: str = "http") -> str:
    """The body of a refusal, or "passed"."""
    hosts = [host] if isinstance(host, str) else host
    headers = [(b"host", each.encode()) for each in hosts] + ([(b"origin", origin.encode())] if origin else [])
    sent: list[dict[str, Any]] = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.disconnect"}

    asyncio.run(guard({"type": kind, "path": path, "headers": headers}, receive, send))
    if not sent:
        return "passed"
    if kind == "websocket":
        return sent[0]["reason"]
    assert sent[0]["status"] == 403
    return sent[1]["body"].decode()


async def nothing(scope, receive, send):
    return None


def test_local_names_and_the_bound_address_pass():
    guard = Guard(nothing, "127.0.0.1")
    for host in ("localhost:7860", "LOCALHOST", "127.0.0.1:7860", "[::1]:7860", "localhost.:7860"):
        assert answer(guard, host) == "passed"
        assert answer(guard, host, origin=f"http://{host}") == "passed"
    assert answer(Guard(nothing, "192.168.1.5"), "192.168.1.5:7860") == "passed"
    assert answer(Guard(nothing, "studio.example"), "studio.example:7860") == "passed"


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example:7860",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "10.0.0.1",
        "",
        "[::1",
        "localhost:port",
        [],
        ["localhost", "evil.example"],
    ],
)
def test_foreign_names_are_refused_with_a_sentence(host, kind):
    told = answer(Guard(nothing, "127.0.0.1"), host, kind=kind)
    assert told.endswith(".") and "localhost" in told


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:3000", "http://localhost", "file://"]
)
def test_pages_of_other_origins_are_refused(origin):
    assert "another site" in answer(Guard(nothing, "127.0.0.1"), "localhost:7860", origin=origin)


def test_all_addresses_take_numbers_and_the_own_name_but_no_other_name():
    guard = Guard(nothing, "0.0.0.0", names=["proxy.example"])
    for host in ("192.168.1.5:7860", "[fe80::1]:7860", "proxy.example", "localhost:7860"):
        assert answer(guard, host) == "passed"
    assert answer(guard, "evil.example") != "passed"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "runs"
    for name in (
        "digits/samples.png",
        "digits/report.html",
        "digits/model.safetensors",
        "digits/state/trainer.safetensors",
        "digits/studio.log",
        "digits/.lock",
        "digits/.hidden/a.png",
        "digits/data.zip",
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x")
    (tmp_path / "secret.png").write_text("x")
    (home / "digits" / "link.png").symlink_to(tmp_path / "secret.png")
    (home / "digits" / "weights.png").symlink_to(home / "digits" / "model.safetensors")
    return home


@pytest.mark.parametrize(
    ("name", "passed"),
    [
        ("digits/samples.png", True),
        ("digits/report.html", True),
        ("digits/model.safetensors", False),
        ("digits/state/trainer.safetensors", False),
        ("digits/studio.log", False),
        ("digits/.lock", False),
        ("digits/.hidden/a.png", False),
        ("digits/data.zip", False),
        ("digits/link.png", False),
        ("digits/weights.png", False),
        ("digits/none.png", False),
        ("digits/samples.png/../model.safetensors", False),
        ("digits/%2e%2e/digits/model.safetensors", False),
        ("digits", False),
    ],
)
def test_only_what_pages_show_is_served_of_a_run(home, name, passed):
    guard = Guard(nothing, "127.0.0.1", [home])
    told = answer(guard, "localhost:7860", f"/gradio_api/file={home / name if '..' not in name else f'{home}/{name}'}")
    assert (told == "passed") == passed, told


def test_hosts_are_read_as_browsers_write_them():
    assert host_of("[::1]:80") == ("::1", 80) and host_of("A.example.") == ("a.example", None)
    assert host_of("a:b") == ("", None)
