//! A flood: ten times as many requests, claims and readers that stop reading as `longshore up` takes on at once.
//!
//! Usual and flooded times are measured in the same run on the same machine, in windows of which the median counts, so that
//! what else the machine does falls on both. The flood's callers come back about a second after each refusal, each in its own
//! time, though they are told to wait two.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use longshore_e2e::{Client, Process, UpFile, path_text, process, read_token};
use longshore_schemas::http::{JobView, Page, QueueView};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

/// What is let in at once.
const ASKS: usize = 32;
const CLAIMS: usize = 64;
const STREAMS: usize = 16;
const FLOOD: usize = 10;
/// A usual day: as many callers as are let in, and half as many idle workers and readers.
const USUAL_CALLERS: usize = ASKS;
const USUAL_CLAIMS: usize = CLAIMS / 2;
const USUAL_READERS: usize = STREAMS / 2;

const WARM_UP: Duration = Duration::from_secs(4);
/// What is written before anything is measured: a server that has run for a while has its buffers filled, and what a flood
/// adds is to be compared with that.
const LARGE_BYTES: usize = 48 * 1024;
const LARGE_BUILDS: usize = 2_400;
const USUAL: Duration = Duration::from_secs(10);
const FLOODED: Duration = Duration::from_secs(16);
const RECOVERY_MAX: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(2);
/// A caller that was refused is back after half to one and a half of this.
const COME_BACK: Duration = Duration::from_secs(1);
/// A call that takes longer than anything here has failed.
const CALL_MAX: Duration = Duration::from_secs(30);

const SLOWER_MAX: f64 = 3.0;
const MEMORY_MAX: f64 = 1.5;
/// What counts as usual again: windows differ by more than this only when something is wrong.
const USUAL_AGAIN: f64 = 1.5;

