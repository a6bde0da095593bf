"""Publishes what nobody should to build-requests. Prints a JSON list of [what it is, partition, offset]."""

import json
import struct

from confluent_kafka import Producer

import longshore


def main() -> None:
    parser = longshore.arguments(__doc__.splitlines()[0])
    options = parser.parse_args()
    topic = f"{options.prefix}build-requests"
    schema = longshore.registry(options).get_latest_version(f"{topic}-value").schema_id
    good_header = b"\0" + struct.pack(">I", schema)
    records = [
        # What it is, key, value, and the partition where the key does not choose it.
        ("no magic byte", b"default", b'{"queue": "default"}', None),
        ("shorter than a header", b"default", b"\0\0", None),
        ("empty", b"default", b"", None),
        ("a tombstone", b"default", None, None),
        ("unknown schema id", b"default", b"\0" + struct.pack(">I", 9_999) + b"whatever", None),
        ("another topic's schema", b"default", b"\0" + struct.pack(">I", schema + 1) + b"whatever", None),
        ("broken Avro", b"default", good_header + b"\xff" * 64, None),
        ("a text of half a GiB, it says", b"default", good_header + b"\x80\x80\x80\x80\x04abc", None),
        ("giant", b"default", good_header + b"x" * (1536 * 1024), None),
        ("no key", None, good_header + b"\x00", 2),
    ]
    # A key's own partition is one of four: on all the others it is wrong.
    records += [("a partition of its own choice", b"default", good_header + b"\x00", number) for number in range(4)]
    told = []

    def delivered(what):
        def callback(error, message):
            if error:
                raise RuntimeError(f"{what}: {error}")
            told.append([what, message.partition(), message.offset()])
        return callback

    producer = Producer(longshore.producer(options) | {"message.max.bytes": 4 * 1024 * 1024})
    for what, key, value, partition in records:
        where = {} if partition is None else {"partition": partition}
        producer.produce(topic, key=key, value=value, on_delivery=delivered(what), **where)
    if producer.flush(30) or len(told) != len(records):
        raise SystemExit(f"only {len(told)} of {len(records)} were taken")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
