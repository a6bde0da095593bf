"""What both programs here need: arguments, and the schema registry that every Longshore control node serves."""

import argparse

from confluent_kafka.schema_registry import SchemaRegistryClient


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--brokers", required=True, help="host:port of some brokers, with commas between")
    parser.add_argument("--registry", required=True, help="http://CONTROL/registry, or a registry of your own")
    parser.add_argument("--prefix", default="longshore.", help="what the installation's topics begin with")
    parser.add_argument("--property", action="append", default=[], metavar="KEY=VALUE",
                        help="a setting of librdkafka, such as sasl.username=ci")
    return parser


def client(options: argparse.Namespace) -> dict:
    """Settings that producers and consumers share."""
    return {"bootstrap.servers": options.brokers} | dict(text.split("=", 1) for text in options.property)


def producer(options: argparse.Namespace) -> dict:
    return client(options) | {
        # A record on another partition than its key's is not processed: librdkafka's own default is another hash.
        "partitioner": "murmur2_random",
        "enable.idempotence": True,
    }


def registry(options: argparse.Namespace) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": options.registry})
