"""The proxy's schedules, and what it knows of AWS's protocols."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import urllib.parse
from collections import Counter
from contextlib import closing

import pytest

from fsdray.testing.proxy import Asked, Fault, FaultProxy, killing, rarely, seeded, wire

SHARES = {Fault.SLOW: 0.2, Fault.PARTIAL: 0.3}


def test_a_seed_decides_the_same_each_time() -> None:
    asked = [Asked("sns", "PublishBatch", number) for number in range(1000)]
    first = [seeded(3, SHARES)(each) for each in asked]
    assert first == [seeded(3, SHARES)(each) for each in reversed(asked)][::-1]
    assert first != [seeded(4, SHARES)(each) for each in asked]
    found = Counter(first)
    assert 140 < found[Fault.SLOW] < 260
    assert 230 < found[Fault.PARTIAL] < 370


def test_a_fault_befalls_only_what_it_can_befall() -> None:
    found = {seeded(3, SHARES)(Asked("s3", "GetObject", number)) for number in range(200)}
    assert found == {None, Fault.SLOW}


def test_a_burst_is_of_one_fate() -> None:
    schedule = seeded(5, {Fault.THROTTLE: 0.5}, burst=10)
    fates = [schedule(Asked("lambda", "Invoke", number)) for number in range(100)]
    assert all(len(set(fates[at : at + 10])) == 1 for at in range(0, 100, 10))
    assert len(set(fates)) == 2


def test_one_entry_of_a_batch_goes_on_and_the_others_fail() -> None:
    asked = json.dumps({"QueueUrl": "q", "Entries": [{"Id": "a"}, {"Id": "b"}, {"Id": "c"}]})
    body, left = wire.first_of_batch("SendMessageBatch", asked.encode())
    assert json.loads(body)["Entries"] == [{"Id": "a"}]
    told = json.loads(wire.with_failed("SendMessageBatch", b'{"Successful": [{"Id": "a"}]}', left))
    assert told["Successful"] == [{"Id": "a"}]
    assert [(each["Id"], each["SenderFault"]) for each in told["Failed"]] == [
        ("b", False),
        ("c", False),
    ]


def test_the_same_of_a_form() -> None:
    fields = {"Action": "PublishBatch", "TopicArn": "t"}
    for number, name in enumerate("ab", 1):
        fields[f"PublishBatchRequestEntries.member.{number}.Id"] = name
        fields[f"PublishBatchRequestEntries.member.{number}.Message"] = "-"
    body, left = wire.first_of_batch("PublishBatch", urllib.parse.urlencode(fields).encode())
    kept = dict(urllib.parse.parse_qsl(body.decode()))
    assert kept["PublishBatchRequestEntries.member.1.Id"] == "a"
    assert not any(".member.2." in name for name in kept)
    answer = b"<X><PublishBatchResult><Failed/><Successful>s</Successful></PublishBatchResult></X>"
    told = wire.with_failed("PublishBatch", answer, left).decode()
    assert "<Successful>s</Successful>" in told
    assert told.count("<Failed>") == 1
    assert "<Id>b</Id>" in told


def test_the_same_of_keys() -> None:
    keys = "".join(f"<Object><Key>runs/{each}</Key></Object>" for each in "abc")
    asked = f'<Delete xmlns="x">{keys}<Quiet>true</Quiet></Delete>'.encode()
    body, left = wire.first_of_batch("DeleteObjects", asked)
    assert body.count(b"<Key>") == 1
    assert left == ["runs/b", "runs/c"]
    for answer in (b'<DeleteResult xmlns="x" />', b'<DeleteResult xmlns="x"></DeleteResult>'):
        told = wire.with_failed("DeleteObjects", answer, left).decode()
        assert "<Key>runs/b</Key><Code>InternalError</Code>" in told
        assert told.endswith("</Error></DeleteResult>")
    headers = {"authorization": "Credential=a/20260101/us-east-1/s3/aws4_request"}
    assert wire.asked_of("POST", "/bucket?delete", headers, asked) == ("s3", "DeleteObjects")
    assert wire.asked_of("POST", "/bucket/key?uploads", headers, b"") == ("s3", "PostObject")


def test_who_asks_is_killed_at_the_request_that_was_chosen() -> None:
    program = (
        "import sys, http.client\n"
        "connection = http.client.HTTPConnection(sys.argv[1])\n"
        "for _ in range(4):\n"
        "    connection.request('GET', '/')\n"
        "    connection.getresponse().read()\n"
    )
    with FaultProxy() as target, FaultProxy(target.url, sees_callers=True) as proxy:
        target.schedule = rarely(Fault.EXPIRED, "GET", range(10))
        for fault, passed in ((Fault.KILL_BEFORE, 3), (Fault.KILL_AFTER, 4)):
            target.forget()
            target.schedule = rarely(Fault.EXPIRED, "GET", range(10))
            proxy.forget()
            proxy.schedule = killing(1, 2, fault)
            assert status(proxy.url) == 403  # this process is not counted
            asking = subprocess.Popen([sys.executable, "-c", program, proxy.url[7:]])
            assert asking.wait(20) == -signal.SIGKILL
            assert proxy.killed == [asking.pid]
            assert target.asked.total() == passed


def status(url: str, path: str = "/") -> int:
    with closing(http.client.HTTPConnection(url.removeprefix("http://"))) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def test_it_passes_on_and_refuses_and_cuts() -> None:
    with FaultProxy() as target, FaultProxy(target.url) as proxy:
        # What stands behind refuses everything: so one sees who answered.
        target.schedule = rarely(Fault.EXPIRED, "GET", range(10))
        assert status(proxy.url, "/a%2Fb?c=d") == 403
        proxy.schedule = rarely(Fault.UNAVAILABLE, "GET", (1,))
        assert status(proxy.url) == 503
        proxy.schedule = rarely(Fault.CUT_AFTER, "GET", (2,))
        with pytest.raises(ConnectionError):
            status(proxy.url)
        assert target.asked.total() == 2
        assert proxy.done == {(Fault.UNAVAILABLE, "GET"): 1, (Fault.CUT_AFTER, "GET"): 1}
