"""Sends numbered spans and log records on OpenTelemetry's SDK until its standard input ends.

    outage.py grpc|http/protobuf PREFIX

Every exporter has its defaults, set by the environment alone. It prints, as JSON, how many records it made, which of them the SDK has given
up, in how many exports, and how many errors the SDK has logged.
"""

import json
import logging
import sys
import threading

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExportResult
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

protocol, prefix = sys.argv[1:]
if protocol == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
else:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

given_up = []
failed_exports = 0
logged = []


# Some of the SDK's loggers (opentelemetry.exporter.otlp.proto.grpc.exporter is one) have a DuplicateFilter, which drops a line whose module, level and
# format are those of the line before it in the same 20 s, whatever its arguments are. So lines are counted in front of it, by a filter that lets all pass.
class Errors(logging.Filter):
    def filter(self, record):
        if record.levelno >= logging.ERROR:
            logged.append(record.getMessage())
        return True


for name, child in list(logging.root.manager.loggerDict.items()):
    if name.startswith("opentelemetry") and isinstance(child, logging.Logger):
        child.filters.insert(0, Errors())


class Spans(OTLPSpanExporter):
    def export(self, spans):
        global failed_exports
        result = super().export(spans)
        if result != SpanExportResult.SUCCESS:
            failed_exports += 1
            given_up.extend(span.name for span in spans)
        return result


class Logs(OTLPLogExporter):
    def export(self, batch):
        global failed_exports
        result = super().export(batch)
        if result != LogRecordExportResult.SUCCESS:
            failed_exports += 1
            given_up.extend(entry.log_record.body for entry in batch)
        return result


tracers = TracerProvider()
tracers.add_span_processor(BatchSpanProcessor(Spans()))
loggers = LoggerProvider()
loggers.add_log_record_processor(BatchLogRecordProcessor(Logs()))
tracer = tracers.get_tracer("outage")
logger = loggers.get_logger("outage")

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
n = 0
while not ended.wait(0.1):
    tracer.start_span(f"{prefix}/span-{n}").end()
    logger.emit(LogRecord(severity_number=SeverityNumber.INFO, body=f"{prefix}/log-{n}"))
    n += 1
tracers.shutdown()
loggers.shutdown()
print(json.dumps({"made": n, "given_up": given_up, "failed_exports": failed_exports, "logged": len(logged), "first": (logged or [""])[0]}))
