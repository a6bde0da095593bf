//! Artifacts as people and other tools see them: as files, over the command line and plain HTTP, with where they come from.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use longshore_e2e::{Cluster, path_text, process::binary_path, quick::Quick};
use longshore_schemas::{
    ArtifactId,
    events::NodeStatus,
    http::{ArtifactStatus, ArtifactView, DeployBody, JobStatus, RolloutStatus, Source},
};
use reqwest::{StatusCode, header};
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(120);
const SPARSE_BYTES: u64 = 20 * 1024 * 1024 + 4;
/// What a build leaves besides the program: an empty folder, a link, a mode, a hole.
const TREE: &str = "mkdir -p out/empty out/lib && ln -s ../server out/lib/link && echo text > 'out/lib/a text' && \
    chmod 640 'out/lib/a text' && truncate -s 20M out/sparse && echo end >> out/sparse";

struct World {
    folder: tempfile::TempDir,
    cluster: Cluster,
    quick: Quick,
}

impl World {
    async fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let quick = Quick::create(&folder.path().join("repository"))?;
        let mut cluster = Cluster::start(folder.path(), &["eu"]).await?;
        cluster.start_workers(1)?;
        Ok(Self { folder, cluster, quick })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn build(&self, version: &str) -> Result<ArtifactView> {
        let body = self.quick.build("default", "web", self.quick.commit(version)?, TREE)?;
        let job = self.cluster.client.build(&body).await?;
        let job = self.cluster.client.job_ended(&job.job, BOUND).await?;
        ensure!(job.status == JobStatus::Succeeded, "{:?}", job.failure);
        let artifact = job.artifact.context("an artifact")?.artifact;
        longshore_e2e::process::wait_for("the artifact to be known", BOUND, async || {
            Ok(Some(self.cluster.client.artifact(&artifact).await?))
        })
        .await
    }

    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let data = self.path("up");
        let mut command = Command::new(binary_path("longshore")?);
        Ok(command.args(["--data", path_text(&data)?]).args(arguments).output()?)
    }

    /// What it prints, if it succeeds.
    fn longshore(&self, arguments: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.run(arguments)?;
        let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        ensure!(status.success(), "longshore {arguments:?}: {status} {out}{err}");
        Ok(out)
    }

    /// What it says when it ends with this code.
    fn refused(&self, code: i32, arguments: &[&str]) -> Result<String> {
        let Output { status, stdout, stderr } = self.run(arguments)?;
        let [out, err] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        ensure!(status.code() == Some(code), "longshore {arguments:?}: {status} instead of {code}: {out}{err}");
        Ok(err)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.longshore(&[&["--output", "json"][..], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// Plain HTTP, as any tool does it.
    async fn get(&self, artifact: &ArtifactId, path: &str, range: Option<&str>) -> Result<reqwest::Response> {
        let url = format!("{}/v1/artifacts/{artifact}/files/{path}", self.cluster.client.api);
        let request = reqwest::Client::new().get(url).bearer_auth(&self.cluster.client.token);
        let request = range.into_iter().fold(request, |request, range| request.header(header::RANGE, range));
        Ok(request.send().await?)
    }
}

/// Modes and bytes of files, targets of links, folders.
fn contents(dir: &Path) -> Result<BTreeMap<String, (u32, Vec<u8>)>> {
    let (mut found, mut folders) = (BTreeMap::new(), vec![dir.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path_text(path.strip_prefix(dir)?)?.to_owned();
            let metadata = fs::symlink_metadata(&path)?;
            let what = if metadata.is_symlink() {
                (0, path_text(&fs::read_link(&path)?)?.as_bytes().to_vec())
            } else if metadata.is_dir() {
                folders.push(path);
                (1, Vec::new())
            } else {
                (metadata.permissions().mode() & 0o777, fs::read(&path)?)
            };
            found.insert(name, what);
        }
    }
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_plain_files_for_those_who_want_them() -> Result<()> {
    let mut world = World::start().await?;
    let one = world.build("one").await?;
    let two = world.build("two").await?;
    let (id, job) = (one.summary.artifact, one.source.job().context("a job")?.to_string());
    lists(&world, &id, &job)?;
    gets(&world, &id, &job)?;
    downloads(&world, &id).await?;
    differs(&world, &id, &two.summary.artifact)?;
    verifies(&world, &id)?;
    world.cluster.start_nodes(1).await?;
    imports(&world).await?;
    world.cluster.stop()?;
    common::verify(world.folder.path())
}

fn lists(world: &World, id: &ArtifactId, job: &str) -> Result<()> {
    let names = ["empty", "lib/a text", "lib/link", "server", "sparse", "version.txt"];
    for artifact in [job, &id.to_string(), &id.short()] {
        let listed = world.longshore(&["artifact", "ls", artifact])?;
        ensure!(listed.lines().eq(names), "{listed}");
    }
    let long = world.longshore(&["artifact", "ls", job, "lib", "-l"])?;
    ensure!(long.contains("-rw-r-----         5 B  lib/a text") && long.contains("lib/link -> ../server"), "{long}");
    let lines = world.longshore(&["--output", "json", "artifact", "ls", job, "sparse"])?;
    let sparse: Value = serde_json::from_str(&lines)?;
    ensure!(sparse["size_bytes"] == SPARSE_BYTES && sparse["kind"] == "file", "{sparse}");
    let nothing = world.refused(3, &["artifact", "ls", job, "nothing"])?;
    ensure!(nothing.contains("nothing at \"nothing\""), "{nothing}");
    Ok(())
}

fn gets(world: &World, id: &ArtifactId, job: &str) -> Result<()> {
    let (whole, again) = (world.path("whole"), world.path("again"));
    let got = world.json(&["artifact", "get", job, "--to", path_text(&whole)?])?;
    ensure!(got["artifact"] == id.to_string() && got["there_bytes"] == 0 && got["files"] == 6, "{got}");
    let found = contents(&whole)?;
    ensure!(found["lib/a text"] == (0o640, b"text\n".to_vec()) && found["lib/link"] == (0, b"../server".to_vec()));
    ensure!(found["empty"] == (1, Vec::new()) && found["version.txt"].1 == b"one\n");
    let sparse = fs::metadata(whole.join("sparse"))?;
    ensure!(sparse.len() == SPARSE_BYTES && sparse.blocks() * 512 < 1024 * 1024, "{} blocks", sparse.blocks());
    let exists = world.refused(2, &["artifact", "get", job, "--to", path_text(&whole)?])?;
    ensure!(exists.contains("exists already"), "{exists}");

    // An interrupted run has left all packs.
    let packs = got["fetched_bytes"].as_u64().context("a number")?;
    let fetch = world.path(&format!(".again.{}.fetch", id.short()));
    fs::create_dir_all(&fetch)?;
    for pack in data_packs(world, id)? {
        fs::copy(world.path("up/s3/buckets/longshore-main/packs").join(&pack), fetch.join(&pack))?;
    }
    let got = world.json(&["artifact", "get", job, "--to", path_text(&again)?])?;
    ensure!(got["fetched_bytes"] == 0 && got["there_bytes"] == packs, "{got}");
    ensure!(contents(&again)? == found && !fetch.exists());

    let (file, part) = (world.path("file"), world.path("part"));
    world.longshore(&["artifact", "get", job, "lib/a text", "--to", path_text(&file)?])?;
    ensure!(fs::read(&file)? == b"text\n" && fs::metadata(&file)?.permissions().mode() & 0o777 == 0o640);
    world.longshore(&["artifact", "get", job, "lib", "--to", path_text(&part)?])?;
    ensure!(contents(&part)?.keys().eq(["a text", "link"]));
    let none = world.refused(3, &["artifact", "get", job, "no", "--to", path_text(&world.path("none"))?])?;
    ensure!(none.contains("nothing at \"no\"") && !world.path("none").exists(), "{none}");
    Ok(())
}

/// As the root in the main bucket names them.
fn data_packs(world: &World, id: &ArtifactId) -> Result<Vec<String>> {
    let root = fs::read(world.path(&format!("up/s3/buckets/longshore-main/artifacts/{id}.json")))?;
    let root: Value = serde_json::from_slice(&root)?;
    let packs = root["packs"].as_array().context("packs")?;
    packs.iter().map(|pack| Ok(pack["pack"].as_str().context("a name")?.to_owned())).collect()
}

async fn downloads(world: &World, id: &ArtifactId) -> Result<()> {
    let found = contents(&world.path("whole"))?;
    for (name, escaped) in [("server", "server"), ("sparse", "sparse"), ("lib/a text", "lib/a%20text")] {
        let answer = world.get(id, escaped, None).await?.error_for_status()?;
        ensure!(answer.headers()[header::ETAG].to_str()?.starts_with('"'));
        ensure!(answer.bytes().await? == found[name].1, "{name} came otherwise");
    }
    let linked = world.get(id, "lib/link", None).await?.error_for_status()?;
    ensure!(linked.bytes().await? == found["server"].1, "a link leads to what it points to");
    let end = world.get(id, "sparse", Some("bytes=-4")).await?;
    ensure!(end.status() == StatusCode::PARTIAL_CONTENT && end.bytes().await? == "end\n");
    ensure!(world.get(id, "sparse", Some("bytes=99999999-")).await?.status() == StatusCode::RANGE_NOT_SATISFIABLE);
    Ok(())
}

fn differs(world: &World, one: &ArtifactId, two: &ArtifactId) -> Result<()> {
    let diff = world.longshore(&["artifact", "diff", &one.to_string(), "web@latest"])?;
    let lines: Vec<_> = diff.lines().collect();
    ensure!(lines[0] == "M version.txt  4 B -> 4 B" && lines[1].is_empty(), "{diff}");
    ensure!(lines[2].contains("needs 4 B of") && lines[2].contains("(0.0 %, 1 of"), "{diff}");
    let diff = world.json(&["artifact", "diff", &one.to_string(), &two.to_string()])?;
    ensure!(diff["needs"]["new_chunks"] == 1 && diff["needs"]["packs"] == 1, "{diff}");
    ensure!(diff["changes"].as_array().map(Vec::len) == Some(1), "{diff}");
    let same = world.json(&["artifact", "diff", &one.to_string(), &one.to_string()])?;
    ensure!(same["needs"]["new_chunks"] == 0 && same["changes"] == serde_json::json!([]), "{same}");
    Ok(())
}

fn verifies(world: &World, id: &ArtifactId) -> Result<()> {
    let id = id.to_string();
    let whole = world.path("whole");
    let tree = path_text(&whole)?;
    let said = world.longshore(&["artifact", "verify", &id, "--deep"])?;
    ensure!(said.contains("the provenance is valid") && said.contains("urn:longshore:worker:worker-1"), "{said}");
    let report = world.json(&["artifact", "verify", tree])?;
    ensure!(report["artifact"] == id && report["verified_bytes"].as_u64() > Some(SPARSE_BYTES), "{report}");
    // Without the server's word: with an envelope that is at hand.
    let envelope = world.path("envelope.json");
    let root = fs::read(world.path(&format!("up/s3/buckets/longshore-main/artifacts/{id}.json")))?;
    let root: Value = serde_json::from_slice(&root)?;
    fs::write(&envelope, root["provenance"].to_string())?;
    world.longshore(&["artifact", "verify", tree, "--envelope", path_text(&envelope)?])?;
    let other = world.refused(1, &["artifact", "verify", "web@latest", "--envelope", path_text(&envelope)?])?;
    ensure!(other.contains("the provenance is that of"), "{other}");

    let stranger = world.path("stranger.pub");
    fs::write(&stranger, longshore_signing::SigningKey::from_seed(&[1; 32]).public().pem())?;
    let foreign = world.refused(1, &["artifact", "verify", &id, "--key", path_text(&stranger)?])?;
    ensure!(foreign.contains("none of the 1 keys that are trusted"), "{foreign}");
    let missing = world.refused(2, &["artifact", "verify", &id, "--key", "nowhere.pub"])?;
    ensure!(missing.contains("there is no nowhere.pub"), "{missing}");

    fs::write(whole.join("version.txt"), "eno\n")?;
    let changed = world.refused(1, &["artifact", "verify", tree])?;
    ensure!(changed.contains("was changed since"), "{changed}");
    Ok(())
}

/// What was built elsewhere is replicated, deployed and verified like what was built here.
async fn imports(world: &World) -> Result<()> {
    let tree = world.path("whole");
    fs::write(tree.join("version.txt"), "imported\n")?;
    let import = ["artifact", "import", path_text(&tree)?, "--name", "web", "--run", "./server", "--health-path", "/"];
    let nowhere = world.refused(3, &[&import[..], &["--origin", "nowhere"]].concat())?;
    ensure!(nowhere.contains("origin must be a URL"), "{nowhere}");
    let view = world.json(&[&import[..], &["--origin", "https://ci.example/web/17"]].concat())?;
    let view: ArtifactView = serde_json::from_value(view)?;
    let artifact = view.summary.artifact;
    ensure!(matches!(&view.source, Source::Imported(origin) if origin.imported_by == "admin"), "{:?}", view.source);
    ensure!(view.summary.new_pack_bytes < view.summary.pack_bytes, "what was there is not uploaded again");

    let client = &world.cluster.client;
    longshore_e2e::process::wait_for("the import to be deployable", BOUND, async || {
        Ok((client.artifact(&artifact).await?.status == ArtifactStatus::Deployable).then_some(()))
    })
    .await?;
    client.deploy("web", &DeployBody { artifact, plan: None }).await?;
    let done = |view: &longshore_schemas::http::ServiceView| view.revisions[0].status == RolloutStatus::Completed;
    client.service_when("web", "to complete", BOUND, done).await?;
    let node = client.nodes().await?.pop().context("a node")?;
    let running = node.services.first().context("it runs something")?;
    ensure!(running.status == NodeStatus::Healthy && running.artifact == Some(artifact), "{running:?}");
    let url = format!("http://{}:{}/", node.host, running.port.context("a port")?);
    ensure!(reqwest::get(url).await?.text().await? == "imported\n");

    let said = world.longshore(&["artifact", "verify", path_text(&tree)?])?;
    ensure!(said.contains("urn:longshore:import:1") && said.contains("https://ci.example/web/17"), "{said}");
    let shown = world.longshore(&["artifact", "web"])?;
    ensure!(shown.contains("elsewhere: https://ci.example/web/17, imported by admin"), "{shown}");
    Ok(())
}
