//! Wrong bytes in real buckets, and a peer that lies among real nodes: they cost time, and nothing else.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Cluster, greeter::Repository, process::wait_for, read_token};
use longshore_identity::{Credentials, Key, PeerStream, Tls};
use longshore_schemas::{
    ArtifactId, NodeId, PackId,
    events::{NodeStatus, ReplicaStatus, RolloutPlan, Wave},
    http::{ArtifactStatus, BuildBody, DeployBody, JobStatus, RolloutStatus, ServiceView},
    stream::{FromNode, FromRegion, Hello, NodeReport},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const BOUND: Duration = Duration::from_secs(120);

/// The packs of one bucket of the embedded S3 server, as the files that they are.
struct Files(PathBuf);

impl Files {
    fn of(cluster: &Cluster, bucket: &str) -> Self {
        Self(cluster.folder.join("up/s3/buckets").join(bucket))
    }

    fn packs(&self, folder: &str) -> Result<BTreeSet<PackId>> {
        let Ok(entries) = fs::read_dir(self.0.join(folder)) else { return Ok(BTreeSet::new()) };
        Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
    }

    fn path(&self, pack: &PackId) -> PathBuf {
        self.0.join("packs").join(pack.to_string())
    }

    /// Flips a bit in each.
    fn damage(&self, packs: &BTreeSet<PackId>) -> Result<()> {
        for pack in packs {
            let mut bytes = fs::read(self.path(pack))?;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(self.path(pack), bytes)?;
        }
        Ok(())
    }

    fn all_right(&self, packs: &BTreeSet<PackId>) -> bool {
        packs.iter().all(|pack| fs::read(self.path(pack)).is_ok_and(|bytes| PackId::of(&bytes) == *pack))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_buckets_are_healed_while_a_rollout_goes_on() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(&folder.path().join("repository"))?;
    let mut cluster = Cluster::start(folder.path(), &["eu", "us"]).await?;
    cluster.start_workers(1)?;
    let (main, eu) = (Files::of(&cluster, "longshore-main"), Files::of(&cluster, "longshore-eu"));

    let one = build(&cluster, &repository, "one").await?;
    let packs = eu.packs("packs")?;
    ensure!(packs.len() >= 2, "{packs:?}");
    eu.damage(&packs)?;
    cluster.start_nodes(2).await?;
    let begun = Instant::now();
    deploy(&cluster, one, "one").await?;
    stored(&cluster, one).await?;
    println!("{} damaged packs in the regional bucket: all is well after {:?}", packs.len(), begun.elapsed());
    ensure!(eu.all_right(&packs), "not all packs of the bucket are right");
    ensure!(eu.packs("quarantine/packs")? == packs, "people find all of them in quarantine");

    // Now what is new is damaged both in the region and in the main bucket; only the other region has it.
    let two = build(&cluster, &repository, "two").await?;
    let new: BTreeSet<PackId> = eu.packs("packs")?.difference(&packs).copied().collect();
    ensure!(!new.is_empty());
    eu.damage(&new)?;
    main.damage(&new)?;
    let begun = Instant::now();
    deploy(&cluster, two, "two").await?;
    stored(&cluster, two).await?;
    println!("{} packs damaged in regional and main bucket: all is well after {:?}", new.len(), begun.elapsed());
    ensure!(eu.all_right(&new) && main.all_right(&new));
    ensure!(main.packs("quarantine/packs")? == new, "people find all of them in quarantine");
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_has_any_more_is_healed_by_building_it_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(&folder.path().join("repository"))?;
    let mut cluster = Cluster::start(folder.path(), &["eu"]).await?;
    cluster.start_workers(1)?;
    let (main, eu) = (Files::of(&cluster, "longshore-main"), Files::of(&cluster, "longshore-eu"));
    let body = repository.build("greeter", repository.commit("one", 4, &[])?)?;
    let one = succeeded(&cluster, &body).await?;
    stored(&cluster, one).await?;
    let bad: BTreeSet<PackId> = eu.packs("packs")?.into_iter().take(1).collect();
    eu.damage(&bad)?;
    main.damage(&bad)?;
    cluster.start_nodes(1).await?;
    cluster.client.deploy("greeter", &DeployBody { artifact: one, plan: None }).await?;
    wait_for("the region to say that the main bucket has wrong bytes", BOUND, async || {
        let view = cluster.client.artifact(&one).await?;
        let error = view.replicas.first().and_then(|replica| replica.error.clone()).unwrap_or_default();
        Ok(error.contains("main bucket").then_some(()))
    })
    .await?;
    let begun = Instant::now();
    ensure!(succeeded(&cluster, &body).await? == one, "the same commit makes the same artifact");
    stored(&cluster, one).await?;
    println!("a pack that nobody had any more: all is well {:?} after the build was asked for", begun.elapsed());
    ensure!(main.all_right(&bad) && eu.all_right(&bad));
    answers(&cluster, "one").await?;
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_serves_wrong_bytes_is_banned_and_everybody_gets_the_release() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(&folder.path().join("repository"))?;
    let mut cluster = Cluster::start(folder.path(), &["eu"]).await?;
    cluster.start_workers(1)?;
    let one = build(&cluster, &repository, "one").await?;
    let packs = Files::of(&cluster, "longshore-eu").packs("packs")?;
    // The only one that says it has anything: all are sent there first.
    let liar = Liar::join(&cluster, one, packs).await?;
    cluster.start_nodes(4).await?;
    let begun = Instant::now();
    deploy(&cluster, one, "one").await?;
    println!("a peer that serves wrong bytes: all nodes run the release after {:?}", begun.elapsed());
    ensure!(liar.served.load(Ordering::Relaxed) > 0, "nobody was sent to it");
    wait_for("the liar to be banned", BOUND, async || {
        let log = fs::read_to_string(cluster.folder.join("up.log"))?;
        Ok(log.contains("several nodes got wrong bytes from this node").then_some(()))
    })
    .await?;
    liar.stop();
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_breaks_while_it_bakes_halts_the_rollout() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(&folder.path().join("repository"))?;
    let mut cluster = Cluster::start(folder.path(), &["eu"]).await?;
    cluster.start_workers(1)?;
    cluster.start_nodes(2).await?;
    let one = build(&cluster, &repository, "one").await?;
    deploy(&cluster, one, "one").await?;
    let two = build(&cluster, &repository, "two").await?;
    let wave = Wave { regions: vec!["eu".parse()?], zones: vec![], fraction_bp: 10_000, bake_seconds: 3_600 };
    let plan = Some(RolloutPlan { waves: vec![wave], failure_budget_bp: 0 });
    cluster.client.deploy("greeter", &DeployBody { artifact: two, plan }).await?;
    answers(&cluster, "two").await?;

    // It was healthy everywhere, and bakes. Then it ends twice on one node.
    let status = cluster.nodes[0].folder.join("services/greeter/status.json");
    let mut killed = 0;
    let begun = Instant::now();
    while killed < 2 {
        let text = fs::read(&status)?;
        let shim: serde_json::Value = serde_json::from_slice(&text)?;
        if shim["exits"] == killed
            && let Some(pid) = shim["pid"].as_i64()
        {
            let pid = rustix::process::Pid::from_raw(i32::try_from(pid)?).context("a pid")?;
            rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            killed += 1;
        }
        ensure!(begun.elapsed() < BOUND, "it was started once only");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let halted = |view: &ServiceView| view.revisions[0].status == RolloutStatus::Halted;
    let view = cluster.client.service_when("greeter", "to halt", BOUND, halted).await?;
    println!("a release that breaks while it bakes halts the rollout {:?} after its first end", begun.elapsed());
    let reason = view.revisions[0].reason.clone().context("a reason")?;
    ensure!(reason.contains("it was healthy and then ended"), "{reason}");
    // The node started it again, and goes nowhere by itself.
    answers(&cluster, "two").await?;
    cluster.stop()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_killed_at_any_stage_of_an_attempt_leaves_no_process() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let repository = Repository::create(&folder.path().join("repository"))?;
    let mut cluster = Cluster::start(folder.path(), &["eu"]).await?;
    let mark = format!("LONGSHORE_WORK={}/", folder.path().canonicalize()?.display());
    let mut body = repository.build("greeter", repository.commit("one", 4, &[])?)?;
    body.build.command = ["sh", "-c", "(setsid sleep 300 &); setsid sleep 300"].map(str::to_owned).to_vec();
    let mut slowest = Duration::ZERO;
    // From the claim on, through fetch and checkout, until the command and its daemon run.
    for moment_ms in [0, 40, 80, 120, 200, 300, 500, u64::MAX] {
        let job = cluster.client.build(&body).await?.job;
        cluster.start_workers(1)?;
        wait_for("the job to start", BOUND, async || {
            Ok((cluster.client.job(&job).await?.status == JobStatus::Running).then_some(()))
        })
        .await?;
        if moment_ms == u64::MAX {
            wait_for("the daemon", BOUND, async || Ok((marked(&mark)?.len() >= 2).then_some(()))).await?;
        } else {
            // This waits for nothing: the moment is what is tried.
            tokio::time::sleep(Duration::from_millis(moment_ms)).await;
        }
        let begun = Instant::now();
        cluster.workers.last_mut().context("a worker")?.kill()?;
        let what = format!("nothing to be left of a worker killed {moment_ms} ms after its job started");
        wait_for(&what, BOUND, async || Ok(marked(&mark)?.is_empty().then_some(()))).await?;
        slowest = slowest.max(begun.elapsed());
        let path = format!("/v1/jobs/{job}/cancel");
        let _: serde_json::Value = cluster.client.post(&path, &serde_json::json!({})).await?;
    }
    println!("a worker killed at 8 moments: nothing is left of its builds after {slowest:?} at most");
    cluster.stop()
}

/// Living processes with a variable that begins so.
fn marked(prefix: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(prefix.as_bytes())) {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// A node that enrolled as any other, says that it has everything, and serves noise of the right size.
struct Liar {
    tasks: Vec<tokio::task::JoinHandle<Result<()>>>,
    served: Arc<AtomicU64>,
}

impl Liar {
    async fn join(cluster: &Cluster, artifact: ArtifactId, packs: BTreeSet<PackId>) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let swarm_port = listener.local_addr()?.port();
        let node: NodeId = "liar".parse()?;
        let region = &cluster.up.regions[0];
        let trust = longshore_identity::files::read_trust(&region.authority)?;
        let stranger = Tls::new(None, trust.clone())?;
        let mut stream = stranger.connect_to_region(TcpStream::connect(&region.address).await?, true).await?;
        let (key, token) = (Key::make()?, read_token(&cluster.up.tokens.node)?);
        say(&mut stream, &FromNode::Enrol { token, node: node.clone(), request: key.request()? }).await?;
        let FromRegion::Certified { certificate } = hear(&mut stream).await? else {
            anyhow::bail!("it was not enrolled")
        };
        let tls = Tls::new(Some(Credentials::new(&key, &certificate)?), trust)?;
        let mut stream = tls.connect_to_region(TcpStream::connect(&region.address).await?, false).await?;
        let hello = Hello {
            node,
            instance: "one".into(),
            zone: "eu-a".parse()?,
            rack: "rack-1".parse()?,
            host: "127.0.0.1".into(),
            swarm_port,
            agent_version: "0.1.0".into(),
            labels: Default::default(),
            answers_queries: false,
            boot: 1,
            goals: Default::default(),
        };
        say(&mut stream, &FromNode::Hello(hello)).await?;
        say(&mut stream, &FromNode::Have { artifact, packs: packs.into_iter().collect() }).await?;
        let sizes = cluster.folder.join("up/s3/buckets/longshore-eu/packs");
        let served = Arc::default();
        let serving = tokio::spawn(serve_noise(listener, tls, sizes, Arc::clone(&served)));
        let (mut reader, writer) = tokio::io::split(stream);
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        let beats = writer.clone();
        let beating = tokio::spawn(async move {
            loop {
                say(&mut *beats.lock().await, &FromNode::Beat).await?;
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        });
        let converging = tokio::spawn(async move {
            loop {
                // It lies about that as well, or the rollout would wait for it.
                let FromRegion::Goal(envelope) = hear(&mut reader).await? else { continue };
                let goal = longshore_signing::goal::read(&envelope).context("a goal")?;
                let report = NodeReport {
                    service: goal.service,
                    version: goal.version,
                    artifact: goal.targets.first().map(|target| target.artifact),
                    status: NodeStatus::Healthy,
                    port: None,
                    message: None,
                };
                say(&mut *writer.lock().await, &FromNode::Report(report)).await?;
            }
        });
        Ok(Self { tasks: vec![serving, beating, converging], served })
    }

    fn stop(self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), message: &FromNode) -> Result<()> {
    let json = serde_json::to_vec(message)?;
    stream.write_all(&u32::try_from(json.len())?.to_be_bytes()).await?;
    stream.write_all(&json).await?;
    Ok(stream.flush().await?)
}

async fn hear(stream: &mut (impl AsyncRead + Unpin)) -> Result<FromRegion> {
    let mut json = vec![0; stream.read_u32().await? as usize];
    stream.read_exact(&mut json).await?;
    Ok(serde_json::from_slice(&json)?)
}

async fn serve_noise(listener: TcpListener, tls: Arc<Tls>, sizes: PathBuf, served: Arc<AtomicU64>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let (tls, sizes, served) = (tls.clone(), sizes.clone(), served.clone());
        // It ends when the node has had enough.
        tokio::spawn(async move { answer_noise(tls.accept_node(stream).await?.stream, &sizes, &served).await });
    }
}

async fn answer_noise(mut stream: PeerStream, sizes: &Path, served: &AtomicU64) -> Result<()> {
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).await?;
    stream.write_all(&magic).await?;
    stream.flush().await?;
    loop {
        let mut id = [0; 32];
        stream.read_exact(&mut id).await?;
        let bytes = fs::metadata(sizes.join(PackId::from_bytes(id).to_string()))?.len();
        served.fetch_add(1, Ordering::Relaxed);
        stream.write_all(&[&[0], &bytes.to_be_bytes()[..]].concat()).await?;
        stream.write_all(&vec![0xA5; usize::try_from(bytes)?]).await?;
        stream.flush().await?;
    }
}

async fn build(cluster: &Cluster, repository: &Repository, version: &str) -> Result<ArtifactId> {
    let commit = repository.commit(version, 4, &[])?;
    let artifact = succeeded(cluster, &repository.build("greeter", commit)?).await?;
    stored(cluster, artifact).await?;
    Ok(artifact)
}

/// Builds; answers what came out.
async fn succeeded(cluster: &Cluster, body: &BuildBody) -> Result<ArtifactId> {
    let job = cluster.client.build(body).await?;
    let job = cluster.client.job_ended(&job.job, BOUND).await?;
    ensure!(job.status == JobStatus::Succeeded, "{:?}", job.failure);
    Ok(job.artifact.context("an artifact")?.artifact)
}

/// Waits until every region has all of it.
async fn stored(cluster: &Cluster, artifact: ArtifactId) -> Result<()> {
    wait_for("the artifact to be in every region", BOUND, async || {
        let view = cluster.client.artifact(&artifact).await?;
        let everywhere = view.replicas.iter().all(|replica| replica.status == Some(ReplicaStatus::Stored));
        Ok((view.status == ArtifactStatus::Deployable && everywhere).then_some(()))
    })
    .await
}

/// Deploys, and waits until every node answers with this version.
async fn deploy(cluster: &Cluster, artifact: ArtifactId, version: &str) -> Result<()> {
    cluster.client.deploy("greeter", &DeployBody { artifact, plan: None }).await?;
    let done = |view: &ServiceView| view.revisions[0].status == RolloutStatus::Completed;
    cluster.client.service_when("greeter", "to complete", BOUND, done).await?;
    answers(cluster, version).await
}

/// Waits until every node is healthy and answers with this version.
async fn answers(cluster: &Cluster, version: &str) -> Result<()> {
    wait_for(&format!("every node to answer {version:?}"), BOUND, async || {
        for node in cluster.client.nodes().await?.into_iter().filter(|node| node.node.as_str() != "liar") {
            let running = node.services.first().context("runs something")?;
            ensure!(running.status == NodeStatus::Healthy, "{}: {running:?}", node.node);
            let url = format!("http://{}:{}/", node.host, running.port.context("a port")?);
            let answer = reqwest::get(url).await?.text().await?;
            ensure!(answer.trim() == version, "{} answers {answer:?}", node.node);
        }
        Ok(Some(()))
    })
    .await
}
