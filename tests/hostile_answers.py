"""What hostile agents answer: lines that may not be said, and results of another type than was asked for.

What lives here: the tables, which tests of several layers share. What must not: what is to hold then.
"""

from __future__ import annotations

from typing import Any, Final

from uvmshare.guest import wire

__all__ = ["LISTS", "WRONG"]

WRONG: Final[dict[str, bytes]] = {
    "no JSON": b"hello\n",
    "no object": b"7\n",
    "not UTF-8": b'{"id":1,"ok":false,"error":{"code":"\xff","message":"\xfe"}}\n',
    "an id that is a list": b'{"id":[1],"ok":true}\n',
    "an id that is an object": b'{"id":{},"ok":true}\n',
    "an id that is text": b'{"id":"1","ok":true}\n',
    "an id that is a fraction": b'{"id":1.5,"ok":true}\n',
    "an id of many digits": b'{"id":' + b"9" * 5000 + b',"ok":true}\n',
    "no id": b'{"ok":true}\n',
    "ok that is a number": b'{"id":1,"ok":1}\n',
    "an error that is a number": b'{"id":1,"ok":false,"error":7}\n',
    "an error that is a list": b'{"id":1,"ok":false,"error":[]}\n',
    "an error whose code is a list": b'{"id":1,"ok":false,"error":{"code":[],"message":"x"}}\n',
    "an error whose message is missing": b'{"id":1,"ok":false,"error":{"code":"busy"}}\n',
    "an error with a lone surrogate": b'{"id":1,"ok":false,"error":{"code":"busy","message":"\\ud800"}}\n',
    "an error of 200,000 characters": b'{"id":1,"ok":false,"error":{"code":"busy","message":"'
    + b"x" * 200_000
    + b'"}}\n',
    "no error": b'{"id":1,"ok":false}\n',
    "an answer nested too deeply": b'{"id":1,"ok":true,"result":' + b"[" * 50_000 + b"]" * 50_000 + b"}\n",
    "another field nested too deeply": b'{"id":1,"ok":true,"x":' + b'{"x":' * 20_000 + b"1" + b"}" * 20_000 + b"}\n",
    "an answer to what nobody asked": b'{"id":99,"ok":true}\n',
    "an answer to a ping that was not sent": b'{"id":-1,"ok":true}\n',
    "a request": b'{"id":1,"op":"list"}\n',
    "a line that does not end": b"x" * (wire.MAX_LINE + 1),
    "an empty line": b"\n",
    "a thousand empty objects": b"{}\n" * 1000,
}

LISTS: Final[dict[str, Any]] = {
    "a number": 7,
    "a list of numbers": [7],
    "a path that is a number": [{"mount_path": 7, "share_name": "0", "port": 1, "msize": 8192}],
    "a port that is huge": [{"mount_path": "/x", "share_name": "0", "port": 1 << 60, "msize": 8192}],
    "a gap that is huge": [{"mount_path": "/x", "share_name": "0", "port": 1, "msize": 1, "last_gap": 1e300}],
    "a cache that is none": [{"mount_path": "/x", "share_name": "0", "port": 1, "msize": 1, "cache": "all"}],
    "a path of 5,000 characters": [{"mount_path": "/" + "x" * 5000, "share_name": "0", "port": 1, "msize": 1}],
    "4,500 mounts": [{"mount_path": "", "share_name": "", "port": 1, "msize": 1}] * 4500,
}
