"""The API as `curl` and as machines that read its OpenAPI document meet it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.daemon.harness import Home
from tests.processes import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Running


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with Home.made() as home, home.running() as daemon:
        daemon.add_vm()
        yield daemon


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_shares_a_directory_and_reads_why_it_cannot(running: Running) -> None:
    def curl(*args: str) -> str:
        command = ["curl", "--silent", "--show-error", "--unix-socket", running.home.settings.socket_path, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE).stdout

    wanted = json.dumps({"path": running.home.directory("curl"), "read_only": True, "owner": "curl", "lease": 60})
    typed = ("--header", "Content-Type: application/json", "--data", wanted)
    share = json.loads(curl("http://localhost/v1/vms/vm/shares", *typed))
    assert share["state"] == "added"
    assert [each["name"] for each in json.loads(curl("http://localhost/v1/vms/vm/shares"))] == [share["name"]]
    stream = curl("http://localhost/v1/events?since=0&follow=false")
    assert "event: share.held\ndata: {" in stream
    released = f"http://localhost/v1/vms/vm/shares/{share['name']}?owner=curl"
    assert json.loads(curl("--request", "DELETE", released))["ended"] is True
    problem = json.loads(curl(released.partition("?")[0]))
    assert problem["error"] == "NotThere"


@pytest.mark.parametrize("examples", [5, pytest.param(30, marks=pytest.mark.long)])
def test_whatever_the_document_allows_is_answered_as_the_document_says(running: Running, examples: int) -> None:
    """Schemathesis makes requests from the OpenAPI document, good ones and bad ones; the seed is fixed."""
    with running.home.http() as http:
        document = http.get("/v1/openapi.json").json()
        # A VM is a process, and a stream that follows does not end.
        del document["paths"]["/v1/vms"]["post"]
        for each in document["paths"]["/v1/events"]["get"]["parameters"]:
            if each["name"] == "follow":
                each["schema"] = {"type": "boolean", "const": False}
                each["required"] = True
        schema = schemathesis.openapi.from_dict(document)
        seen: Counter[int] = Counter()
        for result in schema.get_all_operations():
            assert isinstance(result, Ok), result
            operation = result.ok()
            # A stream that was asked for wrongly may be one that follows, and does not end.
            modes = [GenerationMode.POSITIVE] if operation.path == "/v1/events" else list(GenerationMode)
            cases = st.one_of(*(operation.as_strategy(generation_mode=mode) for mode in modes))
            if operation.path.startswith("/v1/vms/{vm}/"):  # the VM that there is
                cases |= operation.as_strategy(path_parameters={"vm": "vm", "share": "0", "owner": "default"})

            @settings(
                max_examples=examples,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=cases)
            def check(case: schemathesis.Case[Any]) -> None:
                asked = case.as_transport_kwargs(base_url="http://daemon")
                asked = {key: value for key, value in asked.items() if key not in {"cookies", "files"} or value}
                if "data" in asked:
                    asked["content"] = asked.pop("data")
                answer = http.request(**asked)
                seen[answer.status_code] += 1
                case.validate_response(answer, checks=CHECKS)

            check()
    assert sum(seen.values()) >= min(100, 15 * examples), seen
    assert {200, 400, 404} <= set(seen), seen
