// The console: reads the projections, and reads them again when a fact says that they changed.

import "./style.css";
import { Api, type Artifact, type Job, type Node, type Page, type Queue, Refused, type Service, TOPICS } from "./api";
import { byId, short } from "./dom";
import { artifactsView, jobsView, queuesView, servicesView } from "./views";

const TOKEN = "longshore-token";
/** At most this often is a projection read again, however many facts there are. */
const REFRESH_MS = 250;

/** The token of the address bar, which is cleared at once, or of this tab's session. */
function storedToken(): string | null {
  const address = new URL(location.href);
  const given = address.searchParams.get("access_token");
  if (given) {
    sessionStorage.setItem(TOKEN, given);
    address.searchParams.delete("access_token");
    history.replaceState(null, "", address);
  }
  return sessionStorage.getItem(TOKEN);
}

/** Runs at once, then at most every REFRESH_MS while asked; never twice at a time. */
function throttled(run: () => Promise<void>): () => void {
  let wanted = false;
  let busy = false;
  const loop = async () => {
    busy = true;
    while (wanted) {
      wanted = false;
      await run().catch((error) => show("connection", `cannot read: ${error.message}`));
      await new Promise((done) => setTimeout(done, REFRESH_MS));
    }
    busy = false;
  };
  return () => {
    wanted = true;
    if (!busy) void loop();
  };
}

function show(id: string, text: string): void {
  byId(id).textContent = text;
}

class Console {
  private jobs: Job[] = [];
  private services: Service[] = [];
  private nodes: Node[] = [];
  private regions: string[] = [];
  private chosen: string | null = null;
  private logging = new AbortController();
  private readonly open = new Map<string, boolean>();

  constructor(private readonly api: Api) {}

  async start(): Promise<void> {
    this.regions = await this.list<string>("/v1/regions");
    const refresh: Record<string, () => void> = {
      builds: throttled(() => this.readBuilds()),
      artifacts: throttled(() => this.readArtifacts()),
      goals: throttled(() => this.readServices()),
      fleet: throttled(() => this.readServices()),
    };
    for (const topic of TOPICS) {
      const changed = refresh[topic]!;
      changed();
      this.api.facts(topic, changed, (open) => {
        this.open.set(topic, open);
        const all = TOPICS.every((t) => this.open.get(t));
        show("connection", all ? "live" : "reconnecting…");
        byId("connection").dataset.state = all ? "live" : "lost";
        if (open) changed();
      });
    }
    // Running times go on between facts.
    setInterval(() => this.jobs.some((job) => job.status === "running") && this.renderJobs(), 1000);
  }

  private async list<T>(path: string): Promise<T[]> {
    return (await this.api.get<Page<T>>(path)).items;
  }

  private async readBuilds(): Promise<void> {
    const [queues, jobs] = await Promise.all([
      this.list<Queue>("/v1/queues"),
      this.list<Job>("/v1/jobs?limit=20"),
    ]);
    this.jobs = jobs;
    show("queues", queuesView(queues));
    this.renderJobs();
    const running = this.jobs.find((job) => job.status === "running");
    if (running && this.chosen === null) this.chooseJob(running.job);
  }

  private renderJobs(): void {
    byId("jobs").replaceChildren(jobsView(this.jobs, this.chosen, (job) => this.chooseJob(job)));
  }

  private chooseJob(job: string): void {
    this.chosen = job;
    this.logging.abort();
    this.logging = new AbortController();
    const pane = byId("log");
    pane.textContent = "";
    show("log-title", `Log of ${job}`);
    this.renderJobs();
    const append = (text: string) => {
      const following = pane.scrollTop + pane.clientHeight >= pane.scrollHeight - 4;
      pane.append(text);
      if (following) pane.scrollTop = pane.scrollHeight;
    };
    this.api
      .follow(`/v1/jobs/${job}/log?follow=true`, this.logging.signal, append)
      .catch((error) => error.name !== "AbortError" && append(`\n[the log cannot be read: ${error.message}]\n`));
  }

  private async readArtifacts(): Promise<void> {
    const artifacts = await this.list<Artifact>("/v1/artifacts?limit=20");
    byId("artifacts").replaceChildren(artifactsView(artifacts, this.regions, (a) => this.askDeploy(a)));
  }

  private async readServices(): Promise<void> {
    [this.services, this.nodes] = await Promise.all([
      this.list<Service>("/v1/services"),
      this.list<Node>("/v1/nodes?limit=1000"),
    ]);
    const act = (path: string, body: unknown) => () => void this.api.post(path, body).catch(report);
    byId("services").replaceChildren(
      servicesView(this.services, this.nodes, {
        rollback: (s) => confirm(`Roll ${s} back to what ran before, everywhere, now?`) && act(`/v1/services/${s}/rollbacks`, {})(),
        pause: (s) => act(`/v1/services/${s}/pause`, {})(),
        resume: (s) => act(`/v1/services/${s}/resume`, {})(),
        liftHold: (s, artifact) => void this.api.remove(`/v1/services/${s}/holds/${artifact}`).catch(report),
      }),
    );
  }

  private askDeploy(artifact: Artifact): void {
    const dialog = byId<HTMLDialogElement>("deploy");
    const form = dialog.querySelector("form")!;
    show("deploy-what", `${artifact.name} ${short(artifact.artifact)}`);
    show("deploy-error", "");
    const field = (name: string) => form.elements.namedItem(name) as HTMLInputElement;
    field("service").value = artifact.pinned_by[0] ?? this.services[0]?.service ?? artifact.name;
    form.onsubmit = (event) => {
      if ((event.submitter as HTMLButtonElement | null)?.value !== "deploy") return;
      event.preventDefault();
      const spread = new FormData(form).get("spread");
      const groups = spread === "regions" ? this.regions.map((region) => [region]) : [this.regions];
      const plan = {
        waves: groups.map((regions) => ({ regions })),
        failure_budget_bp: Math.round(Number(field("budget").value) * 100),
      };
      const path = `/v1/services/${encodeURIComponent(field("service").value)}/deploys`;
      this.api
        .post(path, { artifact: artifact.artifact, plan })
        .then(() => dialog.close())
        .catch((error) => show("deploy-error", error.message));
    };
    dialog.showModal();
  }
}

function report(error: Error): void {
  alert(error instanceof Refused ? `${error.problem.title}\n\n${error.problem.detail}` : error.message);
}

async function signIn(token: string): Promise<void> {
  const api = new Api(token);
  await api.get("/v1/whoami");
  sessionStorage.setItem(TOKEN, token);
  byId("sign-in").hidden = true;
  byId("page").hidden = false;
  await new Console(api).start();
}

function askToken(error: string): void {
  const form = byId<HTMLFormElement>("sign-in");
  form.hidden = false;
  show("connection", "signed out");
  show("sign-in-error", error);
  form.onsubmit = (event) => {
    event.preventDefault();
    signIn(String(new FormData(form).get("token"))).catch((refused) => show("sign-in-error", refused.message));
  };
}

const token = storedToken();
if (token) signIn(token).catch((error) => askToken(error.message));
else askToken("");
