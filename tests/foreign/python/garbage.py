"""Publishes what nobody should to build-requests. Prints a JSON list of [what it is, partition, offset]."""

import argparse
import json
import struct

from confluent_kafka import Producer
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

import build
import longshore


def valid_request(registry, topic: str) -> bytes:
    """What would be a job, if it stood where it belongs."""
    options = argparse.Namespace(
        id=None, queue="default", name="misrouted", repository="https://example.invalid/web.git", commit="0" * 40,
        script="true", output="out",
    )
    serializer = AvroSerializer(registry, conf={"auto.register.schemas": False, "use.latest.version": True})
    return serializer(build.request(options), SerializationContext(topic, MessageField.VALUE))


def main() -> None:
    parser = longshore.arguments(__doc__.splitlines()[0])
    options = parser.parse_args()
    topic = f"{options.prefix}build-requests"
    registry = longshore.registry(options)
    schema = registry.get_latest_version(f"{topic}-value").schema_id
    valid = valid_request(registry, topic)
    good_header = b"\0" + struct.pack(">I", schema)
    records = [
        # What it is, key, value.
        ("no magic byte", b"default", b'{"queue": "default"}'),
        ("shorter than a header", b"default", b"\0\0"),
        ("empty", b"default", b""),
        ("a tombstone", b"default", None),
        ("unknown schema id", b"default", b"\0" + struct.pack(">I", 9_999) + b"whatever"),
        ("another topic's schema", b"default", b"\0" + struct.pack(">I", schema + 1) + b"whatever"),
        ("broken Avro", b"default", good_header + b"\xff" * 64),
        ("a text of half a GiB, it says", b"default", good_header + b"\x80\x80\x80\x80\x04abc"),
        ("giant", b"default", good_header + b"x" * (1536 * 1024)),
    ]
    told = []

    def delivered(what):
        def callback(error, message):
            if error:
                raise RuntimeError(f"{what}: {error}")
            told.append([what, message.partition(), message.offset()])
        return callback

    producer = Producer(longshore.producer(options) | {"message.max.bytes": 4 * 1024 * 1024})
    for what, key, value in records:
        producer.produce(topic, key=key, value=value, on_delivery=delivered(what))
    if producer.flush(30) or len(told) != len(records):
        raise SystemExit(f"only {len(told)} of {len(records)} were taken")
    # The same key has put all of them on one partition; every other one is wrong for it.
    [right] = {partition for _, partition, _ in told}
    for wrong in {0, 1, 2, 3} - {right}:
        what = f"a good request on partition {wrong}"
        producer.produce(topic, key=b"default", value=valid, partition=wrong, on_delivery=delivered(what))
        what = f"a good request without its key, on partition {wrong}"
        producer.produce(topic, value=valid, partition=wrong, on_delivery=delivered(what))
    if producer.flush(30) or len(told) != len(records) + 6:
        raise SystemExit(f"not all were taken: {told}")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
