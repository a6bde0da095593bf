//! An agent as a real process, and what its services answer.

use std::{
    collections::BTreeSet,
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use longshore_node::releases::Transfer;
use longshore_schemas::{
    ArtifactId, PackId,
    events::{Cohort, GoalVersion, HealthCheck, RegionalGoal, RunSpec, StopSignal, Target},
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::region::{Region, TOKEN, goal_key, provenance_key};

const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_longshore-node");

pub(crate) struct Node {
    name: &'static str,
    folder: TempDir,
    data: PathBuf,
    region: Region,
    port_base: u16,
    agent: Option<Child>,
    /// What is started as the agent.
    program: PathBuf,
}

impl Node {
    /// Starts an agent in an empty folder.
    pub(crate) fn start(name: &'static str, region: &Region) -> Self {
        Self::start_believing(name, region, region.authority())
    }

    /// Starts an agent that was given this authority.
    pub(crate) fn start_believing(name: &'static str, region: &Region, authority: &str) -> Self {
        let mut node = Self::prepare(name, region, authority);
        node.start_agent(&[]);
        node
    }

    /// Starts an agent with these flags too, whose data is in this folder.
    pub(crate) fn start_in(name: &'static str, region: &Region, data: Option<&Path>, more: &[&str]) -> Self {
        let mut node = Self::prepare(name, region, region.authority());
        if let Some(data) = data {
            node.data = data.to_owned();
        }
        node.start_agent(more);
        node
    }

    fn prepare(name: &'static str, region: &Region, authority: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        // Services may run as other users.
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), readable).expect("set");
        std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).expect("written");
        std::fs::write(folder.path().join("eu.pem"), authority).expect("written");
        for (name, key) in [("goals.pub", goal_key()), ("provenance.pub", provenance_key())] {
            std::fs::write(folder.path().join(name), key.public().pem()).expect("written");
        }
        let data = folder.path().join("data");
        let (region, port_base) = (region.clone(), port_base());
        Self { name, folder, data, region, port_base, agent: None, program: PROGRAM.into() }
    }

    /// Puts a new file in place of the program, as an upgrade does.
    pub(crate) fn replace_program(&mut self) {
        let (new, program) = (self.folder.path().join("program.new"), self.folder.path().join("program"));
        std::fs::copy(PROGRAM, &new).expect("copied");
        std::fs::rename(&new, &program).expect("renamed");
        self.program = program;
    }

    pub(crate) fn service_file(&self, name: &str) -> PathBuf {
        self.data().join("services/web").join(name)
    }

    pub(crate) fn shim_pid(&self) -> u32 {
        let status = std::fs::read(self.service_file("status.json")).expect("there");
        serde_json::from_slice::<longshore_node::shim::ShimStatus>(&status).expect("a status").shim_pid
    }

    /// Living processes of the service, and shims that say they are its.
    pub(crate) fn processes(&self) -> (Vec<u32>, Vec<u32>) {
        let folder = self.data().canonicalize().expect("there").join("services/web");
        let folder = folder.to_string_lossy();
        let pids = std::fs::read_dir("/proc").expect("readable").flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| lives(*pid));
        let (mark, (mut services, mut shims)) = (format!("LONGSHORE_SHIM={folder}"), (Vec::new(), Vec::new()));
        for pid in pids {
            let has = |file: &str, entry: &str| {
                let text = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
                text.split(|byte| *byte == 0).any(|part| part == entry.as_bytes())
            };
            if has("environ", &mark) {
                services.push(pid);
            } else if has("cmdline", "shim") && has("cmdline", &folder) {
                shims.push(pid);
            }
        }
        (services, shims)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.data.clone()
    }

    /// The packs that are there as a whole.
    pub(crate) fn packs(&self) -> BTreeSet<PackId> {
        let entries = std::fs::read_dir(self.data().join("packs")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Bytes of packs that are there, of those that come too.
    pub(crate) fn pack_bytes(&self) -> u64 {
        let entries = std::fs::read_dir(self.data().join("packs")).into_iter().flatten().flatten();
        // One may have got another name since. Of those that come, what is not there yet is a hole.
        entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512)).sum()
    }

    /// What a release of an artifact has in this file.
    pub(crate) fn installed(&self, artifact: &ArtifactId, file: &str) -> Vec<u8> {
        std::fs::read(self.data().join("releases").join(artifact.to_string()).join(file)).expect("installed")
    }

    pub(crate) fn start_agent(&mut self, more: &[&str]) {
        let log = File::options().create(true).append(true).open(self.folder.path().join("agent.log")).expect("a log");
        let mut command = Command::new(&self.program);
        command.args(["run", "--node", self.name, "--host", "127.0.0.1", "--swarm-listen", "127.0.0.1:0"]);
        command.arg("--region-address").arg(self.region.address().to_string());
        command.arg("--data").arg(self.data()).arg("--token-file").arg(self.folder.path().join("token"));
        command.arg("--region-authority").arg(self.folder.path().join("eu.pem"));
        command.arg("--goal-keys").arg(self.folder.path().join("goals.pub"));
        command.arg("--provenance-keys").arg(self.folder.path().join("provenance.pub"));
        command.arg("--port-base").arg(self.port_base.to_string()).args(more);
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.agent = Some(command.spawn().expect("starts"));
    }

    /// Whether the agent has ended by itself; it may be started again then.
    pub(crate) fn has_ended(&mut self) -> bool {
        let ended = self.agent.as_mut().is_some_and(|agent| agent.try_wait().expect("a child").is_some());
        if ended {
            self.agent = None;
        }
        ended
    }

    /// SIGKILL, to the agent alone.
    pub(crate) fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("runs");
        agent.kill().expect("killed");
        agent.wait().expect("reaped");
    }

    /// SIGTERM, and waits.
    pub(crate) fn stop_agent(&mut self) {
        let mut agent = self.agent.take().expect("runs");
        signal(agent.id(), "TERM");
        assert!(agent.wait().expect("reaped").success(), "{}", self.log());
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    pub(crate) fn transfers(&self) -> Vec<Transfer> {
        let json = std::fs::read(self.data().join("transfers.json")).expect("written");
        serde_json::from_slice(&json).expect("transfers")
    }

    pub(crate) fn status(&self) -> String {
        let output = Command::new(PROGRAM).arg("status").arg("--data").arg(self.data()).output().expect("runs");
        String::from_utf8(output.stdout).expect("text")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
        let _ = Command::new(PROGRAM).arg("stop-services").arg("--data").arg(self.data()).status();
        #[expect(clippy::print_stderr, reason = "it belongs to what a failed test shows")]
        if std::thread::panicking() {
            eprintln!("the agent of {} said:\n{}", self.name, self.log());
        }
    }
}

