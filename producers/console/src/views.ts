// What the page shows, as functions of what the API said. No state, no requests.

import type { Artifact, Job, Node, Queue, Replica, Revision, Service } from "./api";
import { cells, duration, el, mebibytes, short, table } from "./dom";

function badge(text: string): HTMLElement {
  return el("span", { class: `badge ${text.toLowerCase()}` }, text.replace(/([a-z])([A-Z])/g, "$1 $2").toLowerCase());
}

export function queuesView(queues: Queue[]): string {
  if (queues.length === 0) return "No builds yet. Request one with: longshore build …";
  return queues.map((q) => `${q.queue}: ${q.running} running, ${q.queued} waiting`).join(" · ");
}

export function jobsView(jobs: Job[], chosen: string | null, choose: (job: string) => void): HTMLElement {
  const row = (job: Job) => {
    const result = job.artifact ? el("code", {}, short(job.artifact.artifact)) : (job.failure?.message ?? waiting(job));
    const time = job.started_at ? duration(job.started_at, job.ended_at) : duration(job.queued_at, job.ended_at);
    const button = el("button", { class: "link", click: () => choose(job.job) }, job.job);
    const row = el("tr", { "aria-selected": chosen === job.job ? "true" : "false", "data-job": job.job });
    row.append(...cells(button, badge(job.status), job.build.name, el("code", {}, short(job.build.commit)), time, result));
    return row;
  };
  return table("Builds, newest first", ["job", "status", "name", "commit", "time", "result"], jobs.map(row));
}

function waiting(job: Job): string {
  if (job.status === "queued") return job.ahead ? `${job.ahead} ahead` : "next";
  if (job.status === "running") return `attempt ${job.attempt} on ${job.worker ?? "?"}`;
  return "";
}

export function artifactsView(artifacts: Artifact[], regions: string[], deploy: (artifact: Artifact) => void): HTMLElement {
  if (artifacts.length === 0) return el("p", { class: "note" }, "None yet.");
  const row = (artifact: Artifact) => {
    const ready = artifact.status === "deployable";
    const title = ready ? "Deploy this artifact to a service" : "It can be deployed once every region has it";
    const button = el("button", { title, disabled: !ready, click: () => deploy(artifact) }, "Deploy…");
    const name = [el("strong", {}, artifact.name), " ", el("code", {}, short(artifact.artifact))];
    const replicas = regions.map((region) => replica(artifact.replicas.find((r) => r.region === region)));
    const size = `${mebibytes(artifact.size_bytes)}, ${mebibytes(artifact.new_pack_bytes)} new`;
    const row = el("tr", { "data-artifact": artifact.artifact });
    const from = artifact.source.job ?? artifact.source.url ?? "";
    row.append(...cells(name, from, size, ...replicas, artifact.pinned_by.join(", "), button));
    return row;
  };
  const headers = ["artifact", "built by", "size", ...regions, "kept by", ""];
  return table("Artifacts by region", headers, artifacts.map(row));
}

function replica(replica: Replica | undefined): HTMLElement | string {
  if (!replica) return "–";
  if (replica.status === "Stored") return badge("stored");
  const packs = `${replica.packs_done} of ${replica.packs} packs`;
  const bytes = `${mebibytes(replica.bytes_done)} of ${mebibytes(replica.bytes)}`;
  const failed = replica.failures > 0 && `failed ${replica.failures}×, last: ${replica.last_error ?? replica.error ?? ""}`;
  const title = [packs, bytes, failed].filter(Boolean).join("\n");
  if (replica.status === "Failed") return el("span", { title }, badge("failed"), el("small", {}, ` ${packs}`));
  const max = String(Math.max(1, replica.packs));
  const rate = replica.bytes_per_second ? `${mebibytes(replica.bytes_per_second)}/s` : "";
  const left = replica.expected_at ? `, ${duration(new Date().toISOString(), replica.expected_at)} left` : "";
  return el(
    "span",
    { title },
    el("progress", { max, value: String(replica.packs_done) }, packs),
    el("small", {}, replica.status ? `${packs} ${rate}${left}` : "waiting"),
  );
}

export interface ServiceActions {
  rollback(service: string): void;
  pause(service: string): void;
  resume(service: string): void;
  liftHold(service: string, artifact: string): void;
}

export function servicesView(services: Service[], nodes: Node[], actions: ServiceActions): HTMLElement {
  if (services.length === 0) return el("p", { class: "note" }, "None yet: deploy an artifact.");
  return el("div", { class: "services" }, ...services.map((service) => serviceView(service, nodes, actions)));
}

function serviceView(service: Service, nodes: Node[], actions: ServiceActions): HTMLElement {
  const newest = service.revisions[0];
  const name = service.service;
  const regions = service.regions.map((region) => {
    const here = nodes.filter((node) => node.region === region.region);
    const label = `${region.converged} of ${region.eligible}${region.failed ? `, ${region.failed} failed` : ""}`;
    return el(
      "tr",
      { "data-region": region.region },
      el("th", { scope: "row" }, region.region),
      el("td", {}, el("progress", { max: String(Math.max(1, region.eligible)), value: String(region.converged) }, label)),
      el("td", { class: region.failed ? "error" : "" }, label),
      el("td", { class: "nodes" }, ...here.map((node) => dot(node, service))),
    );
  });
  const held = service.held.map((artifact) =>
    el("button", { click: () => actions.liftHold(name, artifact) }, `Lift the hold of ${short(artifact)}`),
  );
  const status = newest?.status;
  return el(
    "article",
    { "data-service": name, "data-status": status ?? "", "data-revision": String(newest?.revision ?? 0) },
    el("h3", {}, name, " ", status ? badge(status) : null),
    newest ? el("p", { class: "note" }, describe(newest)) : null,
    newest?.reason ? el("p", { class: "error" }, newest.reason) : null,
    el("table", { "aria-label": `${name} by region` }, el("tbody", {}, ...regions)),
    el(
      "menu",
      {},
      status === "rolling" && el("button", { click: () => actions.pause(name) }, "Pause"),
      (status === "paused" || status === "halted") && el("button", { click: () => actions.resume(name) }, "Resume"),
      service.version.revision > 1 && el("button", { click: () => actions.rollback(name) }, "Roll back"),
      ...held,
    ),
  );
}

function describe(revision: Revision): string {
  const what = revision.revision ? `revision ${revision.revision}` : "waiting for its artifact";
  const waves = revision.plan.waves.length;
  const wave = waves > 1 ? `, wave ${revision.wave + 1} of ${waves}` : "";
  const back = revision.rollback_of ? `, back from revision ${revision.rollback_of}` : "";
  return `${what}${wave}${back}: artifact ${short(revision.artifact)}, by ${revision.actor}, ${duration(revision.requested_at, null)} ago`;
}

/** One node, coloured by where it stands. */
function dot(node: Node, service: Service): HTMLElement {
  const running = node.services.find((s) => s.service === service.service);
  const wanted = service.revisions.find((r) => r.revision === service.version.revision)?.artifact;
  const other = running?.status === "Healthy" && running.artifact !== wanted;
  const status = node.lost ? "lost" : other ? "other" : (running?.status ?? "none").toLowerCase();
  const title = [node.node, node.rack, status, running?.artifact && short(running.artifact), running?.message];
  return el("span", { class: `dot ${status}`, title: title.filter(Boolean).join(" · "), "data-node": node.node });
}
