"""Downloads from a server on this machine that is good, bad or rude, as each test needs it."""

import hashlib
import inspect
import os
import re
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dwlth import downloads
from dwlth.downloads import KNOWN, Known, fetch
from dwlth.errors import DwlthError

DATA = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(DATA).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        server.ranges.append(wanted and int(wanted[1]))
        if "gone" in self.path:
            return self.send_error(404)
        start = int(wanted[1]) if wanted and server.knows_ranges else 0
        if start >= len(server.data) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.data)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if wanted and server.knows_ranges else 200)
        self.send_header("Content-Length", str(len(server.data) - start))
        self.end_headers()
        self.wfile.write(server.data[start : start + server.at_most])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.data, server.knows_ranges, server.at_most, server.ranges = DATA, True, len(DATA), []
    server.url = f"http://127.0.0.1:{server.server_port}/weights/a%20b.pth?dl=1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def refused(words, *args, **how):
    with pytest.raises(DwlthError, match=words) as error:
        fetch(*args, **how)
    assert "\n" not in str(error.value)


def test_a_download_gets_its_name_when_it_is_whole_and_is_reused(server, tmp_path):
    path = fetch(server.url, tmp_path / "new", SHA256, len(DATA))
    assert path == tmp_path / "new" / "a b.pth" and path.read_bytes() == DATA
    assert os.listdir(tmp_path / "new") == ["a b.pth"]
    assert fetch(server.url, tmp_path / "new", SHA256[:8].upper()) == path
    assert fetch(server.url, tmp_path / "new") == path
    assert server.ranges == [None]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_broken_download_is_resumed(server, tmp_path, knows_ranges):
    server.knows_ranges, server.at_most = knows_ranges, 1000
    refused(r"truncated: 1,000 of 1,048,576 bytes came; the same call goes on from a b.pth.part", server.url, tmp_path)
    assert os.listdir(tmp_path) == ["a b.pth.part"]
    server.at_most = len(DATA)
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == DATA
    assert server.ranges == [None, 1000]
    assert os.listdir(tmp_path) == ["a b.pth"]


def test_a_whole_part_needs_only_its_name(server, tmp_path):
    (tmp_path / "a b.pth.part").write_bytes(DATA)
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == DATA
    assert server.ranges == [len(DATA)]


def test_a_part_of_a_longer_file_is_begun_again(server, tmp_path):
    (tmp_path / "a b.pth.part").write_bytes(DATA + b"more")
    assert fetch(server.url, tmp_path, SHA256).read_bytes() == DATA
    assert server.ranges == [len(DATA) + 4, None]


def test_what_is_wrong_is_said_and_leaves_nothing(server, tmp_path):
    refused(f"sha256 is {SHA256}, where 00000000 should be$", server.url, tmp_path, "00000000")
    refused("1,048,576 bytes, where 5 should be$", server.url, tmp_path, size=5)
    server.data = b"\n<!DOCTYPE html><title>Virus scan warning</title>"
    refused(r"a%20b.pth.*a web page \(HTML\).*browser", server.url, tmp_path)
    server.data = b""
    refused(r"empty \(0 bytes\)", server.url, tmp_path)
    refused("the server says 404", server.url.replace("weights", "gone"), tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_here_is_checked_but_never_deleted(server, tmp_path):
    (tmp_path / "a b.pth").write_bytes(b"other")
    refused("a b.pth: its sha256 is", server.url, tmp_path, SHA256)
    assert (tmp_path / "a b.pth").read_bytes() == b"other" and server.ranges == []
    path = tmp_path / "a b.pth"
    assert fetch(path, tmp_path / "elsewhere", size=5) == path and not (tmp_path / "elsewhere").exists()
    refused("5 bytes, where 6 should be", path, tmp_path, size=6)
    refused("missing.pth: no such file", tmp_path / "missing.pth", tmp_path)


def test_a_server_that_is_not_there(server, tmp_path):
    server.server_close()
    refused("broke off .*goes on from a b.pth.part", server.url, tmp_path)


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("http://127.0.0.1/", "names no file"),
        ("ftp://127.0.0.1/a.pth", "give a path, an http"),
        ("hf:owner/repo", "write it as hf:owner/repo/filename"),
        ("torchvision:ResNet50_Weights.NONE", "no such weights"),
        ("torchvision:nonsense", "no such weights"),
    ],
)
def test_wrong_addresses(where, words, tmp_path):
    refused(words, where, tmp_path)


def test_a_wrong_hash_is_said_before_anything_is_fetched(server, tmp_path):
    refused("give 8 to 64 hex digits", server.url, tmp_path, "not a hash")
    assert server.ranges == []


def test_torchvisions_names_bring_their_address_and_hash(server, tmp_path, monkeypatch):
    good = types.SimpleNamespace(url=server.url.replace("a%20b", f"resnet50-{SHA256[:8]}"))
    monkeypatch.setattr("torchvision.models.get_weight", lambda name: {"ResNet50_Weights.IMAGENET1K_V1": good}[name])
    path = fetch("torchvision:ResNet50_Weights.IMAGENET1K_V1", tmp_path)
    assert path.name == f"resnet50-{SHA256[:8]}.pth"
    good.url = server.url.replace("a%20b", "resnet50-0676ba61")
    refused("where 0676ba61 should be", "torchvision:ResNet50_Weights.IMAGENET1K_V1", tmp_path)


def test_the_pinned_weights_are_torchvisions_first():
    assert "torchvision:ResNet50_Weights.IMAGENET1K_V1" in KNOWN
    assert downloads._torchvision("torchvision:ResNet50_Weights.IMAGENET1K_V1").endswith("resnet50-0676ba61.pth")


def test_hugging_face(tmp_path, monkeypatch):
    asked = []

    def hf_hub_download(repo_id, filename, *, local_dir):
        asked.append((repo_id, filename))
        (tmp_path / filename).write_bytes(DATA)
        return str(local_dir / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    assert fetch("hf:madrylab/some-models/a.ckpt", tmp_path, SHA256) == tmp_path / "a.ckpt"
    assert asked == [("madrylab/some-models", "a.ckpt")]
    # a known file of hearsay size: the error says so, and how to go on
    where = "hf:madrylab/robust-imagenet-models/resnet50_linf_eps4.0.ckpt"
    refused("1,048,576 bytes, where 204,818,947 should be .hearsay: .* its own size and sha256", where, tmp_path)
    assert fetch(where, tmp_path, SHA256).exists()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("dwlth\\[hub\\]", where, tmp_path)


def test_the_real_huggingface_hub_asks_this_server(server, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    inspect.signature(hub.hf_hub_download).bind("owner/repo", "a.ckpt", local_dir=tmp_path)

    def head(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(DATA)))
        handler.send_header("ETag", f'"{SHA256}"')
        handler.send_header("X-Repo-Commit", "0" * 40)
        handler.end_headers()

    monkeypatch.setattr(Handler, "do_HEAD", head, raising=False)
    monkeypatch.setattr(hub.constants, "ENDPOINT", server.url.partition("/weights")[0])
    template = hub.constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert fetch("hf:owner/repo/a.ckpt", tmp_path, SHA256).read_bytes() == DATA
    refused("hf:owner/repo/gone.ckpt: ", "hf:owner/repo/gone.ckpt", tmp_path)


def test_known_files_are_written_as_fetch_wants_them():
    for where, known in KNOWN.items():
        assert re.match(r"hf:[\w-]+/[\w-]+/[\w.]+$|torchvision:\w+\.\w+$", where)
        assert known == Known() or (re.fullmatch("[0-9a-f]{64}", known.sha256) and known.size and not known.checked)
