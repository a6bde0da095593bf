//! Retention with tiny limits while artifacts are published, deployed and built again: nothing that is kept ever lacks anything, and what
//! nobody needs goes from all buckets.

mod common;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use common::folder;
use longshore_artifact::{ArtifactRoot, root_key};
use longshore_e2e::{
    Client, Cluster, Options,
    process::{binary_path, wait_for},
    quick::Quick,
};
use longshore_schemas::{
    ArtifactId, JobId,
    http::{ArtifactStatus, ArtifactView, DeployBody, JobStatus, JobView, Page, RetentionView, RolloutStatus},
};

const BOUND: Duration = Duration::from_secs(120);
const TINY: [(&str, &str); 5] = [
    ("LONGSHORE_RETENTION_KEEP_LAST", "1"),
    ("LONGSHORE_RETENTION_KEEP_FOR", "2s"),
    ("LONGSHORE_RETENTION_GRACE", "4s"),
    ("LONGSHORE_RETENTION_ANNOUNCED_FOR", "4s"),
    ("LONGSHORE_RETENTION_INTERVAL", "1s"),
];

/// What a bucket's folder has.
struct Stored<'a>(&'a Path, &'a str);

impl Stored<'_> {
    fn path(&self, key: &str) -> std::path::PathBuf {
        self.0.join("up/s3/buckets").join(self.1).join(key)
    }

    fn packs(&self) -> Result<BTreeSet<String>> {
        let Ok(entries) = fs::read_dir(self.path("packs")) else { return Ok(BTreeSet::new()) };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// What the artifact lacks.
    fn lacks(&self, artifact: &ArtifactId) -> Result<Option<String>> {
        let key = root_key(artifact);
        let Ok(json) = fs::read(self.path(&key)) else { return Ok(Some(key)) };
        let packs = ArtifactRoot::from_json(artifact, &json)?.all_packs();
        let lacking = packs.iter().find(|pack| !self.path(&format!("packs/{}", pack.pack)).exists());
        Ok(lacking.map(|pack| pack.pack.to_string()))
    }
}

/// All artifacts that are not retired have all that they name.
async fn check(client: &Client, folder: &Path) -> Result<()> {
    let page: Page<ArtifactView> = client.get("/v1/artifacts?limit=1000").await?;
    for view in page.items.iter().filter(|view| view.status != ArtifactStatus::Retired) {
        let artifact = view.summary.artifact;
        let Some(lacks) = Stored(folder, "longshore-main").lacks(&artifact)? else { continue };
        // It may have been retired since, and another root may name other packs.
        let again = client.artifact(&artifact).await?;
        let still = Stored(folder, "longshore-main").lacks(&artifact)?;
        ensure!(again.status == ArtifactStatus::Retired || still.is_none(), "{artifact} lacks {lacks}: {again:?}");
    }
    Ok(())
}

