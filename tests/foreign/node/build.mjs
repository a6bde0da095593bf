// Asks Longshore for a build by publishing it on Kafka, and follows the facts until the job has ended.
//
//   node build.mjs --brokers HOST:PORT --registry http://CONTROL/registry --repository URL --commit SHA --script TEXT
//
// Prints one JSON object, and exits with 0 if the build succeeded, 1 if it failed or was canceled, 3 if the request was refused.

import { randomUUID } from "node:crypto";
import { parseArgs } from "node:util";

import { SchemaRegistry } from "@kafkajs/confluent-schema-registry";
import kafkajs from "kafkajs";

const { Kafka, Partitioners, logLevel } = kafkajs;

const ENDS = { BuildSucceeded: 0, BuildFailed: 1, JobCanceled: 1 };

const text = (standard) => ({ type: "string", default: standard });
const { values: options } = parseArgs({
  options: {
    brokers: text(),
    registry: text(),
    prefix: text("longshore."),
    queue: text("default"),
    name: text("web"),
    repository: text(),
    commit: text(),
    script: text(),
    output: text("out"),
    id: text(randomUUID().replaceAll("-", "")),
    user: text("node"),
    seconds: text("300"),
  },
});
for (const needed of ["brokers", "registry", "repository", "commit", "script"]) {
  if (!options[needed]) throw new Error(`--${needed} is missing`);
}

const request = {
  // The same id again is the same job: keep it for a repetition of this request.
  id: options.id,
  at: Date.now(),
  actor: "node",
  trace: null,
  report: null,
  event: {
    "longshore.BuildRequested": {
      queue: options.queue,
      build: {
        name: options.name,
        repository: options.repository,
        commit: options.commit,
        command: ["sh", "-ec", options.script],
        output: options.output,
        environment: {},
        time_limit_seconds: 300,
        labels: { "asked-by": "node" },
        run: {
          command: ["./server"],
          environment: {},
          health: { http_path: "/", successes: 2, interval_ms: 500, deadline_seconds: 60 },
          stop_signal: "SIGTERM",
          stop_seconds: 10,
        },
      },
    },
  },
};

const kafka = new Kafka({ clientId: "build.mjs", brokers: options.brokers.split(","), logLevel: logLevel.ERROR });
const registry = new SchemaRegistry({ host: options.registry });
const requests = `${options.prefix}build-requests`;
const facts = `${options.prefix}builds`;

// Where the facts end now: what becomes of the request is written after it.
const admin = kafka.admin();
await admin.connect();
const ends = await admin.fetchTopicOffsets(facts);
await admin.disconnect();

// The default partitioner is Java's murmur2, as Longshore's topics need it; kafkajs 1 called it DefaultPartitioner as well,
// and had another hash.
const producer = kafka.producer({ idempotent: true, createPartitioner: Partitioners.DefaultPartitioner });
await producer.connect();
const schema = await registry.getLatestSchemaId(`${requests}-value`);
await producer.send({
  topic: requests,
  acks: -1,
  messages: [{ key: options.queue, value: await registry.encode(schema, request) }],
});
await producer.disconnect();

const consumer = kafka.consumer({ groupId: `${options.user}.${options.id}`, readUncommitted: false });
await consumer.connect();
await consumer.subscribe({ topics: [facts], fromBeginning: true });
let job;
const ended = new Promise((resolve, reject) => {
  const late = () => reject(new Error(`request ${options.id} did not end in ${options.seconds} s; job: ${job}`));
  setTimeout(late, Number(options.seconds) * 1000).unref();
  const eachMessage = async ({ message }) => {
    // Each event of the union comes as { name: fields }.
    const [[name, event]] = Object.entries((await registry.decode(message.value)).event);
    const kind = name.replace("longshore.", "");
    if (kind === "Processed") {
      const refusal = event.refusals.find(({ request }) => request === options.id);
      if (refusal) resolve({ outcome: "refused", event: { reason: refusal.reason } });
    } else if (kind === "JobQueued" && event.request === options.id) {
      job = event.job;
    } else if (kind in ENDS && event.job === job) {
      resolve({ outcome: kind, event });
    }
  };
  consumer.run({ autoCommit: false, eachMessage }).catch(reject);
});
for (const { partition, offset } of ends) consumer.seek({ topic: facts, partition, offset });
const { outcome, event } = await ended;
await consumer.disconnect();
console.log(JSON.stringify({ request: options.id, outcome, event }));
process.exitCode = ENDS[outcome] ?? 3;
