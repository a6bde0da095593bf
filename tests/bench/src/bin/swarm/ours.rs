//! Ours: `longshore up` on the bucket's machine, an agent on each node, and a deployment of the file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{
    Client, UpFile,
    process::{binary_path, wait_for},
    read_token,
};
use longshore_schemas::{
    ArtifactId, CommitSha,
    http::{BuildBody, DeployBody},
};
use serde_json::{Value, json};

use crate::{
    Round,
    lab::{BUCKET, Guarded, Lab},
};

const API_PORT: u16 = 7_070;
const REGION_PORT: u16 = 7_071;
const S3_PORT: u16 = 7_072;
const SWARM_PORT: u16 = 7_073;
const BOUND: Duration = Duration::from_secs(120);
const SERVICE: &str = "file";

pub(crate) struct Ours<'a> {
    lab: &'a Lab,
    folder: PathBuf,
    client: Client,
    commit: CommitSha,
    // In the order in which they end.
    _nodes: Vec<Guarded>,
    _worker: Guarded,
    _up: Guarded,
}

/// What a node says of a release that it installed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Installed {
    /// When all bytes were there, verified; and when the release was assembled of them.
    pub(crate) fetched: f64,
    pub(crate) at: f64,
    pub(crate) needed: f64,
    pub(crate) from_bucket: f64,
}

impl<'a> Ours<'a> {
    pub(crate) async fn start(lab: &'a Lab, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let api = format!("{}:{API_PORT}", lab.bucket_from_outside());
        let data = folder.join("up");
        let mut up = lab.command(None, binary_path("longshore")?);
        up.arg("up").arg("--data").arg(&data).args(["--regions", "eu", "--listen", &api]);
        up.args(["--s3-listen", &format!("{BUCKET}:{S3_PORT}"), "--region-listen", &format!("{BUCKET}:{REGION_PORT}")]);
        let up = start(up, &folder.join("up.log"))?;
        let file: UpFile = wait_for("`longshore up` to be ready", BOUND, async || {
            Ok(fs::read(data.join("up.json")).ok().and_then(|json| serde_json::from_slice(&json).ok()))
        })
        .await?;
        let url = format!("http://{api}");
        let client = Client::new(&url, &read_token(&file.tokens.admin)?)?;
        let mut worker = lab.command(None, binary_path("longshore")?);
        worker.args(["worker", "--api", &url, "--name", "builder", "--allow-file-repositories"]);
        worker.arg("--token-file").arg(&file.tokens.worker).arg("--work-dir").arg(folder.join("worker"));
        let worker = start(worker, &folder.join("worker.log"))?;
        let authority = &file.regions.first().context("a region")?.authority;
        let mut nodes = Vec::new();
        for node in 0..lab.layout.nodes() {
            let address = lab.address(node);
            let mut agent = lab.command(Some(node), binary_path("longshore-node")?);
            agent.args(["run", "--node", &format!("n{node}"), "--rack", &format!("rack{}", lab.rack_of(node))]);
            agent.args(["--host", &address, "--swarm-listen", &format!("{address}:{SWARM_PORT}")]);
            agent.args(["--region-address", &format!("{BUCKET}:{REGION_PORT}"), "--log-format", "json"]);
            agent.arg("--data").arg(folder.join(format!("n{node}"))).arg("--token-file").arg(&file.tokens.node);
            agent.arg("--region-authority").arg(authority).arg("--goal-keys").arg(&file.keys.goals);
            agent.arg("--provenance-keys").arg(&file.keys.provenance).arg("--stop-services-on-exit");
            nodes.push(start(agent, &log_of(folder, node))?);
        }
        let all = lab.layout.nodes();
        wait_for("every node to join", BOUND, async || Ok((client.nodes().await?.len() == all).then_some(()))).await?;
        let commit = repository(&folder.join("repository"))?;
        Ok(Self { lab, folder: folder.to_owned(), client, commit, _nodes: nodes, _worker: worker, _up: up })
    }