/// Ports below those that the kernel gives away, other ones for each node of each test.
fn port_base() -> u16 {
    static NODES: AtomicU16 = AtomicU16::new(0);
    let node = NODES.fetch_add(1, Ordering::Relaxed);
    let process = u16::try_from(std::process::id() % 40).expect("below 40");
    12_000 + process * 480 + node % 30 * 16
}

pub(crate) fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().expect("runs").success());
}

pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

pub(crate) async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// What a service answers: its version and its process.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Answer {
    pub(crate) version: String,
    pub(crate) pid: u32,
}

/// Asks the service on this port; `None` if none listens.
pub(crate) async fn ask(port: u16) -> Option<Answer> {
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let text = client.get(format!("http://127.0.0.1:{port}/")).send().await.ok()?.text().await.ok()?;
    let (version, pid) = text.split_once(' ')?;
    Some(Answer { version: version.to_owned(), pid: pid.parse().ok()? })
}

/// Writes a release: a script, its version, and what else there is.
pub(crate) fn release(folder: &Path, version: &str, script: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(folder).expect("made");
    std::fs::write(folder.join("version"), version).expect("written");
    let program = folder.join("run.sh");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("written");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("set");
}

/// A script that answers over HTTP: this test program plays the server.
pub(crate) const SERVE: &str = r#"exec "$SERVER" --exact serves_its_version --ignored --nocapture"#;

pub(crate) fn goal(service: &str, revision: u64, artifact: Option<ArtifactId>) -> RegionalGoal {
    goal_of(service, revision, artifact, |_| {})
}

/// A goal whose run is changed so.
pub(crate) fn goal_of(
    service: &str,
    revision: u64,
    artifact: Option<ArtifactId>,
    change: impl FnOnce(&mut RunSpec),
) -> RegionalGoal {
    let server = std::env::current_exe().expect("it runs").to_string_lossy().into_owned();
    let health = HealthCheck { http_path: "/".into(), successes: 2, interval_ms: 50, ..HealthCheck::default() };
    let mut run = RunSpec {
        command: vec!["./run.sh".into()],
        environment: [("SERVER".to_owned(), server)].into(),
        health: HealthCheck { deadline_seconds: 20, ..health },
        stop_signal: StopSignal::Term,
        stop_seconds: 2,
        ..RunSpec::default()
    };
    change(&mut run);
    let target = artifact.map(|artifact| Target { cohort: Cohort::everyone(), revision, artifact, run });
    RegionalGoal {
        region: "eu".parse().expect("valid"),
        service: service.parse().expect("valid"),
        version: GoalVersion { revision, step: 1 },
        targets: target.into_iter().collect(),
    }
}
