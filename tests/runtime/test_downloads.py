"""What URLs give: kept in the cache, whole, and given up where a server sends next to nothing."""

import http.server
import os
import threading
import time

import pytest
from detectron2.utils.file_io import PathManager

from skd import register_coco
from skd.config import read_config
from skd.config.safe_yaml import MAX_BYTES, read_yaml_with_base
from skd.modeling.model_zoo import find_config
from skd.runtime import downloads
from skd.runtime.downloads import cached_path


@pytest.fixture
def server(tmp_path, monkeypatch):
    """URL of a server that answers every path with ``server.content``."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("FVCORE_CACHE", str(cache))

    class Handler(http.server.BaseHTTPRequestHandler):
        content, asked = b"SEED: 5\n", []

        def do_GET(self):
            Handler.asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            try:
                self.wfile.write(Handler.content)
            except OSError:
                pass  # broken off

        def log_message(self, *_):
            pass

    here = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Handler.url, Handler.cache = f"http://127.0.0.1:{here.server_port}", cache
    threading.Thread(target=here.serve_forever, args=(0.02,), daemon=True).start()
    yield Handler
    here.shutdown()
    here.server_close()


def test_a_server_that_drips_is_given_up(server, monkeypatch):
    """A byte now and then, for ever; a limit on each answer alone would never be reached."""
    monkeypatch.setattr(downloads, "WINDOW_SECONDS", 0.3)

    def drip(handler):
        handler.send_response(200)
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(b"#")
                time.sleep(0.02)
        except OSError:
            pass

    monkeypatch.setattr(server, "do_GET", drip)
    for limit in ({"limit": 2**20}, {}):
        with pytest.raises(OSError, match="x.pth' sends .* bytes in 0.3 s: given up"):
            PathManager.open(server.url + "/x.pth", "rb", **limit)
    left = [name for _, _, files in os.walk(server.cache) for name in files]
    assert not [name for name in left if not name.endswith(".lock")]


def test_urls_stand_where_files_do(server, tmp_path):
    """URLs may name a teacher's config or annotations, as in stock Detectron2; images are files."""
    assert read_config(find_config(f"{server.url}/a/x.yaml")).SEED == 5
    server.content = b'{"images": []}'
    with pytest.raises(ValueError, match="x.json"):  # it has been read
        register_coco("of_a_url", f"{server.url}/x.json", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder of images 'http://"):
        register_coco("of_a_url", os.devnull, server.url)


def test_a_name_of_weights_is_no_config():
    with pytest.raises(ValueError, match="'catalog://x' is a name of weights"):
        read_config("catalog://x")
    with pytest.raises(ValueError, match="is 'catalog://x', a name of weights"):
        find_config("catalog://x")


@pytest.mark.parametrize("name", ["x.yaml", "x.json", "x.py"])
def test_a_download_that_fails_is_named(name, server, monkeypatch):
    monkeypatch.setattr(server, "do_GET", lambda handler: handler.send_error(404))
    url = f"{server.url}/{name}"
    with pytest.raises(OSError, match=f"^'{url}' cannot be downloaded: .*404"):
        if name == "x.json":
            register_coco("of_a_url", url, os.curdir)
        else:
            read_config(find_config(url))


def test_half_a_download_is_none(server, monkeypatch):
    def half(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"x" * 50)

    monkeypatch.setattr(server, "do_GET", half)
    with pytest.raises(OSError, match="x.pth' has sent 50 bytes of 100"):
        PathManager.open(server.url + "/x.pth", "rb")


URLS = [
    "/../../../../../../../../../..{there}/x.yaml", "/a/../../../../../../../../..{there}/x.yaml",
    "/%2e%2e/%2e%2e/x.yaml", "/a/..", "/..", "//{there}/x.yaml",
    "/x.yaml?a=/../../..{there}/y.yaml",
    "/x.yaml#/../../..{there}/y.yaml", "/..\\..\\x.yaml", "/" + "a" * 3000 + ".yaml", "/.", "", "/",
    "/;/../..{there}/y.yaml", "/x.yaml;/../..{there}/y.yaml", "/.bashrc", "/a/~/x.yaml",
]  # fmt: skip


@pytest.mark.parametrize("path", URLS)
def test_downloads_stay_in_the_cache(path, server, tmp_path):
    there = tmp_path / "elsewhere"
    there.mkdir()
    url = server.url + path.format(there=there)
    assert read_yaml_with_base(url) == {"SEED": 5}
    with PathManager.open(url, "rb") as f:
        assert f.read() == server.content
        assert os.path.realpath(f.name).startswith(os.path.realpath(server.cache) + os.sep)
    assert sorted(os.listdir(tmp_path)) == ["cache", "elsewhere"] and not os.listdir(there)
    assert len(server.asked) >= 1


def test_the_cache_knows_the_host_and_all_of_the_url():
    urls = [
        "http://a/x.pkl", "https://a/x.pkl", "https://b/x.pkl", "https://a:1/x.pkl",
        "https://a/x.pkl?1", "https://a/y/x.pkl", "https://hosts/x.pkl", "https://u@a/x.pkl",
        "http://dl.fbaipublicfiles.com/x.pkl", "https://dl.fbaipublicfiles.com.a/x.pkl",
        "https://dl.fbaipublicfiles.com@a/x.pkl", "https://dl.fbaipublicfiles.com/../x.pkl",
        "https://dl.fbaipublicfiles.com/x.pkl",
    ]  # fmt: skip
    paths = [cached_path(url, "/cache") for url in urls]
    assert len(set(paths)) == len(urls)
    assert all(p.startswith("/cache/") and p.endswith("x.pkl") for p in paths[:4])
    with pytest.raises(ValueError, match="has no host"):
        cached_path("http:///x", "/cache")


def test_the_zoos_files_are_where_stock_detectron2_has_them(server, tmp_path):
    kept = server.cache / "detectron2" / "x" / "model.pkl"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"here")
    host = "https://dl.fbaipublicfiles.com"
    for url in ("detectron2://x/model.pkl", f"{host}/detectron2/x/model.pkl"):
        assert PathManager.get_local_path(url) == str(kept)


def test_a_download_is_kept_and_can_be_fetched_again(server):
    url = f"{server.url}/x.yaml"
    for _ in range(2):
        path = PathManager.get_local_path(url)
    assert len(server.asked) == 1
    server.content = b"SEED: 6\n"
    assert open(PathManager.get_local_path(url, force=True)).read() == "SEED: 6\n" and path


def test_a_large_config_is_broken_off_and_not_kept(server):
    server.content = b"#" * (MAX_BYTES + 10)
    with pytest.raises(ValueError, match="too large"):
        read_yaml_with_base(f"{server.url}/x.yaml")
    assert not [f for _, _, files in os.walk(server.cache) for f in files if "lock" not in f]


def test_bases_in_a_url_are_beside_it(server):
    server.content = b"_BASE_: http:///x.yaml"
    with pytest.raises(ValueError, match="has no host"):
        read_yaml_with_base(f"{server.url}/a/x.yaml")
    server.content = b"_BASE_: y.yaml"
    with pytest.raises(ValueError, match="based on itself"):
        read_yaml_with_base(f"{server.url}/b/x.yaml")
    assert [path for path in server.asked if "/b/" in path] == ["/b/x.yaml", "/b/y.yaml"]