    /// Brings a file into the region.
    pub(crate) async fn publish(&self, file: &Path) -> Result<ArtifactId> {
        let body: BuildBody = serde_json::from_value(json!({
            "queue": "default",
            "build": {
                "name": SERVICE, "repository": format!("file://{}/repository", self.folder.display()), "commit": self.commit,
                "command": ["sh", "-c", format!("mkdir out && cp {} out/", file.display())], "output": "out",
                "run": { "command": ["sleep", "1000000"] },
            },
        }))?;
        self.client.publish(&body, BOUND).await
    }

    /// To all nodes at once, from the first that hears of it until each has it, verified.
    pub(crate) async fn deploy(&self, artifact: ArtifactId) -> Result<(Round, Vec<Installed>)> {
        let nodes = 0..self.lab.layout.nodes();
        let seen: Vec<usize> = nodes.clone().map(|node| Ok(self.lines(node)?.len())).collect::<Result<_>>()?;
        let (before, busy) = (self.lab.counted()?, crate::Busy::begin()?);
        self.client.deploy(SERVICE, &DeployBody { artifact, plan: None }).await?;
        let (mut begun, mut installed) = (f64::MAX, Vec::new());
        for node in nodes {
            let (heard, found) = wait_for(&format!("node {node} to have the file"), BOUND, async || {
                let lines = self.lines(node)?.split_off(seen[node]);
                let goal = lines.iter().find(|line| line["message"] == "goal");
                let done =
                    |line: &&Value| line["message"] == "release installed" && line["artifact"] == artifact.to_string();
                let here =
                    |line: &&Value| line["message"] == "all packs are here" && line["artifact"] == artifact.to_string();
                let (Some(goal), Some(here), Some(done)) = (goal, lines.iter().find(here), lines.iter().find(done))
                else {
                    return Ok(None);
                };
                Ok(Some((at(goal)?, read(here, done)?)))
            })
            .await?;
            begun = begun.min(heard);
            installed.push(found);
        }
        let share = busy.share()?;
        let seconds = installed.iter().map(|found| found.fetched - begun).collect();
        for found in &mut installed {
            found.at -= begun;
        }
        Ok((Round { seconds, busy: share, before, after: self.lab.counted()? }, installed))
    }

    /// What a node has logged.
    fn lines(&self, node: usize) -> Result<Vec<Value>> {
        let text = fs::read_to_string(log_of(&self.folder, node))?;
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }
}

fn start(mut command: Command, log: &Path) -> Result<Guarded> {
    let log = fs::File::create(log)?;
    command.stdout(Stdio::from(log.try_clone()?)).stderr(log);
    Ok(Guarded(command.spawn()?))
}

fn log_of(folder: &Path, node: usize) -> PathBuf {
    folder.join(format!("n{node}.log"))
}

fn read(here: &Value, line: &Value) -> Result<Installed> {
    let number = |key: &str| line[key].as_f64().with_context(|| format!("{key} in {line}"));
    Ok(Installed {
        fetched: at(here)?,
        at: at(line)?,
        needed: number("needed_bytes")?,
        from_bucket: number("from_bucket_bytes")?,
    })
}

/// Seconds since the beginning of the day before, so that midnight is no end of the world.
fn at(line: &Value) -> Result<f64> {
    let text = line["timestamp"].as_str().context("a timestamp")?;
    let time = text.split_once('T').and_then(|(_, time)| time.strip_suffix('Z')).with_context(|| text.to_owned())?;
    let mut parts = time.split(':').map(str::parse::<f64>);
    let mut next = || parts.next().context("hours, minutes, seconds")?.map_err(anyhow::Error::from);
    let seconds = next()? * 3_600.0 + next()? * 60.0 + next()?;
    Ok(if seconds < 3_600.0 { seconds + 86_400.0 } else { seconds })
}

fn repository(folder: &Path) -> Result<CommitSha> {
    fs::create_dir_all(folder)?;
    let git = |arguments: &[&str]| -> Result<String> {
        let who = ["-c", "user.name=Bench", "-c", "user.email=bench@example.invalid", "-c", "commit.gpgsign=false"];
        let output = Command::new("git").current_dir(folder).args(who).args(arguments).output()?;
        ensure!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    git(&["init", "--quiet", "--initial-branch=main"])?;
    git(&["commit", "--quiet", "--allow-empty", "--message", "nothing"])?;
    Ok(git(&["rev-parse", "HEAD"])?.parse()?)
}
