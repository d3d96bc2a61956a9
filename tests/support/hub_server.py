"""A Hub on loopback: what huggingface_hub calls to create a repository, push to it in one commit and load from it."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import yaml


@dataclass
class Repo:
    private: bool = False
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b""}])
    """All files after each commit, by path."""

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class HubServer:
    """A Hub with one user, `me`, whose token is `token`; use as a context manager.

    `repos` are by id. `broken` maps a pattern of "METHOD path" to the status that such requests get.
    """

    def __init__(self, token: str):
        self.token = token
        self.repos: dict[str, Repo] = {"somebody/theirs": Repo()}
        self.blobs: dict[str, bytes] = {}
        self.broken: dict[str, int] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do(self):
                hub.answer(self)

            do_GET = do_HEAD = do_POST = do_PUT = do

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo_id: str) -> dict[str, bytes]:
        """Return the files of the newest commit, without the Hub's own .gitattributes."""
        newest = self.repos[repo_id].commits[-1]
        return {path: content for path, content in newest.items() if path != ".gitattributes"}

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.split("?")[0]
        line = f"{request.command} {path}"
        self.requests.append(line)
        status = next((status for pattern, status in self.broken.items() if re.search(pattern, line)), None)
        if status:
            return self._send(request, status, {"error": f"the test's {status}"})
        signed_in = request.headers.get("Authorization") == f"Bearer {self.token}"
        for pattern, route in self.ROUTES.items():
            match = re.fullmatch(pattern, line)
            if match:
                return self._send(request, *route(self, body, signed_in, **match.groupdict()))
        self._send(request, 404, {"error": f"no such route: {line}"})

    def _send(self, request, status: int, content, headers: dict | None = None) -> None:
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        request.send_response(status)
        for name, value in {"Content-Length": len(content), **(headers or {})}.items():
            request.send_header(name, str(value))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(content)

    def _create(self, body, signed_in):
        wanted = json.loads(body)
        repo_id = f"{wanted['organization'] or 'me'}/{wanted['name']}"
        if not signed_in:
            return 401, {"error": "Invalid username or password."}
        if not repo_id.startswith("me/"):
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        status = 409 if repo_id in self.repos else 200
        self.repos.setdefault(repo_id, Repo(wanted.get("visibility") == "private"))
        return status, {"url": f"{self.url}/{repo_id}", "error": "You already created this model repo"}

    def _auth_check(self, body, signed_in, repo, write):
        if not signed_in or (write and not repo.startswith("me/")):
            return 403, {"error": "Forbidden: you need write access"}
        return 200, {}

    def _validate_yaml(self, body, signed_in):
        front = re.match(r"---\n(.*?)\n---\n", json.loads(body)["content"], re.DOTALL)
        data = yaml.safe_load(front[1]) if front else {}
        base = data.get("base_model", "a/b")
        errors = [] if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base) else [{"message": f"base_model {base} is no id"}]
        return (400 if errors else 200), {"errors": errors, "warnings": [] if data else [{"message": "no metadata"}]}

    def _preupload(self, body, signed_in, repo):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".png")) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        return 200, {"files": files}

    def _batch(self, body, signed_in, repo):
        objects = json.loads(body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.blobs:
                upload = {"href": f"{self.url}/lfs/{wanted['oid']}"}
                wanted["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/lfs/verify"}}
        return 200, {"transfer": "basic", "objects": objects}

    def _upload(self, body, signed_in, oid):
        is_whole = hashlib.sha256(body).hexdigest() == oid
        self.blobs.update({oid: body} if is_whole else {})
        return (200 if is_whole else 400), {}

    def _verify(self, body, signed_in):
        return (200 if json.loads(body)["oid"] in self.blobs else 404), {}

    def _commit(self, body, signed_in, repo):
        if not signed_in or not repo.startswith("me/"):
            return 403, {"error": "Forbidden: you need write access"}
        files = dict(self.repos[repo].commits[-1])
        for operation in map(json.loads, body.splitlines()):
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
        self.repos[repo].commits.append(files)
        sha = self.repos[repo].sha
        return 200, {"commitUrl": f"{self.url}/{repo}/commit/{sha}", "commitOid": sha, "success": True}

    def _readable(self, repo, signed_in):
        return repo in self.repos and (signed_in or not self.repos[repo].private)

    def _info(self, body, signed_in, repo):
        if not self._readable(repo, signed_in):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        files = [{"rfilename": path} for path in self.repos[repo].commits[-1]]
        about = {"_id": "1", "id": repo, "modelId": repo, "private": self.repos[repo].private, "tags": []}
        return 200, about | {"sha": self.repos[repo].sha, "siblings": files, "downloads": 0, "likes": 0}

    def _tree(self, body, signed_in, repo, folder):
        if not self._readable(repo, signed_in):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        inside = {
            path: content for path, content in self.repos[repo].commits[-1].items() if path.startswith(folder or "")
        }
        if not inside:
            return 404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"}
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in inside.items()
        ]
        return 200, entries

    def _resolve(self, body, signed_in, repo, path):
        if not self._readable(repo, signed_in):
            return 404, b"", {"X-Error-Code": "RepoNotFound"}
        commit = {"X-Repo-Commit": self.repos[repo].sha}
        content = self.repos[repo].commits[-1].get(path)
        if content is None:
            return 404, b"", {"X-Error-Code": "EntryNotFound", **commit}
        return 200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', **commit}

    REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
    ROUTES = {
        "POST /api/repos/create": _create,
        rf"GET /api/models/{REPO}/auth-check(?P<write>/write)?": _auth_check,
        "POST /api/validate-yaml": _validate_yaml,
        rf"POST /api/models/{REPO}/preupload/main": _preupload,
        rf"POST /{REPO}\.git/info/lfs/objects/batch": _batch,
        r"PUT /lfs/(?P<oid>\w{64})": _upload,
        "POST /lfs/verify": _verify,
        rf"POST /api/models/{REPO}/commit/main": _commit,
        rf"GET /api/models/{REPO}(?:/revision/\w+)?": _info,
        rf"GET /api/models/{REPO}/tree/\w+(?:/(?P<folder>.+))?": _tree,
        rf"(?:HEAD|GET) /{REPO}/resolve/\w+/(?P<path>.+)": _resolve,
    }
