"""Checks that unmodified OpenTelemetry SDKs reach Kafka through Sluice with nothing set but endpoint, key and protocol.

    check.py SLUICE NODE_DIR

SLUICE is the binary; `sluice dev` is started on free ports and a data folder of its own. NODE_DIR holds workload.js and its
node_modules. Python is the one that runs this file: its environment has requirements.txt installed. Each workload prints what
it sent. The ledger on /metrics must grow by just that, and kcat, which shares no code with Sluice, must find the records in
Kafka under the badge of the key's account, decoded by OpenTelemetry's own types.
"""

import collections
import json
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
import urllib.request

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

HERE = pathlib.Path(__file__).resolve().parent
BIN = pathlib.Path(sys.executable).parent
READY_SECONDS = 60
RUN_SECONDS = 60


class Failure(Exception):
    pass


def require(condition, message):
    if not condition:
        raise Failure(message)


# ------------------------------------------------------------------------------------------------ sluice dev


class Sluice:
    """A `sluice dev` of our own; `about` is the JSON line that it prints when it is ready."""

    def __init__(self, binary, folder):
        self.binary = binary
        self.errors = folder / "sluice.log"
        ports = [f"--{name}-addr=127.0.0.1:0" for name in ("edge", "grpc", "admin", "ops", "kafka")]
        self.process = subprocess.Popen(
            [binary, "dev", "--json", f"--data-dir={folder / 'data'}", *ports],
            cwd=folder,
            env=plain_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("wb"),
        )
        try:
            self.about = json.loads(self.first_line())
        except BaseException:
            self.stop()
            raise

    def first_line(self):
        readable, _, _ = select.select([self.process.stdout], [], [], READY_SECONDS)
        line = self.process.stdout.readline() if readable else b""
        require(line, f"sluice dev was not ready in {READY_SECONDS} s; its log:\n{self.log()}")
        return line

    def url(self, name):
        address = self.about[name]
        return address if "://" in address else "http://" + address

    def log(self):
        return self.errors.read_text(errors="replace")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def ledger(self):
        """Counts by (kind, outcome, reason), and received records by (kind, "received")."""
        with urllib.request.urlopen(self.url("ops") + "/metrics", timeout=10) as answer:
            text = answer.read().decode()
        counts = collections.Counter()
        for line in text.splitlines():
            match = re.fullmatch(r"sluice_ingest_records(_received)?_total\{(.*)\} (\S+)", line)
            if match:
                received, labels, value = match.groups()
                labels = dict(re.findall(r'(\w+)="([^"]*)"', labels))
                key = (labels["kind"], "received") if received else (labels["kind"], labels["outcome"], labels["reason"])
                counts[key] += int(float(value))
        require(counts, "no ledger on /metrics")
        return counts


def plain_environment(**more):
    """This process's environment without any setting of OpenTelemetry's or Sluice's."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OTEL_", "SLUICE_"))}
    return {**kept, **more}


# ------------------------------------------------------------------------------------------------ workloads


def workloads(node_dir):
    """What is run: a name, its command, and the protocol where the SDK's own default is another."""
    python = HERE / "python"
    javascript = node_dir / "workload.js"
    return [
        ("Python, SDK", [sys.executable, python / "with_sdk.py"], None),
        ("Python, opentelemetry-instrument", [BIN / "opentelemetry-instrument", sys.executable, python / "workload.py"], "http/protobuf"),
        ("Node.js, SDK", ["node", javascript], None),
        ("Node.js, SDK, JSON", ["node", javascript], "http/json"),
    ]


def run(sluice, name, command, protocol):
    """Runs one workload and requires that the ledger grew by what it says it sent. Returns that."""
    environment = plain_environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=sluice.url("edge"),
        OTEL_EXPORTER_OTLP_HEADERS="x-flowstate-key=" + sluice.about["key"],
    )
    if protocol:
        environment["OTEL_EXPORTER_OTLP_PROTOCOL"] = protocol
    before = sluice.ledger()
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=RUN_SECONDS)
    require(done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}{done.stderr}")
    sent = json.loads(done.stdout.splitlines()[-1])
    grew = sluice.ledger() - before

    expected = collections.Counter()
    for kind in ("logs", "spans", "metrics", "signals"):
        expected[kind, "accepted", "kafka"] = expected[kind, "received"] = sent[kind]
    expected["signals", "filtered", "applies_to_persons_only"] = sent["filtered"]
    expected["signals", "received"] += sent["filtered"]
    require(grew == expected, f"the ledger grew by {dict(grew)}, not by {dict(expected)}\n{done.stdout}{done.stderr}")
    return sent


# ------------------------------------------------------------------------------------------------ Kafka


Message = collections.namedtuple("Message", "key headers value")


