"""`pqm-fast serve` as a process: it says where it listens, and a signal ends it after the requests that it has."""

import re
import signal
import subprocess
import sys
import threading

import pytest
import requests
from serving import checkpoint

pytestmark = pytest.mark.processes


@pytest.fixture
def process(tmp_path):
    command = [sys.executable, "-m", "pqm_fast", "serve", "--model", str(checkpoint(tmp_path)), "--port", "0"]
    command += ["--dtype", "float32", "--gather-ms", "700"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_a_signal_ends_the_server_after_the_requests_that_it_has(process):
    line = process.stdout.readline()
    url = re.fullmatch(r"serving .*/run on (http://127\.0\.0\.1:\d+)\n", line)[1]
    answers = []
    body = {"question": "w3", "solutions": [["w4"]]}
    client = threading.Thread(target=lambda: answers.append(requests.post(f"{url}/score", json=body, timeout=30)))
    client.start()
    while "in_progress 2.0" not in requests.get(f"{url}/metrics", timeout=10).text:  # the client's, and this one
        pass
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    client.join(30)
    assert [answer.status_code for answer in answers] == [200]
    assert process.stderr.read() == "pqm-fast: terminated; all requests were answered\n"
