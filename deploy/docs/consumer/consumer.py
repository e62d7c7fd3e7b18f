"""A working consumer of ai_signals, to start one's own from (pip install confluent-kafka).

    python consumer.py 127.0.0.1:9092

It reads in a consumer group, drops duplicates by id, and commits what it has handled: each signal is handled at least once.
"""
import json
import signal
import sys

from confluent_kafka import Consumer


def main(brokers: str) -> None:
    consumer = Consumer({
        "bootstrap.servers": brokers,
        "group.id": "example-python",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    })
    consumer.subscribe(["ai_signals"])
    running = True

    def stop(*_):
        nonlocal running
        running = False

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    seen = set()  # in production: a table with the id as its key, in the transaction of what you do
    while running:
        message = consumer.poll(0.5)
        if message is None:
            continue
        if message.error():
            print(message.error(), file=sys.stderr)
            continue
        try:
            event = json.loads(message.value())  # members may be added; ignore those you do not know
            key, line = str(event["id"]), f'{event["severity"]} {event["type"]} - {event["subject"]["label"]}'
        except (ValueError, TypeError, KeyError) as error:  # no JSON, or JSON of another shape: pass it by, or it comes again for ever
            print(f"offset {message.offset()} is not an event: {error!r}", file=sys.stderr)
        else:
            if key not in seen:
                seen.add(key)
                print(line, flush=True)
        consumer.commit(message, asynchronous=False)
    consumer.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: consumer.py BROKER[,BROKER...]")
    main(sys.argv[1])