def consume(brokers, topic):
    """Every message of a topic, by kcat."""
    done = subprocess.run(
        ["kcat", "-C", "-q", "-e", "-b", brokers, "-t", topic, "-o", "beginning", "-f", "%K %S %h\\n%k\\n%s\\n"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=RUN_SECONDS,
    )
    require(done.returncode == 0, f"kcat: {done.stderr.decode(errors='replace')}")
    messages, rest = [], done.stdout
    while rest:
        line, rest = rest.split(b"\n", 1)
        key_size, size, headers = line.decode().split(" ", 2)
        key_size, size = max(int(key_size), 0), int(size)
        key, rest = rest[:key_size], rest[key_size + 1 :]
        value, rest = rest[:size], rest[size + 1 :]
        messages.append(Message(key.decode(), dict(h.split("=", 1) for h in headers.split(",")), value))
    return messages


def check_message(message, account):
    org, subject = account
    require(message.key == f"{org}/service_account/{subject}", f"the message key is {message.key}")
    wanted = {
        "flowstate-org": org,
        "flowstate-subject-kind": "service_account",
        "flowstate-subject-id": subject,
        "flowstate-schema": "1",
    }
    require(wanted.items() <= message.headers.items(), f"the headers are {message.headers}")
    require(message.headers.get("flowstate-msg-id"), "no flowstate-msg-id header")
    require(b"forged" not in message.value, "a flowstate.* attribute of the client's survived")


def check_badge(resource, account):
    org, subject = account
    attributes = {a.key: a.value.string_value for a in resource.attributes}
    require(attributes.get("flowstate.org") == org, f"the resource's attributes are {attributes}")
    require(attributes.get("flowstate.subject.id") == subject, f"the resource's attributes are {attributes}")
    require("service.name" in attributes, "the resource's own service.name is lost")


def count_logs(value, account):
    n = 0
    for resource in ExportLogsServiceRequest.FromString(value).resource_logs:
        check_badge(resource.resource, account)
        for scope in resource.scope_logs:
            for record in scope.log_records:
                require(record.body.string_value.startswith("summary of article"), f"a log record nobody sent: {record}")
                n += 1
    return n


def count_spans(value, account):
    n = 0
    for resource in ExportTraceServiceRequest.FromString(value).resource_spans:
        check_badge(resource.resource, account)
        for scope in resource.scope_spans:
            require({s.name for s in scope.spans} <= {"digest", "summarise"}, f"a span nobody sent: {scope}")
            n += len(scope.spans)
    return n


def count_points(value, account):
    n = 0
    for resource in ExportMetricsServiceRequest.FromString(value).resource_metrics:
        check_badge(resource.resource, account)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                require(metric.name in ("tokens", "latency"), f"a metric nobody sent: {metric}")
                n += len(getattr(metric, metric.WhichOneof("data")).data_points)
    return n


def count_signals(value, account):
    event = json.loads(value)
    require(event["type"] == "forecast_breach", f"a signal that should not be here: {event}")
    require((event["org"], event["subject"]["id"]) == account, f"not our account's: {event}")
    return 1


TOPICS = {
    "otlp_logs": ("logs", count_logs),
    "otlp_spans": ("spans", count_spans),
    "otlp_metrics": ("metrics", count_points),
    "ai_signals": ("signals", count_signals),
}


def check_topic(sluice, topic, sent):
    kind, count = TOPICS[topic]
    account = (sluice.about["org"], sluice.about["account_id"])
    found = 0
    for message in consume(sluice.about["kafka"], topic):
        check_message(message, account)
        found += count(message.value, account)
    require(found == sent[kind], f"{found} {kind} in {topic}, {sent[kind]} were sent")


# ------------------------------------------------------------------------------------------------ main


def main(binary, node_dir):
    failures = passed = 0
    sent = collections.Counter()

    def check(name, function, *arguments):
        nonlocal failures, passed
        try:
            result = function(*arguments)
        except (Failure, subprocess.TimeoutExpired, OSError, ValueError) as failure:
            failures += 1
            print(f"FAIL {name}: {failure}", flush=True)
            return None
        passed += 1
        print(f"ok   {name}", flush=True)
        return result

    with tempfile.TemporaryDirectory(prefix="sluice-exporters-") as folder:
        sluice = Sluice(binary, pathlib.Path(folder))
        try:
            for name, command, protocol in workloads(node_dir):
                sent.update(check(name, run, sluice, name, command, protocol) or {})
            for topic in TOPICS:
                check(topic, check_topic, sluice, topic, sent)
            if failures:
                print("the log of sluice dev:\n" + sluice.log())
        finally:
            sluice.stop()
    print(f"exporters: {passed} passed, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(os.path.abspath(sys.argv[1]), pathlib.Path(sys.argv[2]).resolve()))
