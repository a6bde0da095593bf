//! What a person on duty relies on: logs that name the request, metrics of each role, `longshore doctor`, and processes that
//! end in order when they are told to.

use std::{
    fs::File,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Client, UpFile, path_text,
    process::{binary_path, free_ports, wait_for},
    read_token,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(60);
/// The API gives running calls 10 s; the rest takes much less.
const STOP_MAX: Duration = Duration::from_secs(25);
/// What ends at once ends within this, on a busy machine too.
const AT_ONCE: Duration = Duration::from_secs(5);
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A process whose exit status counts; killed if the test fails before that.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(binary: &str, arguments: &[&str], log: PathBuf) -> Result<Self> {
        let output = File::create(&log)?;
        let mut command = Command::new(binary_path(binary)?);
        command.args(arguments).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        Ok(Self { child: command.spawn()?, log })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a pid")?;
        Ok(kill_process(pid, signal)?)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    async fn ended(&mut self, bound: Duration) -> Result<ExitStatus> {
        let ended = wait_for("the process to end", bound, async || Ok(self.child.try_wait()?)).await;
        ended.with_context(|| self.text())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is no error here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Up {
    process: Running,
    file: UpFile,
    client: Client,
    data: PathBuf,
}

async fn start_up(folder: &Path) -> Result<Up> {
    let data = folder.join("up");
    let listen = "127.0.0.1:0";
    let arguments = ["up", "--data", path_text(&data)?, "--regions", "eu", "--listen", listen, "--log-format", "json"];
    let mut process = Running::start("longshore", &arguments, folder.join("up.log"))?;
    let file = wait_for("`longshore up` to be ready", BOUND, async || {
        ensure!(process.child.try_wait()?.is_none(), "it ended: {}", process.text());
        let text = std::fs::read(data.join("up.json")).ok();
        Ok(text.and_then(|text| serde_json::from_slice::<UpFile>(&text).ok()))
    })
    .await?;
    let client = Client::new(&file.api, &read_token(&file.tokens.admin)?)?;
    Ok(Up { process, file, client, data })
}

impl Up {
    /// A call that the test reads itself.
    fn open(&self, token: &str, line: &str, headers: &str, body: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(self.file.api.trim_start_matches("http://"))?;
        stream.set_read_timeout(Some(BOUND))?;
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n{headers}content-length: {length}\r\n\r\n{body}"
        )?;
        Ok(stream)
    }

    fn worker(&self, folder: &Path, more: &[&str]) -> Result<Running> {
        let work = folder.join("work");
        let token = path_text(&self.file.tokens.worker)?;
        let mut arguments = vec!["worker", "--api", &self.file.api, "--token-file", token, "--name", "w-1"];
        arguments.extend(["--work-dir", path_text(&work)?, "--log-format", "json"]);
        arguments.extend(more);
        Running::start("longshore", &arguments, folder.join("worker.log"))
    }

    fn node(&self, folder: &Path, more: &[&str]) -> Result<Running> {
        let data = folder.join("node");
        let mut arguments = vec!["run", "--node", "n-1", "--data", path_text(&data)?, "--host", "127.0.0.1"];
        arguments.extend(["--token-file", path_text(&self.file.tokens.node)?, "--swarm-listen", "127.0.0.1:0"]);
        let (goals, provenance) = (path_text(&self.file.keys.goals)?, path_text(&self.file.keys.provenance)?);
        arguments.extend(["--goal-keys", goals, "--provenance-keys", provenance]);
        let region = &self.file.regions[0];
        arguments.extend(["--region-authority", path_text(&region.authority)?]);
        arguments.extend(["--region-address", &region.address, "--log-format", "json"]);
        arguments.extend(more);
        Running::start("longshore-node", &arguments, folder.join("node.log"))
    }
}

/// Reads until the text is there; the connection's end is an error.
fn read_until(stream: &mut TcpStream, holds: &str) -> Result<String> {
    let mut text = Vec::new();
    let mut block = [0; 4096];
    while !String::from_utf8_lossy(&text).contains(holds) {
        let read = stream.read(&mut block)?;
        ensure!(read > 0, "{holds:?} did not come: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&block[..read]);
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn read_whole(stream: &mut TcpStream) -> Result<String> {
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn build(queue: &str) -> String {
    serde_json::json!({"queue": queue, "build": {
        "name": "web", "repository": "https://example.com/web.git",
        "commit": "0123456789012345678901234567890123456789", "command": ["make"], "output": "out",
        "run": {"command": ["./web"]},
    }})
    .to_string()
}

fn doctor(up: &Up, format: &str) -> Result<(i32, String)> {
    let arguments = ["doctor", "--data", path_text(&up.data)?, "--output", format];
    let output = Command::new(binary_path("longshore")?).args(arguments).env_remove("LONGSHORE_API").output()?;
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_found_in_the_log_and_in_its_facts() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let up = start_up(folder.path()).await?;
    let headers = format!("idempotency-key: on-duty-1\r\ntraceparent: {TRACE}\r\nconnection: close\r\n");
    let answer = read_whole(&mut up.open(&up.client.token, "POST /v1/builds", &headers, &build("default"))?)?;
    ensure!(answer.contains("idempotency-key: on-duty-1"), "the answer names the request: {answer}");

    let lines = up.process.text();
    let line = lines.lines().find(|line| line.contains("on-duty-1")).with_context(|| format!("a line in {lines}"))?;
    let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
    ensure!(line["request"] == "on-duty-1" && line["trace"] == TRACE && line["actor"] == "admin", "{line}");
    ensure!(line["partition"].is_string() && line["offset"].is_u64(), "{line}");

    let mut facts = up.open(&up.client.token, "GET /v1/facts/builds?from=beginning", "", "")?;
    let text = read_until(&mut facts, "}\n\n")?;
    let fact = text.lines().find_map(|line| line.strip_prefix("data: ")).context("a fact")?;
    let fact: Value = serde_json::from_str(fact)?;
    ensure!(fact["trace"] == TRACE && fact.to_string().contains("on-duty-1"), "{fact}");
    ensure!(fact["cause"]["trigger"].to_string().contains("on-duty-1"), "the cause names the request: {fact}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_has_metrics_and_the_doctor_finds_it_well() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut up = start_up(folder.path()).await?;
    let first = free_ports(2)?;
    let [of_worker, of_node] = [first, first + 1].map(|port| format!("127.0.0.1:{port}"));
    let _worker = up.worker(folder.path(), &["--metrics-listen", &of_worker])?;
    let _node = up.node(folder.path(), &["--metrics-listen", &of_node])?;
    wait_for("the node to join", BOUND, async || Ok((up.client.nodes().await?.len() == 1).then_some(()))).await?;
    up.client.post::<Value>("/v1/builds", &serde_json::from_str::<Value>(&build("unserved"))?).await?;

    let text = up.client.text("/metrics").await?;
    for name in [
        "longshore_api_calls_total{method=\"POST\",route=\"/v1/builds\",status=\"201\"} 1",
        "longshore_api_seconds_bucket{",
        "longshore_facts_total{topic=\"builds\",kind=\"JobQueued\"} 1",
        "longshore_log_commit_seconds_bucket{",
        "longshore_log_appended_records_total{topic=\"build-requests\"} 1",
        "longshore_partition_lag_records{processor=\"queue\",partition=\"0\"} 0",
        "longshore_partition_role{processor=\"fleet\",partition=\"15\",role=\"leading\"} 1",
        "longshore_jobs_queued{queue=\"unserved\"} 1",
        "longshore_dead_letters{} 0",
        "longshore_limit{name=\"queue.jobs\",of=\"\"} 100000",
        "longshore_limit_used{name=\"region.connections\",of=\"eu\"} 1",
        "longshore_limit_refused_total{name=\"api.asks\"} 0",
        "longshore_region_reports_total{topic=\"fleet-reports\"}",
        "process_resident_memory_bytes",
    ] {
        ensure!(text.contains(name), "{name} is in\n{text}");
    }
    ensure!(!text.contains("n-1") && !text.contains("unserved-1"), "no node and no job is a label");
    for (address, name) in
        [(&of_worker, "longshore_limit{name=\"worker.log_bytes\""), (&of_node, "longshore_limit{name=\"node.ports\"")]
    {
        let text = reqwest::get(format!("http://{address}/metrics")).await?.text().await?;
        ensure!(text.contains(name), "{name} is in\n{text}");
    }

    let (code, text) = doctor(&up, "json")?;
    let found: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    ensure!(code == 0 && found["state"] != "fail", "{code}: {text}");
    let checks: Vec<_> = found["checks"].as_array().context("checks")?.iter().map(|check| &check["check"]).collect();
    for name in [
        "server",
        "clock",
        "token",
        "limits",
        "processor queue",
        "dead letters",
        "disk",
        "bucket eu",
        "region eu",
        "nodes",
    ] {
        ensure!(checks.iter().any(|check| *check == name), "{name} is among {checks:?}");
    }
    let (_, text) = doctor(&up, "table")?;
    ensure!(text.lines().count() == checks.len() && text.contains("ok    token"), "{text}");

    // A crash leaves up.json: the doctor says that it is of a process that is gone.
    up.process.signal(Signal::KILL)?;
    up.process.ended(AT_ONCE).await?;
    let (code, text) = doctor(&up, "table")?;
    let line = text.lines().find(|line| line.starts_with("FAIL  server")).with_context(|| text.clone())?;
    ensure!(code == 1 && line.contains("that is gone"), "{code}: {text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_ends_in_order_when_it_is_told_to() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut up = start_up(folder.path()).await?;
    let mut worker = up.worker(folder.path(), &[])?;
    let mut node = up.node(folder.path(), &[])?;
    wait_for("the node to join", BOUND, async || Ok((up.client.nodes().await?.len() == 1).then_some(()))).await?;
    let worker_token = read_token(&up.file.tokens.worker)?;
    let mut facts = up.open(&up.client.token, "GET /v1/facts/builds", "", "")?;
    read_until(&mut facts, "id: ")?;
    let body = "{\"worker\":\"w-2\",\"claim\":\"c-2\",\"wait_seconds\":60}";
    let mut claim = up.open(&worker_token, "POST /v1/queues/other/claims", "", body)?;
    wait_for("the claim to be open", BOUND, async || {
        let metrics = up.client.text("/metrics").await?;
        let used = metrics.lines().find_map(|l| l.strip_prefix("longshore_limit_used{name=\"api.claims\",of=\"\"} "));
        Ok(used.and_then(|used| used.parse::<u32>().ok()).filter(|used| *used >= 1))
    })
    .await?;

    for (name, process) in [("the worker", &mut worker), ("the node", &mut node)] {
        process.signal(Signal::TERM)?;
        let status = process.ended(STOP_MAX).await?;
        ensure!(status.success(), "{name} ended with {status}: {}", process.text());
    }
    let begun = Instant::now();
    up.process.signal(Signal::TERM)?;
    let rest = read_whole(&mut facts)?;
    ensure!(rest.contains("the server stops") && rest.trim_end().ends_with('0'), "the stream has an end: {rest:?}");
    let answer = read_until(&mut claim, "\r\n\r\n")?;
    ensure!(answer.starts_with("HTTP/1.1 204"), "the long poll has an answer: {answer:?}");
    let status = up.process.ended(STOP_MAX).await?;
    ensure!(status.success(), "{status}: {}", up.process.text());
    println!("`longshore up` ended {:.1?} after SIGTERM, with a stream and a claim open", begun.elapsed());
    let text = up.process.text();
    let at = |what: &str| text.find(what).with_context(|| format!("{what:?} is in\n{text}"));
    let order = ["shutting down", "the API has stopped", "the roles have stopped", "the log is closed"];
    let places = order.iter().map(|what| at(what)).collect::<Result<Vec<_>>>()?;
    ensure!(places.is_sorted(), "{order:?} in this order:\n{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_insists_does_not_wait() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut up = start_up(folder.path()).await?;
    // A call whose body does not come is a call under way, for which the first SIGTERM waits.
    let mut slow = TcpStream::connect(up.file.api.trim_start_matches("http://"))?;
    let token = &up.client.token;
    write!(
        slow,
        "POST /v1/builds HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: 100\r\n\r\n"
    )?;
    wait_for("the call to be under way", BOUND, async || {
        let metrics = up.client.text("/metrics").await?;
        Ok(metrics.contains("longshore_limit_used{name=\"api.asks\",of=\"\"} 1").then_some(()))
    })
    .await?;
    up.process.signal(Signal::TERM)?;
    wait_for("the first to be heard", BOUND, async || Ok(up.process.text().contains("shutting down").then_some(())))
        .await?;
    ensure!(up.process.child.try_wait()?.is_none(), "it waits for the call");
    up.process.signal(Signal::TERM)?;
    let status = up.process.ended(AT_ONCE).await?;
    ensure!(status.code() == Some(130), "{status}");
    Ok(())
}
