"""Downloads from a server on this machine that is good, bad or rude, as each test needs it."""

import hashlib
import inspect
import re
import socket
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dwlth import presets
from dwlth.data import official
from dwlth.errors import DwlthError
from dwlth.outside import downloads
from dwlth.outside.downloads import KNOWN, fetch

DATA = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(DATA).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        if not self.server.knows_head:
            return self.send_error(405)
        self.begin()

    def do_GET(self):
        self.server.got += 1
        if self.begin():
            self.wfile.write(self.server.data[: self.server.at_most])
            self.server.speaks.wait(20)

    def begin(self):
        if "gone" in self.path:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.data)))
        self.end_headers()
        return True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.data, server.knows_head, server.at_most, server.got = DATA, True, len(DATA), 0
    server.speaks = threading.Event()
    server.speaks.set()
    server.url = f"http://127.0.0.1:{server.server_port}/weights/a%20b.pth?dl=1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def left(folder):
    """The files in a folder, with those that are hidden."""
    return [path.name for path in folder.rglob("*") if path.is_file()]


def refused(words, *args, **how):
    with pytest.raises(DwlthError, match=words) as error:
        fetch(*args, **how)
    assert "\n" not in str(error.value)


def test_a_download_gets_its_name_when_it_is_whole_and_is_reused(server, tmp_path):
    path = fetch(server.url, tmp_path / "new", SHA256, len(DATA))
    assert path.name == "a b.pth" and path.parent.parent == tmp_path / "new" and path.read_bytes() == DATA
    assert left(tmp_path) == ["a b.pth"]
    assert fetch(server.url, tmp_path / "new", SHA256[:8].upper()) == path
    assert fetch(server.url, tmp_path / "new") == path
    assert server.got == 1


def test_a_server_that_does_not_tell_the_length_beforehand(server, tmp_path):
    server.knows_head = False
    assert fetch(server.url, tmp_path).read_bytes() == DATA


def test_two_addresses_with_one_file_name_give_two_files(server, tmp_path):
    one, other = (server.url.replace("weights", folder) for folder in ("standard", "robust"))
    first = fetch(one, tmp_path)
    server.data = DATA[::-1]
    second = fetch(other, tmp_path)
    assert first.name == second.name and first.read_bytes() == DATA and second.read_bytes() == DATA[::-1]
    assert fetch(one, tmp_path) == first and server.got == 2


def test_a_server_that_falls_silent_is_not_waited_for(server, tmp_path, monkeypatch):
    monkeypatch.setattr(official, "PATIENCE", 0.2)
    server.at_most, before = 1000, socket.getdefaulttimeout()
    server.speaks.clear()
    refused("dl=1: TimeoutError: timed out", server.url, tmp_path)
    server.speaks.set()
    assert left(tmp_path) == [] and socket.getdefaulttimeout() == before
    server.at_most = len(DATA)
    assert fetch(server.url, tmp_path).read_bytes() == DATA


def test_a_download_that_breaks_off_leaves_nothing(server, tmp_path):
    server.at_most = 1000
    refused("truncated: 1,000 of 1,048,576 bytes came; the same call begins anew", server.url, tmp_path)
    assert left(tmp_path) == []
    server.at_most = len(DATA)
    assert fetch(server.url, tmp_path).read_bytes() == DATA


def test_what_is_wrong_is_said_and_leaves_nothing(server, tmp_path):
    refused(f"sha256 is {SHA256}, where 00000000 should be$", server.url, tmp_path, "00000000")
    refused("1,048,576 bytes, where 5 should be$", server.url, tmp_path, size=5)
    server.data = b"\n<!DOCTYPE html><title>Virus scan warning</title>"
    refused(r"a%20b.pth.*a web page \(HTML\).*browser", server.url, tmp_path)
    server.data = b""
    refused(r"empty \(0 bytes\)", server.url, tmp_path)
    refused("HTTP Error 404", server.url.replace("weights", "gone"), tmp_path)
    assert left(tmp_path) == []


def test_a_file_that_is_here_is_checked_but_never_deleted(server, tmp_path):
    path = fetch(server.url, tmp_path)
    path.write_bytes(b"other")
    refused("a b.pth: its sha256 is", server.url, tmp_path, SHA256)
    assert path.read_bytes() == b"other" and server.got == 1
    assert fetch(path, tmp_path / "elsewhere", size=5) == path and not (tmp_path / "elsewhere").exists()
    refused("5 bytes, where 6 should be", path, tmp_path, size=6)
    refused("missing.pth: no such file", tmp_path / "missing.pth", tmp_path)


def test_a_server_that_is_not_there(server, tmp_path):
    server.server_close()
    refused("a%20b.pth.dl=1: URLError: .*refused", server.url, tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("http://127.0.0.1/", "names no file"),
        ("http://[x/a", "names no file"),
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
    assert server.got == 0


def test_torchvisions_names_bring_their_address_and_hash(server, tmp_path, monkeypatch):
    good = types.SimpleNamespace(url=server.url.replace("a%20b", f"resnet50-{SHA256[:8]}"))
    monkeypatch.setattr("torchvision.models.get_weight", lambda name: {"ResNet50_Weights.IMAGENET1K_V1": good}[name])
    path = fetch("torchvision:ResNet50_Weights.IMAGENET1K_V1", tmp_path)
    assert path.name == f"resnet50-{SHA256[:8]}.pth"
    good.url = server.url.replace("a%20b", "resnet50-0676ba61")
    refused("where 0676ba61 should be", "torchvision:ResNet50_Weights.IMAGENET1K_V1", tmp_path)


def test_the_pinned_weights_are_torchvisions_first():
    assert presets.get("paper").pretrain["standard"].where == "torchvision:ResNet50_Weights.IMAGENET1K_V1"
    assert downloads._torchvision("torchvision:ResNet50_Weights.IMAGENET1K_V1").endswith("resnet50-0676ba61.pth")


def test_hugging_face(tmp_path, monkeypatch):
    asked = []

    def hf_hub_download(repo_id, filename, *, local_dir):
        asked.append((repo_id, filename))
        local_dir.mkdir(exist_ok=True)
        (local_dir / filename).write_bytes(DATA)
        return str(local_dir / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    one = fetch("hf:madrylab/some-models/a.ckpt", tmp_path, SHA256)
    assert one.name == "a.ckpt" and one.is_relative_to(tmp_path) and asked == [("madrylab/some-models", "a.ckpt")]
    assert fetch("hf:madrylab/other-models/a.ckpt", tmp_path, SHA256) != one
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
        assert re.match(r"hf:[\w-]+/[\w-]+/[\w.]+$", where)
        assert re.fullmatch("[0-9a-f]{64}", known.sha256) and known.size and not known.checked