/// One connection that speaks just enough HTTP, so that the load costs the machine little.
struct Line {
    address: String,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Line {
    fn new(address: &str) -> Self {
        Self { address: address.to_owned(), stream: None, buffer: Vec::new() }
    }

    async fn call(&mut self, request: &[u8]) -> Result<Answer> {
        let answer = tokio::time::timeout(CALL_MAX, self.exchange(request)).await;
        let answer = answer.context("no answer in time").and_then(|answer| answer);
        if answer.as_ref().map_or(true, |answer| answer.head.contains("connection: close")) {
            self.stream = None;
        }
        answer
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<Answer> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            none => {
                let stream = TcpStream::connect(&self.address).await?;
                stream.set_nodelay(true)?;
                none.insert(stream)
            }
        };
        stream.write_all(request).await?;
        self.buffer.clear();
        let head = loop {
            if let Some(end) = self.buffer.windows(4).position(|end| end == b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(stream.read_buf(&mut self.buffer).await? > 0, "closed before an answer");
        };
        let text = String::from_utf8_lossy(&self.buffer[..head]).to_ascii_lowercase();
        let status = text.split(' ').nth(1).context("a status")?.parse()?;
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(Ok(0), |length| length.trim().parse::<usize>())?;
        while self.buffer.len() < head + length {
            ensure!(stream.read_buf(&mut self.buffer).await? > 0, "closed within an answer");
        }
        Ok(Answer { status, head: text, body: self.buffer[head..head + length].to_vec() })
    }
}

fn request(method: &str, path: &str, token: &str, key: &str, body: &str) -> Vec<u8> {
    let key = if key.is_empty() { String::new() } else { format!("idempotency-key: {key}\r\n") };
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: flood\r\nauthorization: Bearer {token}\r\ncontent-type: application/json\r\n{key}content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// What all callers share.
struct Record {
    begun: Instant,
    address: String,
    builder: String,
    worker: String,
    /// When each admitted request was answered, and how long it took.
    admitted: Mutex<Vec<(Instant, Duration)>>,
    /// Jobs of requests that were acknowledged.
    jobs: Mutex<Vec<String>>,
    /// Answered 202, or not at all: they may or may not have become jobs.
    open: AtomicUsize,
    refused: AtomicUsize,
    /// Refusals that are not as they should be.
    wrong: Mutex<Vec<String>>,
    calls: AtomicU64,
}

impl Record {
    fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether it was let in.
    fn take(&self, answer: Result<Answer>, began: Instant, is_build: bool) -> bool {
        let answer = match answer {
            Ok(answer) => answer,
            Err(_) => {
                self.open.fetch_add(1, Ordering::Relaxed);
                return false;
            }
        };
        match answer.status {
            201 if is_build => {
                Self::lock(&self.admitted).push((Instant::now(), began.elapsed()));
                if let Ok(view) = serde_json::from_slice::<JobView>(&answer.body) {
                    Self::lock(&self.jobs).push(view.job.to_string());
                }
                true
            }
            202 => {
                self.open.fetch_add(1, Ordering::Relaxed);
                true
            }
            200 | 204 => true,
            429 | 503 => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                let whole = answer.head.contains("retry-after: ") && answer.head.contains("application/problem+json");
                if !whole || !String::from_utf8_lossy(&answer.body).contains("api.") {
                    Self::lock(&self.wrong).push(format!("{}{}", answer.head, String::from_utf8_lossy(&answer.body)));
                }
                false
            }
            status => {
                let text = format!("{status}: {}", String::from_utf8_lossy(&answer.body));
                Self::lock(&self.wrong).push(text);
                false
            }
        }
    }

    /// Until the caller comes back. Not all at the same moment: a crowd has no drummer.
    async fn rest(&self) {
        let share = self.calls.fetch_add(1, Ordering::Relaxed) * 7_919 % 1_000;
        tokio::time::sleep(COME_BACK / 2 + COME_BACK * u32::try_from(share).unwrap_or(0) / 1_000).await;
    }

    /// Asks for one build after the other.
    async fn build_on(self: Arc<Self>) {
        let mut line = Line::new(&self.address);
        loop {
            self.build(&mut line, BUILD).await;
        }
    }

    async fn build(&self, line: &mut Line, body: &str) {
        let key = format!("flood-{}", self.calls.fetch_add(1, Ordering::Relaxed));
        let call = request("POST", "/v1/builds", &self.builder, &key, body);
        let began = Instant::now();
        let answer = line.call(&call).await;
        if !self.take(answer, began, true) {
            self.rest().await;
        }
    }

    /// Asks for so many large builds, which fill the buffers of a server that has only just started.
    async fn fill(self: Arc<Self>, count: usize) {
        let mut line = Line::new(&self.address);
        let large = format!("\"labels\":{{\"large\":\"{}\"}},\"command\"", "x".repeat(LARGE_BYTES));
        let body = BUILD.replace("\"command\":[\"make\"]", &format!("{large}:[\"make\"]"));
        for _ in 0..count {
            self.build(&mut line, &body).await;
        }
    }

    /// Waits for a job that does not come, as an idle worker does.
    async fn claim_on(self: Arc<Self>) {
        let mut line = Line::new(&self.address);
        loop {
            let claim = self.calls.fetch_add(1, Ordering::Relaxed);
            let body = format!("{{\"worker\":\"w-{claim}\",\"claim\":\"c-{claim}\",\"wait_seconds\":20}}");
            let call = request("POST", "/v1/queues/idle/claims", &self.worker, "", &body);
            let answer = line.call(&call).await;
            if !self.take(answer, Instant::now(), false) {
                self.rest().await;
            }
        }
    }

    /// Follows the facts as they come, and keeps up.
    async fn read_all(self: Arc<Self>) {
        let call = request("GET", "/v1/facts/builds", &self.builder, "", "");
        let mut buffer = vec![0; 64 * 1024];
        loop {
            if let Ok(mut stream) = self.ask_for_facts(&call, buffer.len()).await {
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
            }
            self.rest().await;
        }
    }

    /// Asks for all facts, and reads none of them once they come.
    async fn read_nothing(self: Arc<Self>) {
        let call = request("GET", "/v1/facts/builds?from=beginning", &self.builder, "", "");
        loop {
            if let Ok(stream) = self.ask_for_facts(&call, 4 * 1024).await {
                // Holds the connection, for as long as the server lets it.
                std::future::pending::<()>().await;
                drop(stream);
            }
            self.rest().await;
        }
    }

    async fn ask_for_facts(&self, call: &[u8], buffer_bytes: usize) -> Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(u32::try_from(buffer_bytes)?)?;
        let mut stream = socket.connect(self.address.parse()?).await?;
        stream.write_all(call).await?;
        let mut head = [0; 512];
        let read = stream.read(&mut head).await?;
        let head = String::from_utf8_lossy(&head[..read]).to_ascii_lowercase();
        if head.starts_with("http/1.1 200") {
            return Ok(stream);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        if !(head.starts_with("http/1.1 503") && head.contains("retry-after: ")) {
            Self::lock(&self.wrong).push(head.clone());
        }
        bail!("refused")
    }

    /// The 99th percentile of each window of this time.
    fn windows(&self, from: Instant, to: Instant) -> Vec<Duration> {
        let admitted = Self::lock(&self.admitted);
        let mut windows = Vec::new();
        let mut begin = from;
        while begin + WINDOW <= to {
            let within = |at: &Instant| (begin..begin + WINDOW).contains(at);
            let took = admitted.iter().filter(|(at, _)| within(at)).map(|(_, took)| *took).collect();
            windows.extend(percentile(took, 99));
            begin += WINDOW;
        }
        windows
    }

    fn admitted_since(&self, from: Instant) -> usize {
        Self::lock(&self.admitted).iter().filter(|(at, _)| *at >= from).count()
    }
}

const BUILD: &str = r#"{"queue":"flood","build":{"name":"web","repository":"https://example.com/web.git","commit":"0123456789012345678901234567890123456789","command":["make"],"output":"out","run":{"command":["./web"]}}}"#;

fn percentile(mut times: Vec<Duration>, percent: usize) -> Option<Duration> {
    times.sort_unstable();
    // The least that is not below `percent` of them.
    times.get((times.len() * percent).div_ceil(100).checked_sub(1)?).copied()
}

fn median(times: Vec<Duration>) -> Result<Duration> {
    percentile(times, 50).context("nothing was admitted")
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

/// Waits, and answers the most memory that the process had meanwhile.
async fn watch_memory(up: &mut Process, time: Duration) -> Result<u64> {
    let (until, mut peak) = (Instant::now() + time, 0);
    while Instant::now() < until {
        up.check_running()?;
        peak = peak.max(resident_bytes(up.pid())?);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(peak)
}

async fn start(folder: &Path) -> Result<(Process, UpFile)> {
    let data = folder.join("up");
    // The queue itself must not get full: nobody builds here, and a fast machine lets in a hundred thousand jobs.
    let limits = [("api.asks", ASKS), ("api.claims", CLAIMS), ("api.streams", STREAMS), ("queue.jobs", 10_000_000)];
    let limits = limits.map(|(name, value)| format!("--limit={name}={value}"));
    let first = process::free_ports(3)?;
    let [api, s3, region] = [first, first + 1, first + 2].map(|port| format!("127.0.0.1:{port}"));
    let mut arguments = vec!["up", "--data", path_text(&data)?, "--regions", "eu", "--listen", &api];
    arguments.extend(["--s3-listen", &s3, "--region-listen", &region]);
    arguments.extend(limits.iter().map(String::as_str));
    let mut up = Process::start("longshore", &arguments, &folder.join("up.log"))?;
    let file = process::wait_for("`longshore up` to be ready", Duration::from_secs(60), async || {
        up.check_running()?;
        let file = std::fs::read(data.join("up.json")).ok();
        Ok(file.and_then(|text| serde_json::from_slice::<UpFile>(&text).ok()))
    })
    .await?;
    Ok((up, file))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_is_turned_away_and_costs_those_inside_little() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut up, file) = start(folder.path()).await?;
    let client = Client::new(&file.api, &read_token(&file.tokens.admin)?)?;
    let record = Arc::new(Record {
        begun: Instant::now(),
        address: file.api.trim_start_matches("http://").to_owned(),
        builder: client.token.clone(),
        worker: read_token(&file.tokens.worker)?,
        admitted: Mutex::default(),
        jobs: Mutex::default(),
        open: AtomicUsize::new(0),
        refused: AtomicUsize::new(0),
        wrong: Mutex::default(),
        calls: AtomicU64::new(0),
    });

    let mut filling = JoinSet::new();
    for _ in 0..USUAL_CALLERS {
        filling.spawn(record.clone().fill(LARGE_BUILDS / USUAL_CALLERS));
    }
    while let Some(filled) = filling.join_next().await {
        filled?;
    }
    let filled = record.begun.elapsed();
    let mut usual_load = JoinSet::new();
    for _ in 0..USUAL_CALLERS {
        usual_load.spawn(record.clone().build_on());
    }
    for _ in 0..USUAL_CLAIMS {
        usual_load.spawn(record.clone().claim_on());
    }
    for _ in 0..USUAL_READERS {
        usual_load.spawn(record.clone().read_all());
    }
    watch_memory(&mut up, WARM_UP).await?;
    let from = Instant::now();
    let usual_memory = watch_memory(&mut up, USUAL).await?;
    let usual = median(record.windows(from, Instant::now()))?;
    let usual_rate = record.admitted_since(from) as f64 / USUAL.as_secs_f64();
    ensure!(record.refused.load(Ordering::Relaxed) == 0, "a usual day has no refusals");

    // The usual callers stay: with them it is ten times what is let in.
    let mut flood = JoinSet::new();
    for _ in 0..FLOOD * ASKS - USUAL_CALLERS {
        flood.spawn(record.clone().build_on());
    }
    for _ in 0..FLOOD * CLAIMS - USUAL_CLAIMS {
        flood.spawn(record.clone().claim_on());
    }
    for _ in 0..FLOOD * STREAMS - USUAL_READERS {
        flood.spawn(record.clone().read_nothing());
    }
    // The first window has the flood's own connecting in it, which costs this process as much as the server.
    watch_memory(&mut up, WINDOW).await?;
    let from = Instant::now();
    let flooded_memory = watch_memory(&mut up, FLOODED).await?;
    let flooded = median(record.windows(from, Instant::now()))?;
    let flooded_rate = record.admitted_since(from) as f64 / FLOODED.as_secs_f64();
    let refused = record.refused.load(Ordering::Relaxed);

    let ended = Instant::now();
    flood.shutdown().await;
    let recovered = loop {
        let from = Instant::now();
        watch_memory(&mut up, WINDOW).await?;
        // None: nobody was let in, which is not recovered.
        let now = median(record.windows(from, from + WINDOW)).ok();
        if now.is_some_and(|now| now.as_secs_f64() <= usual.as_secs_f64() * USUAL_AGAIN) {
            break ended.elapsed();
        }
        ensure!(
            ended.elapsed() < RECOVERY_MAX,
            "not recovered after {RECOVERY_MAX:?}: p99 {now:?}, usually {usual:?}; {} jobs, {} calls without a word, wrong answers: {:?}",
            Record::lock(&record.jobs).len(),
            record.open.load(Ordering::Relaxed),
            Record::lock(&record.wrong).last(),
        );
    };
    usual_load.shutdown().await;

    let mib = |bytes: u64| bytes as f64 / (1024.0 * 1024.0);
    let (slower, larger) = (flooded.as_secs_f64() / usual.as_secs_f64(), flooded_memory as f64 / usual_memory as f64);
    println!(
        "filled in {filled:.1?}; usual: p99 {usual:.1?}, {usual_rate:.0} requests/s, {:.0} MiB; flooded: p99 {flooded:.1?} ({slower:.2} ×), \
         {flooded_rate:.0} requests/s admitted, {:.0} MiB ({larger:.2} ×), {refused} refused; recovered after {recovered:.1?}; \
         {:.0?} in all",
        mib(usual_memory),
        mib(flooded_memory),
        record.begun.elapsed(),
    );

    {
        let wrong = Record::lock(&record.wrong);
        ensure!(wrong.is_empty(), "{} answers are not as they should be, such as {:?}", wrong.len(), wrong.first());
    }
    ensure!(refused > FLOOD * (ASKS + CLAIMS + STREAMS) / 2, "only {refused} refusals: this was no flood");
    ensure!(slower <= SLOWER_MAX, "admitted requests took {slower:.2} × as long as usual");
    ensure!(larger <= MEMORY_MAX, "memory grew to {larger:.2} × of the usual");
    all_there(&client, &record).await?;
    let metrics = client.text("/metrics").await?;
    for name in ["api.asks", "api.claims", "api.streams"] {
        let line = format!("longshore_limit_refused_total{{name=\"{name}\"}} ");
        let value = metrics.lines().find_map(|text| text.strip_prefix(&line)).with_context(|| line.clone())?;
        ensure!(value.parse::<u64>()? > 0, "{line}{value}");
    }
    up.terminate()?;
    up.wait_ended(Duration::from_secs(30))
}

/// Every acknowledged request is a job, each another one, and there are no more than could be.
async fn all_there(client: &Client, record: &Record) -> Result<()> {
    let mut jobs = Record::lock(&record.jobs).clone();
    let acknowledged = jobs.len();
    jobs.sort_unstable();
    jobs.dedup();
    ensure!(jobs.len() == acknowledged, "{} requests were given a job of another", acknowledged - jobs.len());
    ensure!(acknowledged == record.admitted_since(record.begun), "an acknowledgement names its job");
    let queues = client.get::<Page<QueueView>>("/v1/queues").await?.items;
    let queued = queues.iter().find(|view| view.queue.as_str() == "flood").context("the queue")?.queued as usize;
    // What was under way at the end was asked for and not heard of.
    let open = record.open.load(Ordering::Relaxed) + FLOOD * ASKS;
    ensure!((acknowledged..=acknowledged + open).contains(&queued), "{queued} jobs of {acknowledged} acknowledged");
    for job in jobs.iter().step_by((acknowledged / 50).max(1)) {
        let view: JobView = client.get(&format!("/v1/jobs/{job}")).await?;
        ensure!(view.job.to_string() == *job, "{job} is there");
    }
    Ok(())
}
