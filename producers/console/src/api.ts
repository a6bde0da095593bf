// The API's types, as schemas/src/http.rs documents them, and a client of it.

export interface Page<T> {
  items: T[];
  next?: string;
}

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
}

export type JobStatus = "queued" | "running" | "succeeded" | "failed" | "canceled";

export interface Job {
  job: string;
  status: JobStatus;
  build: { name: string; commit: string; repository: string };
  attempt: number;
  worker: string | null;
  queued_at: string;
  started_at: string | null;
  ended_at: string | null;
  ahead: number | null;
  artifact: { artifact: string } | null;
  failure: { reason: string; message: string } | null;
}

export interface Queue {
  queue: string;
  queued: number;
  running: number;
}

export interface Replica {
  region: string;
  status: "Copying" | "Stored" | "Failed" | null;
  packs_done: number;
  packs: number;
  bytes_copied: number;
  bytes_done: number;
  bytes: number;
  bytes_per_second?: number;
  expected_at?: string;
  error: string | null;
  last_error?: string;
  failures: number;
}

export interface Artifact {
  artifact: string;
  name: string;
  size_bytes: number;
  new_pack_bytes: number;
  status: "replicating" | "deployable" | "retired";
  /** A job and its commit; or, of what was built elsewhere, where that was. */
  source: { job?: string; commit?: string; url?: string };
  built_at: string;
  replicas: Replica[];
  pinned_by: string[];
}

export type RolloutStatus = "pending" | "refused" | "rolling" | "paused" | "halted" | "completed" | "superseded";

export interface Revision {
  revision: number;
  artifact: string;
  actor: string;
  status: RolloutStatus;
  wave: number;
  plan: { waves: unknown[] };
  requested_at: string;
  reason: string | null;
  rollback_of: number | null;
}

export interface Service {
  service: string;
  version: { revision: number; step: number };
  revisions: Revision[];
  held: string[];
  regions: { region: string; eligible: number; converged: number; failed: number }[];
}

export interface Node {
  node: string;
  region: string;
  zone: string;
  rack: string;
  lost: boolean;
  services: { service: string; artifact: string | null; status: string; port: number | null; message: string | null }[];
}

/** A refusal, with what the server said. */
export class Refused extends Error {
  constructor(readonly problem: Problem) {
    super(problem.detail || problem.title);
  }
}

export class Api {
  constructor(private readonly token: string) {}

  private async call(path: string, init: RequestInit = {}): Promise<Response> {
    const headers = new Headers(init.headers);
    headers.set("authorization", `Bearer ${this.token}`);
    const response = await fetch(path, { ...init, headers });
    if (!response.ok) {
      const fallback = { type: "about:blank", title: response.statusText, status: response.status, detail: "" };
      throw new Refused(await response.json().catch(() => fallback));
    }
    return response;
  }

  async get<T>(path: string): Promise<T> {
    return (await this.call(path)).json();
  }

  /** A state-changing call; the key makes a repeated click harmless. */
  async post<T>(path: string, body: unknown): Promise<T> {
    const headers = { "content-type": "application/json", "idempotency-key": crypto.randomUUID() };
    return (await this.call(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
  }

  async remove(path: string): Promise<void> {
    await this.call(path, { method: "DELETE", headers: { "idempotency-key": crypto.randomUUID() } });
  }

  /** A text that grows: each piece as it comes, until it ends or the signal aborts. */
  async follow(path: string, signal: AbortSignal, piece: (text: string) => void): Promise<void> {
    const response = await this.call(path, { signal });
    const reader = response.body!.pipeThrough(new TextDecoderStream()).getReader();
    for (let read = await reader.read(); !read.done; read = await reader.read()) piece(read.value);
  }

  /** Facts of a topic as they are written. EventSource resumes by itself from the last id that it saw. */
  facts(topic: string, changed: () => void, state: (open: boolean) => void): EventSource {
    const source = new EventSource(`/v1/facts/${topic}?access_token=${encodeURIComponent(this.token)}`);
    source.onopen = () => state(true);
    source.onerror = () => state(false);
    source.onmessage = changed;
    for (const kind of KINDS[topic] ?? []) source.addEventListener(kind, changed);
    return source;
  }
}

/** The event names that the stream of each topic carries. */
const KINDS: Record<string, string[]> = {
  builds: ["JobQueued", "JobStarted", "JobRequeued", "JobCanceled", "BuildSucceeded", "BuildFailed", "WorkerLost"],
  artifacts: [
    "ReplicationStarted",
    "ReplicaProgressed",
    "ReplicaStored",
    "ReplicaFailed",
    "ReplicationCompleted",
    "ArtifactPinned",
    "ArtifactUnpinned",
    "ArtifactRetired",
    "ReplicaRegionsSet",
    "ArtifactImported",
  ],
  goals: [
    "DeployAccepted",
    "DeployRefused",
    "GoalSet",
    "WaveStarted",
    "ConvergenceRecorded",
    "WavePassed",
    "RolloutPaused",
    "RolloutResumed",
    "RolloutHalted",
    "RolledBack",
    "RolloutCompleted",
    "HoldLifted",
  ],
  fleet: ["NodeJoined", "NodesReported", "NodesLost", "NodesReturned", "CohortSet"],
};

export const TOPICS = Object.keys(KINDS);
