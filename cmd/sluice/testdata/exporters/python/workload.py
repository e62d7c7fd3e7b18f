"""A workload as its authors would write it: OpenTelemetry's API, the standard logging module, and nothing of Sluice's.

Run it under opentelemetry-instrument, or by with_sdk.py. It prints what it sent, as JSON, for check.py to compare.
"""

import json
import logging

from opentelemetry import metrics, trace
from opentelemetry._logs import LogRecord, SeverityNumber, get_logger

# A client may not wear somebody else's badge: the attribute must be gone by the time the telemetry is in Kafka.
FORGED = {"flowstate.org": "forged"}


def main():
    tracer = trace.get_tracer("workload")
    with tracer.start_as_current_span("digest", attributes={"articles": 12, **FORGED}):
        with tracer.start_as_current_span("summarise"):
            for article in (1, 2, 3):
                logging.warning("summary of article %d is empty", article, extra=FORGED)

    meter = metrics.get_meter("workload")
    tokens = meter.create_counter("tokens", unit="{token}")
    tokens.add(1200, {"direction": "in", **FORGED})
    tokens.add(300, {"direction": "out"})
    meter.create_histogram("latency", unit="s").record(0.25)

    logger = get_logger("workload")
    for signal in ("forecast_breach", "personal_use_company_account"):
        logger.emit(
            LogRecord(
                event_name="flowstate.signal",
                severity_number=SeverityNumber.INFO,
                attributes={"signal.type": signal, "signal.severity": "BLOCK"},
            )
        )
    print(json.dumps({"logs": 3, "spans": 2, "metrics": 3, "signals": 1, "filtered": 1}))


if __name__ == "__main__":
    main()
