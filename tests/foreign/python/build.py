"""Asks Longshore for a build by publishing it on Kafka, and follows the facts until the job has ended.

Prints one JSON object, and exits with 0 if the build succeeded, 1 if it failed or was canceled, 3 if the request was refused.
"""

import json
import sys
import time
import uuid

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

import longshore

ENDS = {"BuildSucceeded": 0, "BuildFailed": 1, "JobCanceled": 1}


def request(options) -> dict:
    build = {
        "name": options.name,
        "repository": options.repository,
        "commit": options.commit,
        "command": ["sh", "-ec", options.script],
        "output": options.output,
        "environment": {},
        "time_limit_seconds": 300,
        "labels": {"asked-by": "python"},
        "run": {
            "command": ["./server"],
            "environment": {},
            "health": {"http_path": "/", "successes": 2, "interval_ms": 500, "deadline_seconds": 60},
            "stop_signal": "SIGTERM",
            "stop_seconds": 10,
        },
    }
    return {
        # The same id again is the same job: keep it for a repetition of this request.
        "id": options.id or uuid.uuid4().hex,
        "at": int(time.time() * 1000),
        "actor": "python",
        "trace": None,
        "report": None,
        "event": ("longshore.BuildRequested", {"queue": options.queue, "build": build}),
    }


def publish(options, registry, topic: str, value: dict) -> None:
    # Schemas come with Longshore: none is registered from here.
    serializer = AvroSerializer(registry, conf={"auto.register.schemas": False, "use.latest.version": True})
    producer = Producer(longshore.producer(options))
    failures = []
    producer.produce(
        topic,
        key=options.queue,
        value=serializer(value, SerializationContext(topic, MessageField.VALUE)),
        on_delivery=lambda error, _: failures.append(error) if error else None,
    )
    if producer.flush(30) or failures:
        sys.exit(f"{topic} did not take the request: {failures or 'no broker has answered'}")


def followed(options, topic: str) -> Consumer:
    """A reader of all that is written from now on: committed facts only, and in no group."""
    consumer = Consumer(longshore.client(options) | {
        "group.id": f"{options.user}.builds",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    })
    partitions = consumer.list_topics(topic, 10).topics[topic].partitions
    ends = [(number, consumer.get_watermark_offsets(TopicPartition(topic, number), 10)[1]) for number in partitions]
    consumer.assign([TopicPartition(topic, number, end) for number, end in ends])
    return consumer


def follow(consumer: Consumer, registry, topic: str, id: str, seconds: float) -> tuple[str, dict]:
    deserializer = AvroDeserializer(registry, return_record_name=True)
    context = SerializationContext(topic, MessageField.VALUE)
    deadline, job = time.monotonic() + seconds, None
    while time.monotonic() < deadline:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        # Each event of the union comes as (name, fields).
        name, event = deserializer(message.value(), context)["event"]
        kind = name.removeprefix("longshore.")
        if kind == "Processed":
            for refusal in event["refusals"]:
                if refusal["request"] == id:
                    return "refused", {"reason": refusal["reason"]}
        elif kind == "JobQueued" and event["request"] == id:
            job = event["job"]
        elif kind in ENDS and event["job"] == job:
            return kind, event
    sys.exit(f"request {id} did not end within {seconds} s; job: {job}")


def main() -> None:
    parser = longshore.arguments(__doc__.splitlines()[0])
    parser.add_argument("--queue", default="default")
    parser.add_argument("--name", default="web", help="of the artifact")
    parser.add_argument("--repository", required=True, help="a git URL")
    parser.add_argument("--commit", required=True, help="all 40 digits")
    parser.add_argument("--script", required=True, help="what builds it")
    parser.add_argument("--output", default="out", help="what the script leaves")
    parser.add_argument("--id", help="the request's; a new one if none is given")
    parser.add_argument("--user", default="python", help="what groups are named after, where ACLs allow no others")
    parser.add_argument("--seconds", type=float, default=300, help="to wait for the end")
    options = parser.parse_args()
    registry = longshore.registry(options)
    facts = f"{options.prefix}builds"
    consumer = followed(options, facts)
    value = request(options)
    publish(options, registry, f"{options.prefix}build-requests", value)
    outcome, event = follow(consumer, registry, facts, value["id"], options.seconds)
    consumer.close()
    print(json.dumps({"request": value["id"], "outcome": outcome, "event": event}))
    sys.exit(ENDS.get(outcome, 3))


if __name__ == "__main__":
    main()