fn longshore(folder: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(binary_path("longshore")?);
    let output = command.arg("--data").arg(folder.join("up")).args(arguments).output()?;
    let [out, err] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    ensure!(output.status.success(), "longshore {arguments:?}: {out}{err}");
    Ok(out)
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_during_publishes_takes_what_nobody_needs_and_nothing_else() -> Result<()> {
    let folder = folder()?;
    let repository = Quick::create(&folder.path().join("repository"))?;
    let commit = repository.commit("one")?;
    let up_environment = TINY.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let mut cluster =
        Cluster::start_with(folder.path(), &["eu"], Options { up_environment, ..Options::default() }).await?;
    cluster.start_workers(2)?;
    cluster.start_nodes(1).await?;
    let client = &cluster.client;
    let build = async |content: u32| -> Result<JobView> {
        // Much that all have, and a little of its own.
        let script = format!("echo {content} > extra; mkdir -p out; cp extra out/extra");
        client.build(&repository.build("default", "web", commit.clone(), &script)?).await
    };
    let artifact_of = async |job: &JobId| -> Result<ArtifactId> {
        let view = client.job_ended(job, BOUND).await?;
        ensure!(view.status == JobStatus::Succeeded, "{view:?}");
        Ok(view.artifact.context("a success has an artifact")?.artifact)
    };

    let deployed = artifact_of(&build(0).await?.job).await?;
    deploy(client, "web", deployed).await?;
    let mut contents = BTreeMap::new();
    for round in 0..12 {
        // Two publish the same at once, and some contents come again, retired or not.
        let content = 2 + round % 9;
        let (one, two) = (build(content).await?, build(content).await?);
        let (one, two) = (artifact_of(&one.job).await?, artifact_of(&two.job).await?);
        ensure!(one == two, "the same content is one artifact");
        contents.insert(one, content);
        check(client, folder.path()).await?;
    }
    // What is the newest of its name is not retired before it is kept.
    let wanted = artifact_of(&build(1).await?.job).await?;
    let kept = longshore(folder.path(), &["keep", &wanted.to_string(), "--reason", "an audit"])?;
    ensure!(kept.contains("is kept"), "{kept}");

    let retired = |view: &ArtifactView| view.status == ArtifactStatus::Retired;
    let newest = artifact_of(&build(100).await?.job).await?;
    let stays = |artifact: &ArtifactId| [deployed, wanted, newest].contains(artifact);
    wait_for("all others to be retired", BOUND, async || {
        check(client, folder.path()).await?;
        let page: Page<ArtifactView> = client.get("/v1/artifacts?limit=1000").await?;
        let others = |view: &&ArtifactView| !stays(&view.summary.artifact);
        // Of each partition's artifacts the newest of the name stays, whichever that is.
        let left = page.items.iter().filter(others).filter(|view| !retired(view)).count();
        Ok((left <= 4).then_some(()))
    })
    .await?;
    for artifact in [deployed, wanted, newest] {
        ensure!(!retired(&client.artifact(&artifact).await?), "{artifact} is needed");
    }
    let page: Page<ArtifactView> = client.get("/v1/artifacts?limit=1000").await?;
    let gone = page.items.iter().find(|view| retired(view)).context("one is retired")?.summary.artifact;
    let refused = deploy(client, "other", gone).await.expect_err("it is retired").to_string();
    ensure!(refused.contains("is retired"), "{refused}");
    let refused = longshore(folder.path(), &["keep", &gone.to_string()]).expect_err("it is retired").to_string();
    ensure!(refused.contains("is retired"), "{refused}");

    for bucket in ["longshore-main", "longshore-eu"] {
        wait_for(&format!("{bucket} to hold what is needed"), BOUND, async || {
            let page: Page<ArtifactView> = client.get("/v1/artifacts?limit=1000").await?;
            let mut needed = BTreeSet::new();
            for view in page.items.iter().filter(|view| !retired(view)) {
                let artifact = view.summary.artifact;
                let Ok(json) = fs::read(Stored(folder.path(), bucket).path(&root_key(&artifact))) else {
                    return Ok(None);
                };
                let packs = ArtifactRoot::from_json(&artifact, &json)?.all_packs();
                needed.extend(packs.iter().map(|pack| pack.pack.to_string()));
            }
            let gone = !Stored(folder.path(), bucket).path(&root_key(&gone)).exists();
            Ok((gone && Stored(folder.path(), bucket).packs()? == needed).then_some(()))
        })
        .await?;
    }
    let view: RetentionView = client.get("/v1/retention").await?;
    ensure!(view.collected.packs_deleted == 0 && view.collected.packs_kept > 0, "{view:?}");
    let why = |artifact| view.kept.iter().find(|kept| kept.artifact == artifact).map(|kept| kept.because.clone());
    ensure!(why(deployed).as_deref() == Some("service web needs it"), "{view:?}");
    ensure!(why(wanted).is_some_and(|why| why.contains("an audit")), "{view:?}");
    let said = longshore(folder.path(), &["retention"])?;
    ensure!(said.contains("service web needs it"), "{said}");

    // What is built again comes back, and may be deployed.
    let content = *contents.get(&gone).context("it was built here")?;
    let again = artifact_of(&build(content).await?.job).await?;
    ensure!(again == gone, "the same content is the same artifact");
    deploy(client, "other", again).await?;
    check(client, folder.path()).await?;
    cluster.stop()
}

async fn deploy(client: &Client, service: &str, artifact: ArtifactId) -> Result<()> {
    wait_for(&format!("{artifact} to be in its region"), BOUND, async || {
        let view = client.artifact(&artifact).await?;
        Ok((view.status != ArtifactStatus::Replicating).then_some(()))
    })
    .await?;
    client.deploy(service, &DeployBody { artifact, plan: None }).await?;
    let completed = |status| status == RolloutStatus::Completed;
    client
        .service_when(service, "to complete", BOUND, |view| view.revisions.first().is_some_and(|r| completed(r.status)))
        .await?;
    Ok(())
}
