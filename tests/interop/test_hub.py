"""`ornstein push`, against a hub of this test."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import ornstein as orn
from ornstein.errors import RunError
from ornstein.interop import hub
from ornstein.nets import UNet
from running import ornstein, refused

pytest.importorskip("huggingface_hub")


class Hub(BaseHTTPRequestHandler):
    """The three calls of an upload: make the repository, ask how to send files, commit them."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls.append((self.path, body))
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif self.path.endswith("/commit/main"):
            self.answer(
                {
                    "commitUrl": "https://huggingface.co/me/small/commit/1",
                    "commitOid": "1",
                    "success": True,
                    "hookOutput": "",
                }
            )
        else:
            self.answer({"url": "https://huggingface.co/me/small"})

    def do_GET(self):
        self.answer({})

    def answer(self, value):
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.calls = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


@pytest.fixture
def run(tmp_path):
    net = UNet(1, 4, 2, width=8, multipliers=(1,), depths=(1,))
    orn.Denoiser(net, orn.Process(orn.schedules.Cosine()), data=orn.Data((1, 4, 4), ("cat", "dog"))).save(
        tmp_path / "run"
    )
    (tmp_path / "run" / "train.json").write_text('{"data": "/home/me/private"}')
    return tmp_path / "run"


def test_weights_config_and_a_card_are_uploaded_and_nothing_else(run, server):
    address = hub.push(run, "me/small", "cc-by-4.0", endpoint=f"http://127.0.0.1:{server.server_port}")
    assert address.endswith("/commit/1")
    (body,) = [body for path, body in server.calls if path.startswith("/api/models/me/small/commit/")]
    lines = [json.loads(line) for line in body.splitlines()]
    sent = {v["value"]["path"]: base64.b64decode(v["value"]["content"]) for v in lines if v["key"] == "file"}
    assert sent.keys() == {"README.md", "config.json", "model.safetensors"}
    assert sent["model.safetensors"] == (run / "model.safetensors").read_bytes()
    card = sent["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-4.0\nlibrary_name: ornstein\n")
    assert "cat, dog" in card and "1x4x4" in card and "/home" not in body.decode()


def test_a_hub_that_does_not_answer_is_one_line(run):
    with pytest.raises(RunError, match="me/small was not pushed"):
        hub.push(run, "me/small", "other", endpoint="http://127.0.0.1:9")


def test_a_licence_a_name_and_a_model_are_asked_for(run, tmp_path):
    refused(ornstein("push", run, "me/small"), "--license", "apache-2.0")
    refused(ornstein("push", run, "me/small", "--license", "My own!"), "--license")
    refused(ornstein("push", run, "small", "--license", "other"), "owner/name")
    refused(ornstein("push", tmp_path, "me/small", "--license", "other"), "no model")
